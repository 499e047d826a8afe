"""A Job whose lost pods would be waited for is made anew, and no other one."""

from typing import Any

import pytest

from k8s.pods import NEEDED
from k8s.remembered import of_child, of_pod
from k8s.renewal import BY_TAINT, anew, is_short, is_stranded

ALIVE = {"metadata": {}, "status": {"phase": "Running"}}
COMING = {"metadata": {}, "status": {"phase": "Pending"}}
GOING = {"metadata": {"deletionTimestamp": "2026-11-24T12:00:00Z"}, "status": {"phase": "Running"}}
DONE = {"metadata": {}, "status": {"phase": "Succeeded"}}


def job(needed: int = 1, *, suspend: bool = False, deleted: bool = False, **status: Any) -> dict[str, Any]:
    metadata: dict[str, Any] = {"name": "mcf-r0-1-worker-0", "annotations": {NEEDED: str(needed)}}
    if deleted:
        metadata["deletionTimestamp"] = "2026-11-24T12:00:00Z"
    return {"metadata": metadata, "spec": {"suspend": suspend}, "status": status}


@pytest.mark.parametrize(
    ("found", "pods", "short"),
    [
        (job(failed=1), [], True),
        (job(terminating=1), [GOING], True),
        (job(failed=9), [ALIVE], False),
        (job(failed=9), [COMING], False),
        (job(), [], False),  # it has only just been made
        (job(2, failed=2), [ALIVE], False),  # the next one comes after 20 s
        (job(2, failed=3), [ALIVE], True),
        (job(2, failed=3), [ALIVE, COMING], False),
        (job(failed=1, succeeded=1), [DONE], False),
        (job(failed=1, conditions=[{"type": "Failed", "status": "True"}]), [], False),
        (job(failed=1, suspend=True), [], False),
        (job(failed=1, deleted=True), [], False),
    ],
)
def test_only_who_has_lost_what_it_takes_to_train_is_short(
    found: dict[str, Any], pods: list[dict[str, Any]], short: bool
) -> None:
    # Of what the watches remember.
    assert is_short(of_child(found), [of_pod(pod) for pod in pods]) is short


def test_a_pod_is_given_up_where_nobody_will_say_that_it_has_ended() -> None:
    def on(node: str | None, *, deleted: bool = True, reason: str = BY_TAINT) -> dict[str, Any]:
        metadata = {"name": "w-0", **({"deletionTimestamp": "2026-11-24T12:00:00Z"} if deleted else {})}
        status = {"conditions": [{"type": "DisruptionTarget", "status": "True", "reason": reason}]}
        return of_pod({"metadata": metadata, "spec": {"nodeName": node, "containers": []}, "status": status})

    assert is_stranded(on("node1"), {"node0"})
    assert not is_stranded(on("node0"), {"node0"})
    assert not is_stranded(on("node1", deleted=False), {"node0"})
    assert not is_stranded(on(None), {"node0"})
    # Cancelled, while the API server was away: all nodes seem dead for a moment.
    assert not is_stranded(on("node1", reason="EvictionByEvictionAPI"), set())


def test_a_job_made_anew_has_no_past() -> None:
    number = {"batch.kubernetes.io/controller-uid": "u1", "controller-uid": "u1"}
    owner = [{"kind": "JobSet", "name": "mcf-r0-1", "uid": "j1", "controller": True}]
    old = {
        "metadata": {
            "name": "mcf-r0-1-worker-0", "uid": "u1", "resourceVersion": "7", "creationTimestamp": "t",
            "generation": 1, "managedFields": [], "labels": {"a": "b", **number}, "ownerReferences": owner,
        },
        "spec": {
            "parallelism": 2, "selector": {"matchLabels": number},
            "template": {"metadata": {"labels": {"c": "d", **number}}, "spec": {"containers": []}},
        },
        "status": {"failed": 5},
    }  # fmt: skip
    assert anew(of_child(old)) == {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": "mcf-r0-1-worker-0", "labels": {"a": "b"}, "ownerReferences": owner},
        "spec": {"parallelism": 2, "template": {"metadata": {"labels": {"c": "d"}}, "spec": {"containers": []}}},
    }
    assert old["metadata"]["uid"] == "u1"
