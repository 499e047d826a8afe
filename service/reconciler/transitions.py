"""What happens next to a run: a pure function of what is written down and what is seen. No clock, no I/O.

    queued -> starting -> running -> succeeded | failed | cancelled
                 ^           |
                 +- interrupted (between attempts)

One attempt is opened in the database first and submitted after that, under a name that follows from its
number. So a crash at any point leaves either an attempt that nobody knows of at the scheduler, which is
submitted again, or one that is found there, which is adopted. A run ends only when no attempt of it lives.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from enum import StrEnum

from service.tables import AttemptState, RunState
from trainer.records import Outcome, Verdict

# Attempts in a row without a new step: the cluster is not to blame three times running.
MAX_FRUITLESS = 3
BACKOFF_SECONDS, MAX_BACKOFF_SECONDS = 1.0, 60.0
# From outcome.json to the end of the attempt's processes; longer, and they are told to stop.
ENDING_SECONDS = 120.0


class JobState(StrEnum):
    """What the scheduler says of an attempt."""

    ABSENT = "absent"
    PENDING = "pending"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    LOST = "lost"
    """Ended from outside, as with its node."""
    CANCELLED = "cancelled"

    @property
    def is_live(self) -> bool:
        return self in (JobState.PENDING, JobState.RUNNING)


class Action(StrEnum):
    """What to do to the world before the new facts are written; doing it twice is harmless."""

    SUBMIT = "submit"
    CANCEL = "cancel"


@dataclass(frozen=True)
class AttemptFacts:
    number: int
    state: AttemptState = AttemptState.SUBMITTED
    confirmed: bool = False
    first_step: int = 0
    last_step: int = 0
    reason: str = ""

    @property
    def is_live(self) -> bool:
        return self.state.is_live


@dataclass(frozen=True)
class RunFacts:
    """What the database says of a run and its newest attempt."""

    state: RunState = RunState.QUEUED
    admitted: bool = False
    cancel_reason: str = ""
    not_before: datetime | None = None
    fruitless: int = 0
    step: int = 0
    reason: str = ""
    kind: str = ""
    waiting_reason: str = ""
    attempt: AttemptFacts | None = None


@dataclass(frozen=True)
class Observed:
    """What is seen of a run's newest attempt and directory."""

    job: JobState = JobState.ABSENT
    job_message: str = ""
    step: int = 0
    sessions_of_attempt: int = 0
    outcome: Outcome | None = None
    has_result: bool = False
    log_tail: str = ""
    not_ready: str = ""
    """Why it cannot be launched now, such as MLflow being away; empty = it can."""


ATTEMPT_ENDS = {
    JobState.SUCCEEDED: AttemptState.FAILED,  # every node says so, and the run has not ended
    JobState.FAILED: AttemptState.FAILED,
    JobState.LOST: AttemptState.LOST,
    JobState.CANCELLED: AttemptState.CANCELLED,
}


@dataclass(frozen=True)
class Decision:
    run: RunFacts
    action: Action | None = None


def decide(run: RunFacts, seen: Observed, now: datetime) -> Decision:
    """The first row of the table whose condition holds."""
    for condition, row in TABLE:
        if condition(run, seen):
            return row(replace(run, step=max(run.step, seen.step)), seen, now)
    raise AssertionError("the last row takes everything")


# ---------------------------------------------------------------- conditions


def _final(run: RunFacts, seen: Observed) -> bool:
    return run.state.is_final


def _job_lives(run: RunFacts, seen: Observed) -> bool:
    return run.attempt is not None and run.attempt.is_live and seen.job.is_live


def _unsubmitted(run: RunFacts, seen: Observed) -> bool:
    attempt = run.attempt
    return attempt is not None and attempt.is_live and not attempt.confirmed and seen.job is JobState.ABSENT


def _attempt_open(run: RunFacts, seen: Observed) -> bool:
    return run.attempt is not None and run.attempt.is_live


def _cancelling(run: RunFacts, seen: Observed) -> bool:
    return bool(run.cancel_reason)


def _ended(run: RunFacts, seen: Observed) -> bool:
    return seen.outcome is not None


# ---------------------------------------------------------------- rows


def _stay(run: RunFacts, seen: Observed, now: datetime) -> Decision:
    return Decision(run)


def _cancel_job(run: RunFacts, seen: Observed, now: datetime) -> Decision:
    return Decision(replace(_follow(run, seen), waiting_reason="stopping: it writes a checkpoint first"), Action.CANCEL)


def _await_end(run: RunFacts, seen: Observed, now: datetime) -> Decision:
    assert seen.outcome
    overdue = now - seen.outcome.ended_at > timedelta(seconds=ENDING_SECONDS)
    return Decision(_follow(run, seen), Action.CANCEL if overdue else None)


def _watch(run: RunFacts, seen: Observed, now: datetime) -> Decision:
    return Decision(_follow(run, seen))


def _drop_attempt(run: RunFacts, seen: Observed, now: datetime) -> Decision:
    """Opened, never seen at the scheduler, and no longer wanted."""
    return Decision(replace(run, attempt=_closed(run, AttemptState.CANCELLED, "not submitted")))


