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
from k8s.pods import RENDEZVOUS, ROLE, WORKER
from k8s.silence import Silence, is_alone_on
from k8s.volcano_scheduler import VolcanoScheduler
from tests.conftest import free_port


class Network:
    """Addresses that answer; everything takes its time by a clock of our own."""

    def __init__(self) -> None:
        self.now, self.dead = 100.0, set[str]()
        self.asked: list[str] = []
        self.silence = Silence(self._answers, lambda: self.now)

    def _answers(self, address: str) -> bool:
        self.asked.append(address)
        return address not in self.dead

    def looks(self, seconds: float, *pods: dict[str, Any], attempt: str = "a-1") -> str:
        """Once a second for so long; what is said in the end."""
        for _ in range(int(seconds)):
            self.now += 1
            said = self.silence.node(attempt, pods)
        return said


def store(uid: str = "u1", node: str = "n1", role: str = RENDEZVOUS, **metadata: str) -> dict[str, Any]:
    return {
        "metadata": {"uid": uid, "name": uid, "labels": {ROLE: role}, **metadata}, "spec": {"nodeName": node},
        "status": {"phase": "Running", "podIP": f"10.0.0.{uid[1:]}"},
    }  # fmt: skip


@pytest.fixture
def network() -> Network:
    return Network()


def test_a_machine_is_silent_when_its_rendezvous_has_not_answered_for_some_seconds(network: Network) -> None:
    assert network.looks(20, store()) == ""
    assert len(network.asked) == 10
    network.dead.add("10.0.0.1")
    said = [network.looks(1, store()) for _ in range(30)]
    assert said.count("n1") == 1
    assert 6 <= said.index("n1") <= 9
    # The next one has its own time.
    network.dead.add("10.0.0.2")
    assert network.looks(20, store(), store("u2", "n2")) == "", "it has not been there yet"


def test_one_answer_is_enough_to_begin_anew(network: Network) -> None:
    network.looks(3, store())
    for _ in range(5):
        network.dead.add("10.0.0.1")
        assert network.looks(6, store()) == ""
        network.dead.clear()
        assert network.looks(2, store()) == ""


def test_who_was_never_reached_or_is_leaving_or_is_looked_after_by_others_is_not_silent(network: Network) -> None:
    network.dead.add("10.0.0.1")
    assert network.looks(60, store()) == "", "there may be a policy between us"
    network.dead.clear()
    network.looks(3, store())
    network.dead.add("10.0.0.1")
    network.looks(4, store())
    network.now += 60
    assert network.looks(2, store()) == "", "another service may have looked meanwhile"
    assert network.looks(30, store(deletionTimestamp="2026-12-01T12:00:00Z")) == ""


def test_when_several_machines_are_silent_it_is_the_service_that_is_cut_off(network: Network) -> None:
    network.looks(3, store())
    network.looks(3, store("u2", "n2"), attempt="b-1")
    network.dead |= {"10.0.0.1", "10.0.0.2"}
    for _ in range(20):
        assert network.looks(1, store()) == ""
        assert network.looks(1, store("u2", "n2"), attempt="b-1") == ""
    # One machine with two of them is one machine.
    network.dead.remove("10.0.0.2")
    network.looks(2, store("u2", "n2"), attempt="b-1")
    assert "n1" in [network.looks(1, store()) for _ in range(9)]


def test_only_a_job_with_nothing_elsewhere_is_made_anew() -> None:
    here, there, leaving = store(role=WORKER), store(node="n2"), store(node="n2", deletionTimestamp="x")
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
        self.found = [store(), store("u2", node_of_worker, WORKER)]

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

    def looks(seconds: int) -> None:
        for _ in range(seconds):
            network.now += 1
            scheduler.tend("a-1", Seen(AppState.RUNNING), lambda pool: None)

    looks(10)
    assert attempt.renewed == attempt.forgotten == []
    network.dead.add("10.0.0.1")
    looks(9)
    assert (attempt.renewed, attempt.forgotten) == (renewed, forgotten)


def test_a_store_does_not_mind_being_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    port = free_port()
    monkeypatch.setattr(silence, "PORT", port)
    assert silence.answers("127.0.0.1"), "a machine that refuses is alive"
    command = [sys.executable, "-m", "trainer.elastic.rendezvous", str(port)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stderr
        assert "agents can meet" in process.stderr.readline()
        for _ in range(20):
            assert silence.answers("127.0.0.1")
    finally:
        process.terminate()
        _, said = process.communicate(timeout=30)
    assert said == ""
    monkeypatch.setattr(silence, "ANSWER_SECONDS", 0.2)
    with socket.socket() as full:
        full.bind(("127.0.0.1", port))
        full.listen(0)
        # Nobody takes what is asked, and there is no room for more who ask: as of a machine that is cut off.
        waiting = [socket.socket() for _ in range(4)]
        for each in waiting:
            each.setblocking(False)
            each.connect_ex(("127.0.0.1", port))
        assert not silence.answers("127.0.0.1")
        for each in waiting:
            each.close()
