"""An attempt on a real cluster, as its scheduler sees it: pods that do what a line of Python says."""

import contextlib
import os
import signal
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml
from kubernetes import client, config
from torchx.runner import Runner
from torchx.specs import AppState

from k8s.appdef import LaunchRequest, app_for
from k8s.cluster import Cluster
from k8s.jobset_scheduler import JobSetScheduler
from k8s.observed import Seen
from k8s.pools import Pool
from service.launching.cluster import ClusterLauncher
from service.launching.port import Job, JobState, Launch
from service.settings import Settings
from tests.cluster.conftest import TRAINER, kubectl, soon
from trainer.contract import Placement

SMALL: dict[str, Any] = {
    "image": TRAINER, "cpu": "100m", "memory": "128Mi", "shm": "64Mi", "grace_seconds": 3,
    "rendezvous": {"cpu": "20m", "memory": "512Mi"},
}  # fmt: skip
POOLS = {
    "cpu": Pool(**SMALL),
    "gpu": Pool(**SMALL, gpus=8, node_selector={"mcf.dev/pool": "spot"}),
    "nowhere": Pool(**SMALL, node_selector={"mcf.dev/pool": "none"}),
    "no-image": Pool(**{**SMALL, "image": "localhost/none:1", "image_pull_policy": "Never"}),
    "no-secret": Pool(**SMALL, env_from_secrets=("none",)),
    "no-class": Pool(**SMALL, priority_class="none"),
    "huge": Pool(**{**SMALL, "memory": "4Ti"}),
}
WORK = "import time; print('working', flush=True); time.sleep(600)"


class Attempts:
    """Attempts of one namespace, by name."""

    def __init__(self, scheduler: JobSetScheduler) -> None:
        self.scheduler = scheduler
        self.news: list[str] = []
        self._runner = Runner("mcf", {"mcf": lambda session_name, **_: scheduler})

    def submit(self, name: str, code: str = WORK, **placement: Any) -> None:
        request = LaunchRequest(
            name=name, attempt=1, spec_uri="spec", run_uri="run", placement=Placement(**{"pool": "cpu", **placement}),
            entrypoint=("python", "-c", code),
        )  # fmt: skip
        self._runner.run(app_for(request), "mcf", {})

    def seen(self, name: str) -> Seen | None:
        return self.scheduler.observe(name)

    def state(self, name: str) -> AppState | None:
        found = self.seen(name)
        return found and found.state

    def said(self, name: str) -> str:
        found = self.seen(name)
        return found.message if found else "nothing of it is left"

    def pods(self, name: str) -> list[str]:
        return [
            pod["metadata"]["name"] for pod in self.scheduler.cluster.pods(name) if "worker" in pod["metadata"]["name"]
        ]

    def stop(self, name: str) -> None:
        self.scheduler.cancel(name)
        soon(lambda: self.seen(name) is None, 60, lambda: self.seen(name))


@pytest.fixture(scope="module")
def attempts(namespace: str) -> Iterator[Attempts]:
    scheduler = JobSetScheduler("mcf", POOLS, namespace)
    found = Attempts(scheduler)
    scheduler.start(found.news.append)
    yield found
    scheduler.close()


@pytest.mark.parametrize(
    ("pool", "words"),
    [
        ("nowhere", "the pool nowhere has no node"),
        ("gpu", "no node of the pool gpu has 8 free GPUs: 5 of 8 busy"),
        ("huge", "no node of the pool huge has 100m CPUs and 4Ti of memory free"),
        ("no-image", "the image localhost/none:1 cannot be pulled"),
        ("no-secret", 'the container cannot start: secret "none" not found'),
        ("no-class", "no PriorityClass with name none was found"),
    ],
)
def test_an_attempt_that_waits_says_why_within_ten_seconds(
    attempts: Attempts, namespace: str, pool: str, words: str
) -> None:
    with held_gpus(namespace, 5) if pool == "gpu" else contextlib.nullcontext():
        attempts.submit(f"w-{pool}-1", pool=pool, processes_per_node=8 if pool == "gpu" else 1)
        soon(lambda: words in attempts.said(f"w-{pool}-1"), 10, lambda: attempts.said(f"w-{pool}-1"))
        assert attempts.state(f"w-{pool}-1") is AppState.PENDING
        attempts.stop(f"w-{pool}-1")


