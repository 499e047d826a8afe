"""What a cluster says of an attempt, in one state and in words for people. Pure.

Objects are as the API gives them. `events`, all about the attempt, and `lack`, what its pool lacks for one of its pods
(k8s/capacity.py), take a while to find, and are asked only where it waits.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial

from torchx.specs import AppState

from k8s.pods import NODE, ROLE, WORKER, Object, is_extra

PULLING = ("ErrImagePull", "ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull")
UNMADE = ("FailedCreate", "FailedCreation", "JobCreationFailed")
# A pod that has not ended so long after its grace period is on a node that is no more.
DEAD_AFTER = timedelta(seconds=30)


@dataclass(frozen=True)
class Seen:
    """One look at an attempt."""

    state: AppState
    message: str = ""
    """Why it waits, or how it ended."""
    restarts: int = 0
    """Times that a container of a worker pod ended by itself."""
    out_of_memory: frozenset[str] = frozenset()
    """Those of them that the pods still know of at which it had used up its memory."""
    pending: bool = False
    """All its worker pods wait for a node, or it waits in a queue."""


def observe(state: AppState | None, note: str, pods: Sequence[Object], events: Callable[[], Sequence[Object]],
            lack: Callable[[], str], now: datetime) -> Seen | None:  # fmt: skip
    """The attempt as a whole; None when nothing of it is left.

    `state` and `note`: what its JobSet or Volcano job says, None where there is none (any more).
    """
    nodes = [pod for pod in pods if pod["metadata"].get("labels", {}).get(ROLE) == WORKER]
    # What is beyond the core comes and goes: it holds up nobody, and what becomes of it says nothing about the attempt.
    workers = [pod for pod in nodes if not is_extra(pod)]
    restarts, killed = sum(map(_restarts, workers)), frozenset(end for pod in workers for end in _out_of_memory(pod))
    if state is None or state is AppState.CANCELLED:
        # Deleted; what is left of it still trains, and the next attempt must not begin beside it.
        if any(_lives(pod, now) for pod in pods):
            return Seen(AppState.RUNNING, "stopping", restarts, killed)
        return Seen(state, note, restarts, killed) if state else None
    if state is AppState.FAILED:
        return Seen(state, "; ".join(filter(None, [note, *map(_end, workers)])), restarts, killed)
    if state is not AppState.PENDING:
        return Seen(state, note, restarts, killed)
    if any(_runs(pod) for pod in nodes):
        stores = [pod for pod in pods if pod["metadata"].get("labels", {}).get(ROLE) != WORKER]
        return Seen(AppState.RUNNING, "; ".join(_unique([*map(_crash, workers), _no_store(stores, events, lack)])),
                    restarts, killed)  # fmt: skip
    if note:
        return Seen(AppState.PENDING, _queued(note, events), restarts, killed, pending=True)
    waiting = [pod for pod in pods if not is_extra(pod) and not pod["metadata"].get("deletionTimestamp")]
    unplaced = [pod for pod in waiting if _unscheduled(pod) is not None]
    reasons = _unique(_why_it_waits(pod, events, lack) for pod in waiting) or _unmade(events)
    return Seen(
        AppState.PENDING, "; ".join(reasons), restarts, killed,
        pending=bool(workers) and all(pod in unplaced for pod in workers),
    )  # fmt: skip


def nodes_wait(
    name: str, pods: Sequence[Object], extra: Sequence[Object], events: Callable[[str], Sequence[Object]],
    lack: Callable[[Object], str],
) -> str:  # fmt: skip
    """How many nodes an attempt that trains could still use, and for what they wait; empty where none does.

    `name`: that of its job; `extra`: the Jobs of its nodes beyond the core; `events`: all about the job of a name;
    `lack`: what the pool of a pod lacks.
    """
    jobs = {job["metadata"]["labels"][NODE]: job for job in extra if "deletionTimestamp" not in job["metadata"]}
    nodes = [pod for pod in pods if pod["metadata"].get("labels", {}).get(ROLE) == WORKER]
    reasons = []
    for pod in nodes:
        job = jobs.get(pod["metadata"]["labels"].get(NODE, ""))
        about = partial(events, job["metadata"]["name"] if job else name)
        if "deletionTimestamp" not in pod["metadata"] and (why := _why_it_waits(pod, about, partial(lack, pod))):
            reasons.append(why)
    for number in jobs.keys() - {pod["metadata"]["labels"].get(NODE) for pod in nodes}:
        about = partial(events, jobs[number]["metadata"]["name"])
        is_queued = jobs[number]["spec"].get("suspend")
        reasons += [_queued("in the queue", about)] if is_queued else _unmade(about)
    count = len(reasons)
    return f"{count} more node{' waits' if count == 1 else 's wait'}: {'; '.join(_unique(reasons))}" if count else ""


def jobset_state(jobset: Object) -> tuple[AppState, str]:
    """What a JobSet says by itself: state, and a note on why it waits or how it ended."""
    held = {each["type"]: each for each in jobset.get("status", {}).get("conditions", []) if each["status"] == "True"}
    if "Completed" in held:
        return AppState.SUCCEEDED, ""
    if "Failed" in held:
        return AppState.FAILED, held["Failed"].get("message", "")
    if "deletionTimestamp" in jobset["metadata"]:
        return AppState.CANCELLED, "stopped"
    return AppState.PENDING, "waits in its queue" if jobset["spec"].get("suspend") else ""


# ---------------------------------------------------------------- why it waits


def _why_it_waits(pod: Object, events: Callable[[], Sequence[Object]], lack: Callable[[], str]) -> str:
    what = "" if pod["metadata"].get("labels", {}).get(ROLE) == WORKER else "the rendezvous pod: "
    unscheduled = _unscheduled(pod)
    if unscheduled is not None:
        coming = "; a node is being added" if _event(events, pod, "TriggeredScaleUp") else ""
        return (what or lack()) + (f"no node fits: {unscheduled}" if what or not lack() else "") + coming
    for container in pod.get("status", {}).get("containerStatuses", []):
        waiting = container.get("state", {}).get("waiting", {})
        reason, message = waiting.get("reason"), waiting.get("message", "")
        if reason in PULLING:
            return f"{what}the image {container['image']} cannot be pulled: {message or reason}"
        if reason == "CrashLoopBackOff":
            return what + _crash(pod)
        if reason and reason != "ContainerCreating":
            return f"{what}the container cannot start: {message or reason}"
        for kind in "FailedMount", "FailedAttachVolume", "FailedCreatePodSandBox":
            if reason and (text := _event(events, pod, kind)):
                return f"{what}the pod cannot start: {text}"
    return ""


def _no_store(stores: Sequence[Object], events: Callable[[], Sequence[Object]], lack: Callable[[], str]) -> str:
    """Why nodes that are there cannot meet; empty where they can."""
    alive = [pod for pod in stores if not pod["metadata"].get("deletionTimestamp")]
    if any(_runs(pod) for pod in alive):
        return ""
    reasons = _unique(_why_it_waits(pod, events, lack) for pod in alive)
    return "; ".join(reasons) or "the nodes wait for a new rendezvous pod"


def _unscheduled(pod: Object) -> str | None:
    """The scheduler's words; None for a pod that has a node or has not been looked at."""
    for condition in pod.get("status", {}).get("conditions", []):
        if condition["type"] == "PodScheduled" and condition["status"] == "False":
            return str(condition.get("message") or condition.get("reason") or "")
    return None


