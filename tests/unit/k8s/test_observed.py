"""What people are told of an attempt, from what the API server says of it."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from torchx.specs import AppState

from k8s.observed import Seen, jobset_state, nodes_wait, observe
from k8s.pods import NODE, RENDEZVOUS, ROLE, WORKER
from k8s.remembered import of_attempt, of_event, of_pod

NOW = datetime(2026, 11, 24, 12, tzinfo=UTC)
BUSY = "no node of the pool spot has 8 free GPUs: 5 of 8 busy"


def jobset(*conditions: dict[str, str], suspend: bool = False, **metadata: str) -> dict[str, Any]:
    status = {"conditions": [{"status": "True", **each} for each in conditions]}
    return {"metadata": metadata, "spec": {"suspend": suspend}, "status": status}


def pod(
    *, name: str = "w-0", role: str = WORKER, phase: str = "Pending", deleted: datetime | None = None, **container: Any
) -> dict[str, Any]:
    metadata: dict[str, Any] = {"name": name, "labels": {ROLE: role}}
    if deleted:
        metadata["deletionTimestamp"] = deleted.isoformat()
    return {"metadata": metadata, "status": {"phase": phase, "containerStatuses": [{"image": "mcf:1", **container}]}}


def unplaced(name: str = "w-1", role: str = WORKER) -> dict[str, Any]:
    said = {"type": "PodScheduled", "status": "False", "message": "0/2 nodes are available: 2 Insufficient gpu"}
    return {"metadata": {"name": name, "labels": {ROLE: role}}, "status": {"conditions": [said]}}


def event(reason: str, message: str, about: str = "w-0", kind: str = "Pod", minute: int = 0) -> dict[str, Any]:
    return {
        "metadata": {}, "reason": reason, "message": message, "involvedObject": {"kind": kind, "name": about},
        "lastTimestamp": (NOW + timedelta(minutes=minute)).isoformat(),
    }  # fmt: skip


def seen(job: dict[str, Any] | None, *pods: dict[str, Any], events: Any = (), lack: str = BUSY) -> Seen | None:
    # Of what the watches remember.
    state, note = jobset_state(of_attempt(job)) if job else (None, "")
    return observe(state, note, [of_pod(pod) for pod in pods], lambda: [of_event(each) for each in events],
                   lambda: lack, NOW)  # fmt: skip


def told(job: dict[str, Any] | None, *pods: dict[str, Any], **more: Any) -> tuple[AppState, str] | None:
    found = seen(job, *pods, **more)
    return found and (found.state, found.message)


RUNNING = pod(phase="Running", state={"running": {}})
STORE = pod(name="r-0", role=RENDEZVOUS, phase="Running", state={"running": {}})
PULL = pod(state={"waiting": {"reason": "ImagePullBackOff", "message": "not found"}})
SECRET = pod(state={"waiting": {"reason": "CreateContainerConfigError", "message": 'secret "s3" not found'}})
CREATING = pod(state={"waiting": {"reason": "ContainerCreating"}})
OOM = {"terminated": {"exitCode": 137, "reason": "OOMKilled", "finishedAt": "2026-11-24T11:00:00Z"}}
CRASHING = pod(
    phase="Running", restartCount=3, state={"waiting": {"reason": "CrashLoopBackOff"}},
    lastState={"terminated": {"exitCode": 1, "reason": "Error", "message": "first\nTeacherError: gone.pt\n"}},
)  # fmt: skip
ENDED = pod(phase="Failed", state={"terminated": {"exitCode": 1, "reason": "Error", "message": "no module"}})


@pytest.mark.parametrize(
    ("pods", "events", "words"),
    [
        ([], [], ""),
        ([unplaced(), unplaced("w-2")], [], BUSY),
        ([unplaced()], [event("TriggeredScaleUp", "1->2", about="w-1")], f"{BUSY}; a node is being added"),
        (
            [unplaced("r", RENDEZVOUS), unplaced()], [],
            f"{BUSY}; the rendezvous pod: no node fits: 0/2 nodes are available: 2 Insufficient gpu",
        ),
        ([PULL], [], "the image mcf:1 cannot be pulled: not found"),
        ([SECRET], [], 'the container cannot start: secret "s3" not found'),
        (
            [CREATING], [event("FailedMount", "old"), event("FailedMount", "no such volume", minute=1)],
            "the pod cannot start: no such volume",
        ),
        (
            [], [event("FailedCreate", 'pods "x" is forbidden: exceeded quota: team', about="mcf-r1-1-worker-0")],
            'the quota of the namespace is used up: pods "x" is forbidden: exceeded quota: team',
        ),
        (
            [], [event("FailedCreate", 'no PriorityClass with name "high" was found')],
            'no pod is made: no PriorityClass with name "high" was found',
        ),
    ],
)  # fmt: skip
def test_who_waits_says_why_in_plain_words(pods: list[Any], events: list[Any], words: str) -> None:
    assert told(jobset(), *pods, events=events) == (AppState.PENDING, words)


def test_where_the_pool_seems_to_have_room_the_scheduler_has_the_word() -> None:
    words = "no node fits: 0/2 nodes are available: 2 Insufficient gpu"
    assert told(jobset(), unplaced(), lack="") == (AppState.PENDING, words)


def test_who_waits_in_a_queue_says_what_for() -> None:
    assert told(jobset(suspend=True)) == (AppState.PENDING, "waits in its queue")
    said = event("Pending", "insufficient unused quota for nvidia.com/gpu", about="jobset-mcf-1", kind="Workload")
    words = "waits in its queue: insufficient unused quota for nvidia.com/gpu"
    assert told(jobset(suspend=True), events=[said]) == (AppState.PENDING, words)


def test_only_who_has_no_node_at_all_might_do_better_elsewhere() -> None:
    assert seen(jobset(), unplaced("w-0"), unplaced("w-1")).pending
    assert not seen(jobset(), unplaced(), CREATING).pending
    assert not seen(jobset(), RUNNING, unplaced()).pending
    assert not seen(jobset()).pending


def test_one_pod_that_runs_is_enough_to_run() -> None:
    assert told(jobset(), RUNNING, STORE, unplaced()) == (AppState.RUNNING, "")


def extra(found: dict[str, Any]) -> dict[str, Any]:
    labels = {**found["metadata"]["labels"], NODE: "1"}
    return found | {"metadata": {**found["metadata"], "labels": labels}}


def test_nobody_waits_for_an_extra_node_and_what_becomes_of_it_says_nothing_of_the_attempt() -> None:
    assert seen(jobset(), RUNNING, STORE, extra(unplaced())) == Seen(AppState.RUNNING)
    assert seen(jobset(), RUNNING, STORE, extra(CRASHING)) == Seen(AppState.RUNNING)
    oom = extra(pod(phase="Running", restartCount=1, state=OOM))
    assert seen(jobset(), RUNNING, STORE, oom) == Seen(AppState.RUNNING)
    assert seen(jobset(), CREATING, STORE, extra(PULL)) == Seen(AppState.PENDING)
    # It trains on while the core's node is looked for.
    assert told(jobset(), unplaced(), STORE, extra(RUNNING)) == (AppState.RUNNING, "")


def test_an_attempt_that_trains_says_which_nodes_it_lacks_and_for_what_they_wait() -> None:
    def waits(pods: list[Any], *jobs: Any) -> str:
        about = {
            "mcf-a-1-x2": [event("Pending", "insufficient unused quota", "job-mcf-a-1-x2-1f", "Workload")],
            "mcf-a-1-x3": [event("FailedCreate", "exceeded quota: team", "mcf-a-1-x3", "Job")],
            "mcf-a-1-x1": [event("TriggeredScaleUp", "pool 0->1", "w-1")],
        }
        return nodes_wait("mcf-a-1", pods, jobs, lambda name: about.get(name, []), lambda pod: BUSY)

    def job(number: int, *, suspend: bool = False) -> Any:
        return {"metadata": {"name": f"mcf-a-1-x{number}", "labels": {NODE: str(number)}}, "spec": {"suspend": suspend}}

    assert waits([STORE, RUNNING, extra(RUNNING)], job(1)) == ""
    assert waits([STORE, RUNNING, extra(CREATING)], job(1)) == ""
    assert waits([STORE, RUNNING], job(1)) == "", "a node that was sent a moment ago"
    assert waits([STORE, RUNNING, extra(unplaced())], job(1)) == f"1 more node waits: {BUSY}; a node is being added"
    # A core of up to two nodes.
    assert waits([STORE, RUNNING, unplaced()]) == f"1 more node waits: {BUSY}"
    assert waits([STORE, RUNNING, extra(PULL)], job(1)).startswith("1 more node waits: the image mcf:1 cannot be")
    assert waits([STORE, RUNNING], job(2, suspend=True), job(3)) == (
        "2 more nodes wait: in the queue: insufficient unused quota; "
        "the quota of the namespace is used up: exceeded quota: team"
    )
    leaving = job(2, suspend=True)
    leaving["metadata"]["deletionTimestamp"] = NOW.isoformat()
    assert waits([STORE, RUNNING], leaving) == ""


def test_nodes_that_cannot_meet_say_so() -> None:
    assert told(jobset(), RUNNING) == (AppState.RUNNING, "the nodes wait for a new rendezvous pod")
    lost = pod(name="r-0", role=RENDEZVOUS, phase="Running", deleted=NOW, state={"running": {}})
    found = told(jobset(), RUNNING, lost, unplaced("r-1", RENDEZVOUS))
    assert found == (
        AppState.RUNNING, "the rendezvous pod: no node fits: 0/2 nodes are available: 2 Insufficient gpu"
    )  # fmt: skip


def test_an_attempt_that_crashes_runs_and_says_its_last_words() -> None:
    found = seen(jobset(), CRASHING, STORE)
    assert found == Seen(
        AppState.RUNNING, "w-0 has ended 3 times, with exit code 1 (Error): TeacherError: gone.pt", restarts=3
    )


def test_ends_for_want_of_memory_are_told_apart() -> None:
    later = {"terminated": {**OOM["terminated"], "finishedAt": "2026-11-24T11:30:00Z"}}
    found = seen(jobset(), pod(phase="Running", restartCount=1, state=later, lastState=OOM))
    assert found.out_of_memory == {"w-0 at 2026-11-24T11:00:00Z", "w-0 at 2026-11-24T11:30:00Z"}


def test_what_has_ended_says_how() -> None:
    assert told(jobset({"type": "Completed"})) == (AppState.SUCCEEDED, "")
    failed = jobset({"type": "Failed", "message": "jobset failed due to one or more job failures"})
    words = "jobset failed due to one or more job failures; w-0 has ended, with exit code 1 (Error): no module"
    assert told(failed, ENDED) == (AppState.FAILED, words)


def test_an_attempt_lives_as_long_as_a_pod_of_it_does() -> None:
    deleted = jobset(deletionTimestamp="2026-11-24T11:59:00Z")
    stopping = pod(phase="Running", deleted=NOW, state={"running": {}})
    dead = pod(phase="Running", deleted=NOW - timedelta(minutes=1), state={"running": {}})
    for job in deleted, None:
        assert told(job, stopping) == (AppState.RUNNING, "stopping")
    # Of a node that is no more nothing will be heard.
    assert told(deleted, dead) == (AppState.CANCELLED, "stopped")
    assert told(None, dead) is None
    assert told(None) is None


def test_a_jobset_that_nobody_has_looked_at_yet_waits() -> None:
    assert told({"metadata": {}, "spec": {}}) == (AppState.PENDING, "")


def test_nothing_is_looked_for_while_an_attempt_runs() -> None:
    def asked() -> Any:
        raise AssertionError("200 attempts that run are looked at every second")

    state, note = jobset_state(jobset())
    assert observe(state, note, [RUNNING, unplaced()], asked, asked, NOW).state is AppState.RUNNING
