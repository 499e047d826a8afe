"""What storm.py does ten times over with eight runs, once with two: the product's promise on a cluster, end to end."""

import shutil
from typing import Any

import pytest

from tests.chart.release import find_helm
from tests.cluster.storm import FACES, STATE, compare, stormy

KINDS = ("rank 0", "rendezvous pod", "service pod", "S3 answering 503 for 30 s", "node for 75 s")


@pytest.mark.timeout(1500)
def test_an_ablation_has_the_numbers_that_it_would_have_had_whatever_dies(core: Any) -> None:
    if not FACES.exists() or not STATE.exists() or not shutil.which("kubectl") or not find_helm():
        pytest.skip("needs ../shared/data/faces, and the cluster of ../shared/cluster: run scripts/test-cluster")
    with stormy("storm-small", seed=7, extra=False) as storm:
        disturbed = storm.submit("storm", 300, arms=2, seeds=1)
        felt = dict(storm.blow(list(storm.runs(disturbed).values()), 1, KINDS))
        ended = storm.finish(disturbed)
        assert felt.keys() & {"rank 0", "rendezvous pod", "node for 75 s"}, "it was over before anything was done to it"
        assert storm.ask(f"/v1/experiments/{disturbed}/comparison")["complete"]
        compare(storm, ended, storm.finish(storm.submit("calm", 300, arms=2, seeds=1, pool="wide")))
