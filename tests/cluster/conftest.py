"""A real cluster for tests: the one that KUBECONFIG names, with the project's images in it.

scripts/test-cluster starts that of ../shared/cluster and builds the images. Each test file has a namespace of its own.
"""

import os
import subprocess
import time
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from kubernetes import client, config

from tests.chart.release import IMAGES

TRAINER = IMAGES["trainer"]
HOW = "run scripts/test-cluster, which needs ../shared/cluster, or name a cluster with KUBECONFIG"


@pytest.fixture(scope="session")
def core() -> Any:
    """CoreV1Api of a cluster that answers, as its administrator."""
    if not os.environ.get("KUBECONFIG"):
        pytest.skip(f"needs a cluster, and KUBECONFIG is not set: {HOW}")
    config.load_kube_config()
    api = client.CoreV1Api()
    try:
        api.list_node(_request_timeout=5)
    except Exception as error:
        pytest.skip(f"needs a cluster, and that of KUBECONFIG does not answer ({error}): {HOW}")
    return api


@pytest.fixture(scope="module")
def namespace(core: Any) -> Iterator[str]:
    name = f"mcf-test-{uuid.uuid4().hex[:6]}"
    labels = {"pod-security.kubernetes.io/enforce": "restricted"}
    core.create_namespace({"metadata": {"name": name, "labels": labels}})
    yield name
    core.delete_namespace(name)


def kubectl(*arguments: str, text: str | None = None) -> str:
    done = subprocess.run(["kubectl", *arguments], input=text, capture_output=True, text=True)
    assert done.returncode == 0, f"kubectl {' '.join(arguments)}: {done.stderr}"
    return done.stdout


def soon(what: Callable[[], Any], seconds: float, says: Callable[[], object] | None = None) -> Any:
    """The first true answer, which has to come within `seconds`."""
    deadline = time.monotonic() + seconds
    while not (answer := what()):
        assert time.monotonic() < deadline, f"not within {seconds:g} s: {says() if says else what()}"
        time.sleep(0.2)
    return answer