def _unmade(events: Callable[[], Sequence[Object]]) -> list[str]:
    """Why there are no pods: quota, a service account or a priority class that is not there."""
    failed = [event for event in events() if event.get("reason") in UNMADE]
    if not failed:
        return []
    text = str(max(failed, key=_time_of).get("message", ""))
    return [f"the quota of the namespace is used up: {text}" if "exceeded quota" in text else f"no pod is made: {text}"]


def _queued(note: str, events: Callable[[], Sequence[Object]]) -> str:
    """With Kueue's own words for it, where it has said something."""
    said = [event for event in events() if event.get("involvedObject", {}).get("kind") == "Workload"]
    return f"{note}: {max(said, key=_time_of).get('message', '')}" if said else note


# ---------------------------------------------------------------- how containers ended


def _crash(pod: Object) -> str:
    """A container that ended and will be started again: how often, and its last words."""
    for container in pod.get("status", {}).get("containerStatuses", []):
        if container.get("state", {}).get("waiting", {}).get("reason") == "CrashLoopBackOff":
            count = container.get("restartCount", 0)
            return f"{pod['metadata']['name']} has ended {count} times{_last_words(container.get('lastState', {}))}"
    return ""


def _end(pod: Object) -> str:
    """How a pod ended, with what it said last; empty where it did not fail."""
    for container in pod.get("status", {}).get("containerStatuses", []):
        if container.get("state", {}).get("terminated", {}).get("exitCode"):
            return f"{pod['metadata']['name']} has ended{_last_words(container['state'])}"
    return ""


def _last_words(state: Object) -> str:
    ended = state.get("terminated", {})
    said = (ended.get("message") or "").strip().splitlines()
    last = f": {said[-1]}" if said else ""
    return f", with exit code {ended.get('exitCode')} ({ended.get('reason', '')}){last}" if ended else ""


def _restarts(pod: Object) -> int:
    containers: list[Object] = pod.get("status", {}).get("containerStatuses", [])
    failed = sum(bool(each.get("state", {}).get("terminated", {}).get("exitCode")) for each in containers)
    return failed + sum(int(each.get("restartCount", 0)) for each in containers)


def _out_of_memory(pod: Object) -> Iterator[str]:
    """Pod and time of each end for want of memory; of a container the newest one or two are known."""
    for container in pod.get("status", {}).get("containerStatuses", []):
        for state in "state", "lastState":
            ended = container.get(state, {}).get("terminated", {})
            if ended.get("reason") == "OOMKilled":
                yield f"{pod['metadata']['name']} at {ended.get('finishedAt')}"


# ---------------------------------------------------------------- pieces


def _runs(pod: Object) -> bool:
    containers = pod.get("status", {}).get("containerStatuses", [])
    return any("running" in each.get("state", {}) for each in containers) or bool(
        pod.get("status", {}).get("phase") == "Running" and any(each.get("restartCount") for each in containers)
    )


def _lives(pod: Object, now: datetime) -> bool:
    if pod.get("status", {}).get("phase") in ("Succeeded", "Failed"):
        return False
    deleted = pod["metadata"].get("deletionTimestamp")
    return not deleted or now < datetime.fromisoformat(deleted) + DEAD_AFTER


def _event(events: Callable[[], Sequence[Object]], pod: Object, reason: str) -> str:
    """The newest message of that reason about a pod."""
    name = pod["metadata"]["name"]
    found = [e for e in events() if e.get("reason") == reason and e.get("involvedObject", {}).get("name") == name]
    return str(max(found, key=_time_of).get("message", reason)) if found else ""


def _time_of(event: Object) -> datetime:
    told = event.get("lastTimestamp") or event.get("eventTime") or event["metadata"].get("creationTimestamp")
    return datetime.fromisoformat(told) if told else datetime.min.replace(tzinfo=UTC)


def _unique(words: Iterable[str]) -> list[str]:
    return sorted(set(filter(None, words)))
