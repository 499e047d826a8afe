"""What a JobSet and its worker pods say of an attempt, in one state and in words for people. Pure."""

from collections.abc import Sequence
from typing import Any

from torchx.specs import AppState

from k8s.jobset import WORKER

# Why a container is not running that no waiting mends.
PULLING = ("ErrImagePull", "ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull")

Observed = dict[str, Any]


def state_of(jobset: Observed, pods: Sequence[Observed]) -> tuple[AppState, str]:
    """State of an attempt, and why it waits or how it ended; `pods`: of its workers, as the API gives them."""
    status = jobset.get("status", {})
    held = {each["type"]: each for each in status.get("conditions", []) if each["status"] == "True"}
    if "Completed" in held:
        return AppState.SUCCEEDED, ""
    if "Failed" in held:
        return AppState.FAILED, "; ".join(filter(None, [held["Failed"].get("message", ""), *map(_end, pods)]))
    if "deletionTimestamp" in jobset["metadata"]:
        return AppState.RUNNING, "stopping"
    if jobset["spec"].get("suspend"):
        return AppState.PENDING, "waits in its queue"
    workers = [each for each in status.get("replicatedJobsStatus", []) if each["name"] == WORKER]
    if any(each.get("ready", 0) for each in workers):
        return AppState.RUNNING, ""
    return AppState.PENDING, "; ".join(sorted(set(filter(None, map(_why_it_waits, pods)))))


def _why_it_waits(pod: Observed) -> str:
    status = pod.get("status", {})
    for condition in status.get("conditions", []):
        if condition["type"] == "PodScheduled" and condition["status"] == "False":
            return f"no node has room: {condition.get('message', '')}"
    for container in status.get("containerStatuses", []):
        waiting = container.get("state", {}).get("waiting", {})
        if waiting.get("reason") in PULLING:
            return f"the image {container['image']} cannot be pulled: {waiting.get('message', waiting['reason'])}"
        if waiting.get("reason"):
            return f"the container waits: {waiting['reason']}"
    return ""


def _end(pod: Observed) -> str:
    """How a pod ended, with what it said last; empty where it did not fail."""
    for container in pod.get("status", {}).get("containerStatuses", []):
        ended = container.get("state", {}).get("terminated") or {}
        if ended.get("exitCode"):
            said = (ended.get("message") or "").strip().splitlines()
            last = f": {said[-1]}" if said else ""
            return f"{pod['metadata']['name']} ended with {ended['exitCode']} ({ended.get('reason', '')}){last}"
    return ""
