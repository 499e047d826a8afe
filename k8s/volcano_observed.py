"""What a Volcano job and its worker pods say of an attempt, in one state and in words for people. Pure."""

from collections.abc import Sequence

from torchx.specs import AppState

from k8s.jobset import WORKER
from k8s.observed import Observed, _end, _why_it_waits

# Every other phase is one of an attempt that goes on, whose pods say how far it is.
ENDS = {
    "Completed": AppState.SUCCEEDED,
    "Failed": AppState.FAILED,
    "Terminated": AppState.FAILED,
    # By hand, as with `vcctl job suspend`.
    "Aborted": AppState.CANCELLED,
}
ENDING = ("Completing", "Terminating", "Aborting")


def state_of(vcjob: Observed, pods: Sequence[Observed]) -> tuple[AppState, str]:
    """State of an attempt, and why it waits or how it ended; `pods`: of its workers, as the API gives them."""
    state, note = vcjob_state(vcjob)
    if state is AppState.FAILED:
        return state, "; ".join([note, *filter(None, map(_end, pods))])
    if state is not AppState.PENDING:
        return state, note
    # While a pod is made anew, Volcano counts none for a moment.
    counted = (vcjob.get("status", {}).get("taskStatusCount") or {}).get(WORKER, {}).get("phase", {}).get("Running")
    if counted or any(pod.get("status", {}).get("phase") == "Running" for pod in pods):
        return AppState.RUNNING, ""
    return state, "; ".join(sorted(set(filter(None, map(_why_it_waits, pods))))) or note


def vcjob_state(vcjob: Observed) -> tuple[AppState, str]:
    """What a job says by itself; PENDING also where its pods may run, which they say better."""
    status = vcjob.get("status", {})
    said = status.get("state", {})
    phase = said.get("phase", "")
    if phase in ENDS:
        state = ENDS[phase]
        return state, "" if state is AppState.SUCCEEDED else _how_it_ended(phase, said, status.get("retryCount", 0))
    if "deletionTimestamp" in vcjob["metadata"] or phase in ENDING:
        return AppState.RUNNING, "stopping"
    if phase in ("", "Pending"):
        # Volcano makes no pods before there is room for as many as the job cannot do without.
        spec = vcjob["spec"]
        return AppState.PENDING, f"waits in the queue {spec['queue']} until {spec['minAvailable']} pods fit at once"
    return AppState.PENDING, ""


def _how_it_ended(phase: str, said: Observed, retries: int) -> str:
    words = said.get("message") or said.get("reason")
    lost = f" after {retries} lost pods" if retries else ""
    return f"Volcano's job is {phase}{lost}" + (f": {words}" if words else "")
