"""What a Volcano job says of an attempt. Pure."""

from torchx.specs import AppState

from k8s.pods import Object

# Every other phase is one of an attempt that goes on, whose pods say how far it is.
ENDS = {
    "Completed": AppState.SUCCEEDED,
    "Failed": AppState.FAILED,
    "Terminated": AppState.FAILED,
    # By hand, as with `vcctl job suspend`.
    "Aborted": AppState.CANCELLED,
}
ENDING = ("Completing", "Terminating", "Aborting")


def vcjob_state(vcjob: Object) -> tuple[AppState, str]:
    """What a job says by itself; PENDING also where its pods may run, which they say better."""
    status = vcjob.get("status", {})
    said = status.get("state", {})
    phase = said.get("phase", "")
    if phase in ENDS:
        state = ENDS[phase]
        return state, "" if state is AppState.SUCCEEDED else _how_it_ended(phase, said, status.get("retryCount", 0))
    if "deletionTimestamp" in vcjob["metadata"]:
        return AppState.CANCELLED, "stopped"
    if phase in ENDING:
        return AppState.RUNNING, "stopping"
    if phase in ("", "Pending"):
        # Volcano makes no pods before there is room for as many as the job cannot do without.
        spec = vcjob["spec"]
        return AppState.PENDING, f"waits in the queue {spec['queue']} until {spec['minAvailable']} pods fit at once"
    return AppState.PENDING, ""


def _how_it_ended(phase: str, said: Object, retries: int) -> str:
    words = said.get("message") or said.get("reason")
    lost = f" after {retries} lost pods" if retries else ""
    return f"Volcano's job is {phase}{lost}" + (f": {words}" if words else "")
