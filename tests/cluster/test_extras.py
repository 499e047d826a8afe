"""Extra nodes of an attempt on a real cluster: they come, go and move, and nothing of them outlives the attempt."""

import json
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from k8s.extras import Plan
from k8s.pods import NODE
from k8s.pools import Pool
from service.launching.cluster import ClusterLauncher
from service.launching.port import Job, JobState, Launch
from service.settings import Settings
from tests.cluster.conftest import kubectl, soon
from tests.cluster.test_scheduler import SMALL, WORK
from trainer.contract import Placement

POOLS = {
    "stays": Pool(**SMALL, node_selector={"mcf.dev/pool": "on-demand"}),
    "spot": Pool(**SMALL, node_selector={"mcf.dev/pool": "spot"}),
    "nowhere": Pool(**SMALL, node_selector={"mcf.dev/pool": "none"}),
}


class Attempt:
    """One attempt of a run, with whoever looks after it."""

    def __init__(self, launcher: ClusterLauncher, namespace: str, run_id: str, **placement: Any) -> None:
        self.launcher, self.namespace = launcher, namespace
        self.launch = Launch(run_id, 1, Placement(**placement))
        launcher.submit(self.launch)

    def look(self) -> Job:
        return self.launcher.look(self.launch)

    def pods(self) -> dict[int, tuple[str, str]]:
        """Of the extra nodes that run: their number -> pod and the machine it is on."""
        self.look()
        found = kubectl(
            "--namespace", self.namespace, "get", "pods", f"--selector=mcf.dev/attempt={self.launch.name},{NODE}",
            "--field-selector=status.phase=Running", "--output=json",
        )  # fmt: skip
        pods = [pod for pod in json.loads(found)["items"] if "deletionTimestamp" not in pod["metadata"]]
        return {
            int(pod["metadata"]["labels"][NODE]): (pod["metadata"]["name"], pod["spec"]["nodeName"]) for pod in pods
        }

    def jobs(self) -> str:
        """Of the attempt, its extra nodes' and the others."""
        return kubectl("--namespace", self.namespace, "get", "jobs", f"--selector=mcf.dev/attempt={self.launch.name}",
                       "--output=name")  # fmt: skip

    def stop(self) -> None:
        self.launcher.cancel(self.launch.name)
        soon(lambda: self.look() == Job(), 60, self.look)


@pytest.fixture(scope="module")
def launchers(namespace: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    made = []

    def launcher(code: str = WORK) -> ClusterLauncher:
        work: Path = tmp_path_factory.mktemp("service")
        settings = Settings(
            scheduler="jobset", pools=work / "pools.yaml", store="s3://mcf", namespace=namespace, work_dir=work
        )
        made.append(ClusterLauncher(settings, POOLS, ("python", "-c", code)))
        made[-1].start(lambda name: None)
        return made[-1]

    yield launcher
    for each in made:
        each.close()


def test_extra_nodes_join_elsewhere_are_made_anew_when_lost_and_go_with_the_attempt(
    launchers: Any, namespace: str
) -> None:
    attempt = Attempt(launchers(), namespace, "extra", pool="stays", extra={"nodes": 2, "pool": "spot"})
    there = soon(lambda: len(found := attempt.pods()) == 2 and found, 60, attempt.look)
    assert there.keys() == {1, 2}
    assert {machine for _, machine in there.values()} == {"node1"}  # the core is on node0
    lost, _ = there[1]
    kubectl("--namespace", namespace, "delete", "pod", lost, "--grace-period=0", "--force")
    again = soon(lambda: len(found := attempt.pods()) == 2 and found[1][0] != lost and found, 20, attempt.look)
    assert again[2] == there[2]
    # Nothing of that is the attempt's.
    assert attempt.look() == Job(JobState.RUNNING)
    lines = list(attempt.launcher.lines(attempt.launch.name, 3))
    assert {f"[node {node}] working\n" for node in range(3)} <= set(lines)
    attempt.stop()
    assert attempt.jobs() == ""


def test_no_extra_node_outlives_an_attempt_that_ends_or_that_somebody_deletes(launchers: Any, namespace: str) -> None:
    # The core's node ends well, which is the end of the attempt; the extra one would go on.
    code = "import os, time; time.sleep(600 if 'spot' in os.environ['MCF_POOL'] else 15)"
    ends = Attempt(launchers(code), namespace, "ends", pool="stays", extra={"nodes": 1, "pool": "spot"})
    soon(ends.pods, 60, ends.look)
    soon(lambda: ends.look().state is JobState.SUCCEEDED, 60, ends.look)
    soon(lambda: "-x1" not in ends.jobs(), 10, ends.jobs)
    ends.stop()

    deleted = Attempt(launchers(), namespace, "deleted", pool="stays", extra={"nodes": 1, "pool": "spot"})
    soon(deleted.pods, 60, deleted.look)
    kubectl("--namespace", namespace, "delete", "jobset", "mcf-deleted-1", "--wait=false")
    # Nobody of ours looks: Kubernetes does it.
    soon(lambda: deleted.jobs() == "", 60, deleted.jobs)
    soon(lambda: deleted.look() == Job(), 60, deleted.look)


def test_an_extra_node_that_waits_in_vain_moves_to_another_of_its_pools(
    launchers: Any, namespace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    launcher = launchers()
    monkeypatch.setattr("k8s.scheduler.plan", sent_to("nowhere"))
    attempt = Attempt(launcher, namespace, "moves", pool="stays", extra={"nodes": 1, "pool": ["nowhere", "spot"]})
    soon(lambda: attempt.look().state is JobState.RUNNING, 60, attempt.look)
    soon(lambda: attempt.look() and "-x1" in attempt.jobs(), 10, attempt.look)
    soon(lambda: attempt.look().nodes_wait == "1 more node waits: the pool nowhere has no node", 10, attempt.look)
    monkeypatch.undo()
    monkeypatch.setattr("k8s.extras.MOVE_AFTER", timedelta(seconds=3))
    there = soon(attempt.pods, 30, attempt.look)
    assert there[1][1] == "node1"
    attempt.stop()


def sent_to(pool: str) -> Any:
    """As if that pool had had room at that moment."""
    return lambda wanted, pools, room, jobs, pods, now: Plan((), () if jobs else ((1, pool),))
