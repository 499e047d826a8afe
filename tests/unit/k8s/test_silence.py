"""When a machine counts as dead because no pod on it answers."""

import socket
import subprocess
import sys
from typing import Any

import pytest
from kubernetes import client
from torchx.specs import AppState

from k8s import silence
from k8s.jobset_scheduler import JobSetScheduler
from k8s.observed import Seen
from k8s.pods import ATTEMPT, NODE, RENDEZVOUS, ROLE, WORKER
from k8s.silence import Silence, answering, is_alone_on
from k8s.volcano_scheduler import VolcanoScheduler
from tests.conftest import free_port


class Network:
    """Pods of attempts, which of them answer, and a clock of our own."""

    def __init__(self) -> None:
        self.now, self.dead = 100.0, set[str]()
        self.pods: list[dict[str, Any]] = []
        self.silence = Silence(lambda: self.pods, lambda asked: set(asked) - self.dead, lambda: self.now)

    def hear(self, seconds: float) -> str:
        """Ask every two seconds for so long; the machine that is silent in the end."""
        for _ in range(int(seconds / 2)):
            self.now += 2
            node = self.silence.listen()
        return node


def pod(
    attempt: str = "a-1", *, uid: str = "u1", node: str = "n1", role: str = RENDEZVOUS, **metadata: str
) -> dict[str, Any]:
    return {
        "metadata": {"uid": uid, "name": uid, "labels": {ROLE: role, ATTEMPT: attempt}, **metadata},
        "spec": {"nodeName": node}, "status": {"phase": "Running", "podIP": f"10.0.0.{uid[1:]}"},
    }  # fmt: skip


@pytest.fixture
def network() -> Network:
    network = Network()
    network.pods = [pod()]
    assert network.hear(10) == ""
    return network


def test_a_machine_is_silent_when_no_pod_on_it_has_answered_for_some_seconds(network: Network) -> None:
    network.pods = [pod(), pod("b-1", uid="u2")]
    network.hear(2)
    network.dead.add("10.0.0.1")
    assert network.hear(60) == "", "the other one on it answers"
    network.dead.add("10.0.0.2")
    assert network.hear(6) == ""
    assert network.hear(2) == "n1"
    assert network.silence.node("a-1") == "n1"
    assert network.silence.node("a-1") == "", "it is said once"
    assert network.silence.node("b-1") == "n1"
    assert network.hear(60) == "n1"
    assert network.silence.node("a-1") == ""
    # It is back, and goes again.
    network.dead.clear()
    assert network.hear(2) == ""
    network.dead |= {"10.0.0.1", "10.0.0.2"}
    assert network.hear(8) == "n1"
    assert network.silence.node("a-1") == "n1"


def test_one_answer_is_enough_to_begin_anew(network: Network) -> None:
    for _ in range(5):
        network.dead.add("10.0.0.1")
        assert network.hear(6) == ""
        network.dead.clear()
        assert network.hear(2) == ""
    network.dead.add("10.0.0.1")
    assert network.hear(8) == "n1"
    network.dead.clear()
    network.hear(2)
    assert network.silence.node("a-1") == "", "it is back before anything was done"


def test_who_was_never_reached_or_is_leaving_does_not_count(network: Network) -> None:
    network.dead |= {"10.0.0.1", "10.0.0.2"}
    network.pods = [pod(uid="u2")]
    assert network.hear(60) == "", "there may be a policy between us"
    # Nor does it speak for a machine that others have been reached on.
    network.pods = [pod(uid="u2"), pod(uid="u3")]
    network.hear(2)
    network.dead.add("10.0.0.3")
    assert network.hear(8) == "n1"
    network.pods = [pod(uid="u3", deletionTimestamp="2026-12-01T12:00:00Z")]
    assert network.hear(2) == ""


def test_when_several_machines_are_silent_it_is_the_service_that_is_cut_off(network: Network) -> None:
    network.pods = [pod(), pod("b-1", uid="u2", node="n2")]
    network.hear(2)
    network.dead |= {"10.0.0.1", "10.0.0.2"}
    assert network.hear(60) == ""
    network.dead.remove("10.0.0.2")
    assert network.hear(2) == "n1"