@contextlib.contextmanager
def held_gpus(namespace: str, count: int) -> Iterator[None]:
    """Somebody else's pod has so many GPUs of the spot node."""
    container = {
        "name": "main", "image": TRAINER, "command": ["sleep", "600"],
        "resources": {"limits": {"nvidia.com/gpu": str(count)}},
        "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
    }  # fmt: skip
    safe = {"runAsNonRoot": True, "runAsUser": 10001, "seccompProfile": {"type": "RuntimeDefault"}}
    spec = {
        "nodeSelector": {"mcf.dev/pool": "spot"}, "containers": [container], "securityContext": safe,
        "terminationGracePeriodSeconds": 0,
    }  # fmt: skip
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "somebody"}, "spec": spec}
    kubectl("--namespace", namespace, "apply", "--filename=-", text=yaml.safe_dump(pod))
    kubectl("--namespace", namespace, "wait", "--for=condition=Ready", "--timeout=60s", "pod/somebody")
    yield
    kubectl("--namespace", namespace, "delete", "pod", "somebody")


def test_who_has_used_up_the_quota_is_told_so(attempts: Attempts, namespace: str) -> None:
    quota = {"apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "team"}, "spec": {"hard": {"pods": "0"}}}
    kubectl("--namespace", namespace, "apply", "--filename=-", text=yaml.safe_dump(quota))
    attempts.submit("quota-1")
    soon(
        lambda: "the quota of the namespace is used up" in attempts.said("quota-1"),
        10,
        lambda: attempts.said("quota-1"),
    )
    kubectl("--namespace", namespace, "delete", "resourcequota", "team")
    attempts.stop("quota-1")


def test_an_attempt_is_sent_once_seen_at_once_and_gone_when_its_pods_are(attempts: Attempts) -> None:
    attempts.submit("once-1")
    attempts.submit("once-1")
    assert attempts.state("once-1") is AppState.PENDING
    soon(lambda: attempts.state("once-1") is AppState.RUNNING, 60, lambda: attempts.said("once-1"))
    assert len(attempts.pods("once-1")) == 1
    assert "once-1" in attempts.news
    assert [app.app_id for app in attempts.scheduler.list()] == ["once-1"]
    attempts.scheduler.cancel("once-1")
    assert attempts.state("once-1") is AppState.RUNNING  # it has its grace period
    soon(lambda: attempts.seen("once-1") is None, 60)
    assert attempts.pods("once-1") == []


def test_an_attempt_that_was_deleted_by_somebody_lives_until_its_pods_have_ended(
    attempts: Attempts, namespace: str
) -> None:
    stubborn = "import signal, time; signal.signal(signal.SIGTERM, lambda *_: None)\nwhile 1: time.sleep(1)"
    attempts.submit("deleted-1", stubborn)
    soon(lambda: attempts.state("deleted-1") is AppState.RUNNING, 60, lambda: attempts.said("deleted-1"))
    kubectl("--namespace", namespace, "delete", "jobset", "mcf-deleted-1", "--wait=false")
    soon(lambda: attempts.said("deleted-1") == "stopping", 10, lambda: attempts.seen("deleted-1"))
    soon(lambda: attempts.seen("deleted-1") is None, 60, lambda: attempts.seen("deleted-1"))


def test_ends_are_counted_and_their_last_words_kept(attempts: Attempts) -> None:
    # What comes by the other pipe has to be in the log before the last words are.
    code = "import time; print('first', flush=True); time.sleep(0.5); raise SystemExit('TeacherError: gone.pt')"
    attempts.submit("crash-1", code)
    found = soon(lambda: (seen := attempts.seen("crash-1")) and seen.restarts >= 2 and seen, 60)
    words = "exit code 1 (Error): TeacherError: gone.pt"
    soon(lambda: words in attempts.said("crash-1"), 30, lambda: attempts.said("crash-1"))
    assert found.state is AppState.RUNNING
    lines = list(attempts.scheduler.log_iter("crash-1", "node", 0))
    assert lines.count("TeacherError: gone.pt\n") >= 1
    attempts.stop("crash-1")


def test_memory_that_runs_out_is_counted_as_that(attempts: Attempts) -> None:
    attempts.submit("oom-1", "hoard = [bytearray(1 << 20) for _ in range(4096)]")
    found = soon(lambda: (seen := attempts.seen("oom-1")) and len(seen.out_of_memory) >= 2 and seen, 90)
    assert found.restarts >= 2
    attempts.stop("oom-1")


def test_lines_are_followed_through_restarts_until_the_end(attempts: Attempts) -> None:
    # Its first life leaves a mark in the pod's own folder and ends badly.
    code = (
        "import os, sys, time; again = os.path.exists('/dev/shm/mark'); open('/dev/shm/mark', 'w').close()\n"
        "print('second life' if again else 'first life', flush=True); time.sleep(2); sys.exit(not again)"
    )
    attempts.submit("lines-1", code)
    soon(lambda: attempts.state("lines-1") is AppState.RUNNING, 60)
    lines = [line for line in attempts.scheduler.log_iter("lines-1", "node", 0, should_tail=True) if line]
    assert lines == ["first life\n", "second life\n"]
    assert attempts.state("lines-1") is AppState.SUCCEEDED
    attempts.stop("lines-1")


def test_an_api_server_that_is_away_hides_nothing_for_long(attempts: Attempts) -> None:
    pid = int(server_pid().read_text())
    attempts.submit("away-1", "import time; print('up', flush=True); time.sleep(8)")
    soon(lambda: attempts.state("away-1") is AppState.RUNNING, 60)
    os.kill(pid, signal.SIGSTOP)
    try:
        time.sleep(10)  # it ends meanwhile
        began = time.monotonic()
        assert attempts.state("away-1") is AppState.RUNNING
        assert time.monotonic() - began < 1
    finally:
        os.kill(pid, signal.SIGCONT)
    soon(lambda: attempts.state("away-1") is AppState.SUCCEEDED, 30, lambda: attempts.seen("away-1"))
    attempts.stop("away-1")


def server_pid() -> Path:
    path = Path("/var/lib/mcf-cluster/run/kube-apiserver.pid")
    if not path.exists():
        pytest.skip("stops the API server of ../shared/cluster, and this is another cluster")
    return path


def test_the_first_pool_that_has_room_is_taken_and_who_waits_in_vain_moves(
    namespace: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.launching.cluster.MOVE_AFTER", timedelta(seconds=3))
    settings = Settings(
        scheduler="jobset", pools=tmp_path / "pools.yaml", store="s3://mcf", namespace=namespace, work_dir=tmp_path
    )
    launcher = ClusterLauncher(settings, POOLS, ("python", "-c", WORK))
    launcher.start(lambda name: None)
    wanted = Placement(pool=["nowhere", "cpu"])
    try:
        assert launcher.choose(wanted) == "cpu"
        assert launcher.choose(Placement(pool=["nowhere", "huge"])) == "nowhere"
        rooms = {pool.name: (pool.nodes, pool.gpus, pool.room > 0) for pool in launcher.pools()}
        assert rooms["cpu"] == (2, 0, True)
        assert rooms["gpu"] == (1, 8, True)
        assert rooms["nowhere"] == (0, 0, False)
        launcher.submit(Launch("moves", 1, Placement(pool="nowhere")))
        soon(
            lambda: launcher.look(Launch("moves", 1, wanted)).room_in == "cpu",
            20,
            lambda: launcher.look(Launch("moves", 1, wanted)),
        )
        launcher.cancel("moves-1")
        soon(lambda: launcher.look(Launch("moves", 1, wanted)) == Job(), 60)
    finally:
        launcher.close()


LOST = Launch("lost", 1, Placement(pool="cpu"))


@pytest.mark.parametrize("role", ["rendezvous", "worker"])
def test_a_pod_that_is_lost_again_and_again_is_back_as_soon_as_the_first_time(
    namespace: str, tmp_path: Path, role: str
) -> None:
    settings = Settings(
        scheduler="jobset", pools=tmp_path / "pools.yaml", store="s3://mcf", namespace=namespace, work_dir=tmp_path
    )
    launcher = ClusterLauncher(settings, POOLS, ("python", "-c", WORK))
    launcher.start(lambda name: None)
    gone: set[str] = set()

    def successors() -> set[str]:
        assert launcher.look(LOST).state
        return living(launcher, role) - gone

    launcher.submit(LOST)
    try:
        # After these losses the Job itself would wait for 10, 20 and 40 seconds.
        for seconds in 60, 15, 15, 15:
            pods = soon(successors, seconds, lambda: launcher.look(LOST))
            gone |= pods
            kubectl("--namespace", namespace, "delete", "pod", "--grace-period=0", "--force", *sorted(pods))
    finally:
        launcher.cancel("lost-1")
        soon(lambda: launcher.look(LOST) == Job(), 60)
        launcher.close()


def living(launcher: ClusterLauncher, role: str) -> set[str]:
    return {
        pod["metadata"]["name"]
        for pod in launcher.scheduler.cluster.pods("lost-1")
        if pod["metadata"]["labels"]["mcf.dev/role"] == role
        and "deletionTimestamp" not in pod["metadata"]
        and pod["status"]["phase"] == "Running"
    }


def test_two_hundred_running_attempts_cost_the_api_server_less_than_five_requests_a_second(
    namespace: str, core: Any, tmp_path: Path
) -> None:
    """Two nodes do not have room for 400 pods: nobody's node is there, and their states are written by hand."""
    count = 200
    nowhere = {"node_selector": {"mcf.dev/pool": "none"}}
    pools = {"many": Pool(**{**SMALL, **nowhere, "rendezvous": nowhere})}
    settings = Settings(
        scheduler="jobset", pools=tmp_path / "pools.yaml", store="s3://mcf", namespace=namespace, work_dir=tmp_path
    )
    launcher = ClusterLauncher(settings, pools, ("python", "-c", WORK))
    launcher.scheduler.close()
    launcher.scheduler.cluster = Cluster(namespace, JobSetScheduler.kind, Counting())
    launcher.start(lambda name: None)
    wanted = Placement(pool="many")
    launches = [Launch(f"many{number}", 1, wanted) for number in range(count)]
    try:
        for launch in launches:
            launcher.submit(launch)
        pods = soon(lambda: len(found := made(core, namespace)) == 2 * count and found, 240, lambda: count)
        for pod in pods:
            core.patch_namespaced_pod_status(pod, namespace, RUNS)
        soon(lambda: all(launcher.look(launch).state is JobState.RUNNING for launch in launches), 60)
        before, began = Counting.requests, time.monotonic()
        while time.monotonic() - began < 20:
            for launch in launches:
                assert launcher.look(launch).state is JobState.RUNNING
            assert len(launcher.live()) == count
            # News comes meanwhile, as it does from real ones.
            core.patch_namespaced_pod_status(pods[int(time.monotonic()) % count], namespace, RUNS)
        assert (Counting.requests - before) / (time.monotonic() - began) < 5
    finally:
        kubectl("--namespace", namespace, "delete", "jobset", "--selector=mcf.dev/pool=many", "--wait=false")
        launcher.close()


RUNS = {
    "status": {
        "phase": "Running",
        "containerStatuses": [
            {
                "name": "main", "image": TRAINER, "imageID": "", "ready": True, "restartCount": 0,
                "state": {"running": {}},
            }
        ],
    }
}  # fmt: skip


def made(core: Any, namespace: str) -> list[str]:
    found = core.list_namespaced_pod(namespace, label_selector="mcf.dev/attempt")
    return [pod.metadata.name for pod in found.items if pod.metadata.labels["mcf.dev/attempt"].startswith("many")]


class Counting(client.ApiClient):
    """Of the cluster that KUBECONFIG names, with a count of what it is asked."""

    requests = 0

    def __init__(self) -> None:
        configuration = client.Configuration()
        config.load_kube_config(client_configuration=configuration)
        super().__init__(configuration)

    def call_api(self, *args: Any, **kwargs: Any) -> Any:
        Counting.requests += 1
        return super().call_api(*args, **kwargs)
