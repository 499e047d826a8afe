"""Attempts in a quota, with a real Kueue: the core as a whole, every extra node by itself.

Kueue's controller is that of ../shared/cluster, without its webhooks; scripts/test-cluster starts it.
"""

import time
from collections.abc import Iterator
from typing import Any

import pytest
import yaml

from k8s.pools import Pool
from service.launching.cluster import ClusterLauncher
from service.launching.port import JobState
from service.settings import Settings
from tests.cluster.conftest import kubectl, soon
from tests.cluster.test_extras import Attempt
from tests.cluster.test_scheduler import SMALL, WORK

QUEUE = {"kind": "kueue", "name": "research", "priority_class": "normal", "extra_priority_class": "spare"}
POOLS = {"cpu": Pool(**SMALL, queue=QUEUE)}
# A rendezvous pod and one worker.
CORE_CPU, NODE_CPU = 120, 100


@pytest.fixture(scope="module")
def kueue(namespace: str) -> Iterator[str]:
    """Name of a ClusterQueue, to which the queue `research` of the namespace belongs."""
    if not kubectl("get", "crd", "workloads.kueue.x-k8s.io", "--ignore-not-found"):
        pytest.skip("needs a cluster with Kueue: run scripts/test-cluster, or `cluster kueue` of ../shared/cluster")
    apply(
        {"apiVersion": "kueue.x-k8s.io/v1beta2", "kind": "ResourceFlavor", "metadata": {"name": namespace}},
        *(
            {
                "apiVersion": "kueue.x-k8s.io/v1beta2", "kind": "WorkloadPriorityClass",
                "metadata": {"name": name}, "value": value,
            }
            for name, value in {"normal": 100, "spare": 10}.items()
        ),
        {
            "apiVersion": "kueue.x-k8s.io/v1beta2", "kind": "LocalQueue",
            "metadata": {"name": "research", "namespace": namespace}, "spec": {"clusterQueue": namespace},
        },
    )  # fmt: skip
    yield namespace
    kubectl("delete", "clusterqueue.kueue.x-k8s.io", namespace, "--wait=false")
    kubectl("delete", "resourceflavor.kueue.x-k8s.io", namespace, "--wait=false")


@pytest.fixture(scope="module")
def launcher(namespace: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ClusterLauncher]:
    work = tmp_path_factory.mktemp("service")
    settings = Settings(
        scheduler="jobset", pools=work / "pools.yaml", store="s3://mcf", namespace=namespace, work_dir=work
    )
    found = ClusterLauncher(settings, POOLS, ("python", "-c", WORK))
    found.start(lambda name: None)
    yield found
    found.close()


def apply(*objects: dict[str, Any]) -> None:
    kubectl("apply", "--filename=-", text=yaml.safe_dump_all(objects))


def allow(name: str, millicores: int) -> None:
    """So much CPU in the quota."""
    resources = [{"name": "cpu", "nominalQuota": f"{millicores}m"}, {"name": "memory", "nominalQuota": "64Gi"}]
    spec = {
        "namespaceSelector": {}, "preemption": {"withinClusterQueue": "LowerPriority"},
        "resourceGroups": [
            {"coveredResources": ["cpu", "memory"], "flavors": [{"name": name, "resources": resources}]}
        ],
    }  # fmt: skip
    apply({"apiVersion": "kueue.x-k8s.io/v1beta2", "kind": "ClusterQueue", "metadata": {"name": name}, "spec": spec})


def test_a_quota_for_the_core_starts_it_more_adds_nodes_and_another_run_takes_them_one_by_one(
    kueue: str, namespace: str, launcher: ClusterLauncher
) -> None:
    allow(kueue, CORE_CPU + 50)
    first = Attempt(launcher, namespace, "first", pool="cpu", min_nodes=1, max_nodes=4)
    soon(lambda: first.look().state is JobState.RUNNING, 60, first.look)
    soon(lambda: "-x3" in first.jobs(), 20, first.jobs)
    time.sleep(3)
    assert first.pods() == {}
    waits = first.look().nodes_wait
    assert waits.startswith("3 more nodes wait: in the queue: ")
    assert "insufficient unused quota" in waits
    allow(kueue, CORE_CPU + 3 * NODE_CPU)
    soon(lambda: len(first.pods()) == 3, 60, first.pods)
    assert first.look().nodes_wait == ""
    # A core of the same priority takes the place of two extra nodes, and of no more.
    second = Attempt(launcher, namespace, "second", pool="cpu", min_nodes=1, max_nodes=2)
    soon(lambda: second.look().state is JobState.RUNNING, 60, second.look)
    soon(lambda: len(first.pods()) == 1, 30, first.pods)
    assert first.look().state is JobState.RUNNING
    second.stop()
    soon(lambda: len(first.pods()) == 3, 60, first.pods)
    first.stop()
    assert first.jobs() == ""


def test_an_evicted_attempt_waits_with_kueue_s_words_without_extra_nodes_and_comes_back(
    kueue: str, namespace: str, launcher: ClusterLauncher
) -> None:
    allow(kueue, CORE_CPU + NODE_CPU)
    attempt = Attempt(launcher, namespace, "evicted", pool="cpu", min_nodes=1, max_nodes=2)
    soon(lambda: len(attempt.pods()) == 1, 60, attempt.look)
    stop_queue(kueue, "HoldAndDrain")
    soon(lambda: attempt.look().state is JobState.PENDING, 60, attempt.look)
    soon(lambda: attempt.look().message.startswith("waits in its queue: "), 10, attempt.look)
    soon(lambda: attempt.pods() == {} and "-x1" not in attempt.jobs(), 30, attempt.jobs)
    stop_queue(kueue, "None")
    soon(lambda: attempt.look().state is JobState.RUNNING and len(attempt.pods()) == 1, 60, attempt.look)
    attempt.stop()


def stop_queue(name: str, how: str) -> None:
    patch = f'{{"spec": {{"stopPolicy": "{how}"}}}}'
    kubectl("patch", "clusterqueue.kueue.x-k8s.io", name, "--type=merge", "--patch", patch)
