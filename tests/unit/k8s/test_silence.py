"""When a machine counts as dead because the rendezvous pod on it does not answer."""

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
from k8s.pods import ATTEMPT, RENDEZVOUS, ROLE, WORKER
from k8s.silence import Silence, answering, is_alone_on
from k8s.volcano_scheduler import VolcanoScheduler
from tests.conftest import free_port


class Network:
    """Rendezvous pods, which of them answer, and a clock of our own."""

    def __init__(self) -> None:
        self.now, self.dead = 100.0, set[str]()
        self.pods: list[dict[str, Any]] = []
        self.silence = Silence(lambda: self.pods, lambda asked: set(asked) - self.dead, lambda: self.now)

    def hear(self, seconds: float) -> list[str]:
        """Ask every two seconds for so long; the attempts that have fallen silent."""
        found = []
        for _ in range(int(seconds / 2)):
            self.now += 2
            found += self.silence.listen()
        return found


def store(
    attempt: str = "a-1", *, uid: str = "u1", node: str = "n1", role: str = RENDEZVOUS, **metadata: str
) -> dict[str, Any]:
    return {
        "metadata": {"uid": uid, "name": uid, "labels": {ROLE: role, ATTEMPT: attempt}, **metadata},
        "spec": {"nodeName": node}, "status": {"phase": "Running", "podIP": f"10.0.0.{uid[1:]}"},
    }  # fmt: skip


@pytest.fixture
def network() -> Network:
    network = Network()
    network.pods = [store()]
    assert network.hear(10) == []
    return network


def test_a_machine_is_silent_when_its_rendezvous_has_not_answered_for_some_seconds(network: Network) -> None:
    assert network.silence.node("a-1", network.pods) == ""
    network.dead.add("10.0.0.1")
    assert network.hear(6) == []
    assert network.hear(60) == ["a-1"]
    assert network.silence.node("b-1", network.pods) == ""
    assert network.silence.node("a-1", network.pods) == "n1"
    assert network.silence.node("a-1", network.pods) == "", "it is said once"
    assert network.hear(60) == []


def test_one_answer_is_enough_to_begin_anew(network: Network) -> None:
    for _ in range(5):
        network.dead.add("10.0.0.1")
        assert network.hear(6) == []
        network.dead.clear()
        assert network.hear(2) == []
    network.dead.add("10.0.0.1")
    assert network.hear(8) == ["a-1"]
    network.dead.clear()
    network.hear(2)
    assert network.silence.node("a-1", network.pods) == "", "it is back before anything was done"


def test_who_was_never_reached_or_is_leaving_or_has_a_successor_is_not_silent(network: Network) -> None:
    network.dead |= {"10.0.0.1", "10.0.0.2"}
    network.pods = [store(uid="u2")]
    assert network.hear(60) == [], "there may be a policy between us"
    network.dead.clear()
    network.hear(2)
    network.dead.add("10.0.0.2")
    network.pods = [store(uid="u2", deletionTimestamp="2026-12-01T12:00:00Z")]
    assert network.hear(60) == []
    network.pods = [store(uid="u3")]
    network.hear(2)
    network.dead.add("10.0.0.3")
    assert network.hear(8) == ["a-1"]
    assert network.silence.node("a-1", [store(uid="u4")]) == ""


def test_when_several_machines_are_silent_it_is_the_service_that_is_cut_off(network: Network) -> None:
    network.pods = [store(), store("b-1", uid="u2", node="n2"), store("c-1", uid="u3", node="n1")]
    network.hear(2)
    network.dead |= {"10.0.0.1", "10.0.0.2"}
    assert network.hear(60) == []
    # One machine with two of them is one machine.
    network.dead = {"10.0.0.1", "10.0.0.3"}
    assert network.hear(2) == ["a-1"]
    assert network.hear(8) == ["c-1"]


def test_only_a_job_with_nothing_elsewhere_is_made_anew() -> None:
    here, there, leaving = store(), store(node="n2"), store(node="n2", deletionTimestamp="x")
    assert is_alone_on("n1", [here])
    assert is_alone_on("n1", [here, leaving])
    assert not is_alone_on("n1", [here, there])
    assert not is_alone_on("n1", [])
    assert not is_alone_on("", [here])


class Attempt:
    """What the API server would have of one attempt, and what is done to it."""

    def __init__(self, node_of_worker: str) -> None:
        self.renewed: list[str] = []
        self.forgotten: list[str] = []
        self.found = [store(), store(uid="u2", node=node_of_worker, role=WORKER)]

    def children(self, attempt: str) -> list[Any]:
        return [{"metadata": {"labels": {ROLE: role}}, "spec": {}} for role in (RENDEZVOUS, WORKER)]

    def job(self, name: str) -> Any:
        return {"metadata": {"labels": {}}, "spec": {}}

    def pods(self, attempt: str) -> list[Any]:
        return self.found

    def nodes(self) -> list[Any]:
        return []

    def renew(self, child: Any) -> None:
        self.renewed.append(child["metadata"]["labels"][ROLE])

    def forget(self, pod: Any) -> None:
        self.forgotten.append(pod["metadata"]["labels"][ROLE])


@pytest.mark.parametrize(
    ("kind", "node_of_worker", "renewed", "forgotten"),
    [
        (JobSetScheduler, "n1", [RENDEZVOUS, WORKER], []),
        (JobSetScheduler, "n2", [RENDEZVOUS], []),
        # Its pods have fixed names: one that lives behind a line that is cut must not get a double.
        (VolcanoScheduler, "n1", [], [RENDEZVOUS]),
    ],
)
def test_what_an_attempt_has_on_a_silent_machine_is_made_anew(
    network: Network, kind: Any, node_of_worker: str, renewed: list[str], forgotten: list[str]
) -> None:
    scheduler = kind("mcf", {}, "runs", client.ApiClient())
    scheduler.cluster, scheduler._silence = attempt, _ = Attempt(node_of_worker), network.silence

    def look() -> None:
        scheduler.tend("a-1", Seen(AppState.RUNNING), lambda pool: None)

    look()
    assert attempt.renewed == attempt.forgotten == []
    network.dead.add("10.0.0.1")
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
