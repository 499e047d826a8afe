"""What people are told of an attempt, from what the API server says of it."""

from typing import Any

import pytest
from torchx.specs import AppState

from k8s.observed import state_of


def jobset(*conditions: dict[str, str], ready: int = 0, suspend: bool = False, **metadata: str) -> dict[str, Any]:
    status = {"conditions": [{"status": "True", **each} for each in conditions]}
    workers = [{"name": "rendezvous", "ready": 1}, {"name": "worker", "ready": ready}]
    return {
        "metadata": metadata, "spec": {"suspend": suspend}, "status": {**status, "replicatedJobsStatus": workers}
    }  # fmt: skip


def pod(**container: Any) -> dict[str, Any]:
    return {"metadata": {"name": "w-0"}, "status": {"containerStatuses": [{"image": "mcf:1", **container}]}}


NO_ROOM = {
    "metadata": {"name": "w-1"},
    "status": {"conditions": [{"type": "PodScheduled", "status": "False", "message": "0/2 nodes: 2 Insufficient gpu"}]},
}
PULL = pod(state={"waiting": {"reason": "ImagePullBackOff", "message": "not found"}})
ENDED = pod(state={"terminated": {"exitCode": 1, "reason": "Error", "message": "first\nTeacherError: gone.pt\n"}})


@pytest.mark.parametrize(
    ("seen", "pods", "state", "words"),
    [
        (jobset(), [], AppState.PENDING, ""),
        (jobset(suspend=True), [], AppState.PENDING, "waits in its queue"),
        (jobset(), [NO_ROOM, NO_ROOM], AppState.PENDING, "no node has room: 0/2 nodes: 2 Insufficient gpu"),
        (jobset(), [PULL], AppState.PENDING, "the image mcf:1 cannot be pulled: not found"),
        (jobset(ready=1), [pod(), NO_ROOM], AppState.RUNNING, ""),
        (jobset(ready=1, deletionTimestamp="2026-11-24T12:00:00Z"), [], AppState.RUNNING, "stopping"),
        (jobset({"type": "Completed"}), [], AppState.SUCCEEDED, ""),
        (
            jobset({"type": "Failed", "message": "jobset failed due to one or more job failures"}), [ENDED],
            AppState.FAILED,
            "jobset failed due to one or more job failures; w-0 ended with 1 (Error): TeacherError: gone.pt",
        ),
    ],
)  # fmt: skip
def test_an_attempt_has_a_state_and_a_reason(
    seen: dict[str, Any], pods: list[dict[str, Any]], state: AppState, words: str
) -> None:
    assert state_of(seen, pods) == (state, words)


def test_a_jobset_that_nobody_has_looked_at_yet_waits() -> None:
    assert state_of({"metadata": {}, "spec": {}}, []) == (AppState.PENDING, "")
