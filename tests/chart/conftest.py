import shutil

import pytest

from tests.chart.release import cluster_is_up, find_helm


@pytest.fixture(scope="session")
def cluster() -> None:
    """A cluster that may be installed into; without one, tests that want it are skipped."""
    if not shutil.which("kubectl") or not find_helm():
        pytest.skip("needs kubectl, and helm on PATH or in ~/.cache/mcf-cluster/bin")
    if not cluster_is_up():
        pytest.skip("needs a cluster whose API server answers: run scripts/test-cluster")