def test_only_a_job_with_nothing_elsewhere_is_made_anew() -> None:
    here, there, leaving = pod(), pod(node="n2"), pod(node="n2", deletionTimestamp="x")
    assert is_alone_on("n1", [here])
    assert is_alone_on("n1", [here, leaving])
    assert not is_alone_on("n1", [here, there])
    assert not is_alone_on("n1", [])
    assert not is_alone_on("", [here])


class Attempt:
    """What the API server would have of one attempt with an extra node, and what is done to it."""

    def __init__(self, node_of_worker: str) -> None:
        self.renewed: list[str] = []
        self.forgotten: list[str] = []
        extra = pod(uid="u3", node="n1", role=WORKER)
        extra["metadata"]["labels"][NODE] = "1"
        self.found = [pod(), pod(uid="u2", node=node_of_worker, role=WORKER), extra]

    def children(self, attempt: str) -> list[Any]:
        labels = [{ROLE: RENDEZVOUS}, {ROLE: WORKER}, {ROLE: WORKER, NODE: "1"}]
        return [{"metadata": {"name": "", "labels": each}, "spec": {}} for each in labels]

    def job(self, name: str) -> Any:
        return {"metadata": {"labels": {}}, "spec": {}}

    def pods(self, attempt: str) -> list[Any]:
        return self.found

    def nodes(self) -> list[Any]:
        return []

    def renew(self, child: Any) -> None:
        self.renewed.append(child["metadata"]["labels"][ROLE])

    def remove(self, child: Any) -> None:
        self.renewed.append(child["metadata"]["labels"][NODE])

    def forget(self, pod: Any) -> None:
        self.forgotten.append(pod["metadata"]["labels"][ROLE])


@pytest.mark.parametrize(
    ("kind", "node_of_worker", "renewed", "forgotten"),
    [
        (JobSetScheduler, "n1", [RENDEZVOUS, WORKER, "1"], []),
        (JobSetScheduler, "n2", [RENDEZVOUS, "1"], []),
        # Its pods have fixed names: one that lives behind a line that is cut must not get a double.
        (VolcanoScheduler, "n1", [], [RENDEZVOUS]),
    ],
)
def test_what_an_attempt_has_on_a_silent_machine_is_made_anew(
    network: Network, kind: Any, node_of_worker: str, renewed: list[str], forgotten: list[str]
) -> None:
    scheduler = kind("mcf", {}, "runs", client.ApiClient())
    scheduler.cluster, scheduler._silence = attempt, _ = Attempt(node_of_worker), network.silence
    network.pods = attempt.found

    def look() -> None:
        scheduler.tend("a-1", Seen(AppState.RUNNING), lambda pool: None)

    network.hear(4)
    look()
    assert attempt.renewed == attempt.forgotten == []
    network.dead |= {each["status"]["podIP"] for each in attempt.found if each["spec"]["nodeName"] == "n1"}
    network.hear(10)
    for _ in range(3):
        look()
    assert (attempt.renewed, attempt.forgotten) == (renewed, forgotten)


def test_a_store_does_not_mind_being_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    port = free_port()
    monkeypatch.setattr(silence, "PORT", port)
    assert answering(["127.0.0.1"]) == {"127.0.0.1"}, "a machine that refuses is alive"
    command = [sys.executable, "-m", "trainer.elastic.rendezvous", str(port)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stderr
        assert "agents can meet" in process.stderr.readline()
        for _ in range(20):
            assert answering(["127.0.0.1", "127.0.0.2"]) == {"127.0.0.1", "127.0.0.2"}
    finally:
        process.terminate()
        _, said = process.communicate(timeout=30)
    assert said == ""


def test_a_machine_that_is_cut_off_does_not_answer_and_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(silence, "ANSWER_SECONDS", 0.2)
    with socket.socket() as full:
        full.bind(("127.0.0.1", 0))
        monkeypatch.setattr(silence, "PORT", full.getsockname()[1])
        full.listen(0)
        # Nobody takes what is asked, and there is no room for more who ask.
        waiting = [socket.socket() for _ in range(4)]
        for each in waiting:
            each.setblocking(False)
            each.connect_ex(full.getsockname())
        assert answering(["127.0.0.1", "127.0.0.2"] * 200) == {"127.0.0.2"}
        for each in waiting:
            each.close()