def _submit(run: RunFacts, seen: Observed, now: datetime) -> Decision:
    # Confirmed by the next look and not here: only what is seen counts.
    return Decision(replace(run, waiting_reason=""), Action.SUBMIT)


def _finish(run: RunFacts, seen: Observed, now: datetime) -> Decision:
    outcome = seen.outcome
    assert outcome
    if run.attempt and run.attempt.is_live:
        state = AttemptState.SUCCEEDED if outcome.verdict is Verdict.SUCCEEDED else AttemptState.FAILED
        run = replace(run, attempt=_closed(run, state, outcome.reason))
    if outcome.verdict is Verdict.FAILED:
        return Decision(_end(run, RunState.FAILED, outcome.reason, outcome.kind))
    if not seen.has_result:
        reason = "training ended, but its result.json is missing; retry starts from the last checkpoint"
        return Decision(_end(run, RunState.FAILED, reason, "MissingResult"))
    return Decision(_end(run, RunState.SUCCEEDED))


def _close_attempt(run: RunFacts, seen: Observed, now: datetime) -> Decision:
    """The attempt is over and the run is not."""
    attempt = run.attempt
    assert attempt
    if run.cancel_reason:
        return Decision(replace(run, attempt=_closed(run, AttemptState.CANCELLED, run.cancel_reason)))
    state = ATTEMPT_ENDS.get(seen.job, AttemptState.LOST)
    # Stopped, or lost with its node: that says nothing about the run, however often it happens.
    blameless = seen.job in (JobState.CANCELLED, JobState.LOST)
    advanced = run.step > attempt.first_step
    fruitless = 0 if advanced else run.fruitless + (0 if blameless else 1)
    why = seen.job_message or "it is gone from the scheduler"
    reason = f"{why}\n{seen.log_tail}".strip()
    run = replace(run, attempt=_closed(run, state, reason), fruitless=fruitless)
    if fruitless >= MAX_FRUITLESS:
        text = f"{fruitless} attempts in a row ended without a new step; the last one: {reason}"
        return Decision(_end(run, RunState.FAILED, text, "Infrastructure"))
    wait = min(BACKOFF_SECONDS * 2**fruitless, MAX_BACKOFF_SECONDS)
    waiting = f"attempt {attempt.number} ended ({why}); the next one starts in {wait:.0f} s"
    return Decision(
        replace(run, state=RunState.INTERRUPTED, not_before=now + timedelta(seconds=wait), waiting_reason=waiting)
    )


def _cancelled(run: RunFacts, seen: Observed, now: datetime) -> Decision:
    return Decision(_end(run, RunState.CANCELLED, run.cancel_reason))


def _open_attempt(run: RunFacts, seen: Observed, now: datetime) -> Decision:
    if not run.admitted or (run.not_before and now < run.not_before):
        return Decision(run)
    if seen.not_ready:
        return Decision(replace(run, waiting_reason=seen.not_ready))
    number = run.attempt.number + 1 if run.attempt else 1
    attempt = AttemptFacts(number, first_step=run.step, last_step=run.step)
    return Decision(replace(run, state=RunState.STARTING, attempt=attempt, waiting_reason="", not_before=None))


Row = Callable[[RunFacts, Observed, datetime], Decision]
Condition = Callable[[RunFacts, Observed], bool]


def _all(*conditions: Condition) -> Condition:
    return lambda run, seen: all(condition(run, seen) for condition in conditions)


TABLE: tuple[tuple[Condition, Row], ...] = (
    (_final, _stay),
    # While its processes live, a run does not end.
    (_all(_job_lives, _cancelling), _cancel_job),
    (_all(_job_lives, _ended), _await_end),
    (_job_lives, _watch),
    # Nothing lives: what the run itself said counts most, even against a request to cancel.
    (_ended, _finish),
    (_all(_cancelling, _unsubmitted), _drop_attempt),
    (_unsubmitted, _submit),
    (_attempt_open, _close_attempt),
    # Between attempts.
    (_cancelling, _cancelled),
    (lambda run, seen: True, _open_attempt),
)


# ---------------------------------------------------------------- pieces of rows


def _follow(run: RunFacts, seen: Observed) -> RunFacts:
    assert run.attempt
    training = seen.sessions_of_attempt > 0
    state = AttemptState.RUNNING if training else AttemptState.SUBMITTED
    attempt = replace(run.attempt, state=state, confirmed=True, last_step=run.step)
    waiting = "" if training else "workers are starting" if seen.job is JobState.RUNNING else seen.job_message
    return replace(
        run, state=RunState.RUNNING if training else RunState.STARTING, attempt=attempt, waiting_reason=waiting
    )


def _closed(run: RunFacts, state: AttemptState, reason: str) -> AttemptFacts:
    assert run.attempt
    return replace(run.attempt, state=state, reason=reason, last_step=run.step)


def _end(run: RunFacts, state: RunState, reason: str = "", kind: str = "") -> RunFacts:
    return replace(
        run, state=state, admitted=False, reason=reason, kind=kind, waiting_reason="", not_before=None, fruitless=0
    )
