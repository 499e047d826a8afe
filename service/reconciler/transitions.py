"""What happens next to a run: a pure function of what is written down and what is seen. No clock, no I/O.

    queued -> starting -> running -> succeeded | failed | cancelled
                 ^           |
                 +- interrupted (between attempts); paused, until it is resumed

One attempt is opened in the database first and submitted after that, under a name that follows from its
number. So a crash at any point leaves either an attempt that nobody knows of at the scheduler, which is
submitted again, or one that is found there, which is adopted. A run ends only when no attempt of it lives.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from service.launching.port import JobState
from service.reconciler.facts import Action, AttemptFacts, Observed, RunFacts
from service.states import AttemptState, RunState
from trainer.contract.records import Verdict

# Attempts in a row without a new step: the cluster is not to blame three times running.
MAX_FRUITLESS = 3
RETRY_SECONDS, MAX_RETRY_SECONDS = 1.0, 60.0
# From outcome.json to the end of the attempt's processes; longer, and they are told to stop.
ENDING_SECONDS = 30.0
# Containers that end and are started again in one attempt without one new step between them: the next attempt may find
# another node, and waiting for this one's growing pauses helps nobody.
MAX_CRASHES = 4
# The same spec needs the same memory the next time.
MAX_OUT_OF_MEMORY, OUT_OF_MEMORY = 2, "OutOfMemory"
# Of what an attempt printed last, so much is part of the reason why it ended.
REASON_LINES = 12
MOVES = "moves to the pool "


ATTEMPT_ENDS = {
    JobState.SUCCEEDED: AttemptState.FAILED,  # every node says so, and the run has not ended
    JobState.FAILED: AttemptState.FAILED,
    JobState.LOST: AttemptState.LOST,
    JobState.CANCELLED: AttemptState.CANCELLED,
}
# Why it is over, where the scheduler has no words of its own.
UNSAID = {JobState.SUCCEEDED: "its nodes exited normally, but the run had not ended"}


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
    return run.attempt is not None and run.attempt.is_live and seen.job.state.is_live


def _unsubmitted(run: RunFacts, seen: Observed) -> bool:
    attempt = run.attempt
    return attempt is not None and attempt.is_live and not attempt.confirmed and seen.job.state is JobState.ABSENT


def _attempt_open(run: RunFacts, seen: Observed) -> bool:
    return run.attempt is not None and run.attempt.is_live


def _cancelling(run: RunFacts, seen: Observed) -> bool:
    return bool(run.cancel_reason)


def _pausing(run: RunFacts, seen: Observed) -> bool:
    return bool(run.pause_reason)


def _unwanted(run: RunFacts, seen: Observed) -> bool:
    return _cancelling(run, seen) or _pausing(run, seen)


def _is_paused(run: RunFacts, seen: Observed) -> bool:
    return run.state is RunState.PAUSED


def _ended(run: RunFacts, seen: Observed) -> bool:
    return seen.outcome is not None


def _out_of_memory(run: RunFacts, seen: Observed) -> bool:
    return seen.job.out_of_memory >= MAX_OUT_OF_MEMORY


def _crashes(run: RunFacts, seen: Observed) -> bool:
    assert run.attempt
    return seen.job.crashes >= MAX_CRASHES and max(run.step, seen.step) <= run.attempt.first_step


def _better_elsewhere(run: RunFacts, seen: Observed) -> bool:
    return bool(seen.job.room_in)


def _sent_elsewhere(run: RunFacts, seen: Observed) -> bool:
    assert run.attempt
    return bool(run.attempt.pool and run.pools) and run.attempt.pool not in run.pools


def _being_ended(run: RunFacts, seen: Observed) -> bool:
    return run.attempt is not None and bool(run.attempt.reason)


# ---------------------------------------------------------------- rows


def _stay(run: RunFacts, seen: Observed, now: datetime) -> Decision:
    return Decision(run)


def _cancel_job(run: RunFacts, seen: Observed, now: datetime) -> Decision:
    return Decision(
        replace(_follow(run, seen), waiting_reason="stopping: the run writes a checkpoint first"), Action.CANCEL
    )


def _pause_job(run: RunFacts, seen: Observed, now: datetime) -> Decision:
    return Decision(
        replace(_follow(run, seen), waiting_reason="pausing: the run writes a checkpoint first"), Action.CANCEL
    )


def _await_end(run: RunFacts, seen: Observed, now: datetime) -> Decision:
    assert seen.outcome
    overdue = now - seen.outcome.ended_at > timedelta(seconds=ENDING_SECONDS)
    return Decision(_follow(run, seen), Action.CANCEL if overdue else None)


def _condemn(run: RunFacts, seen: Observed, now: datetime) -> Decision:
    reason = (
        f"out of memory {seen.job.out_of_memory} times: the pool has too little for this spec; name a pool with more, "
        "or lower batch.slice or placement.processes_per_node"
    )
    return _stop_attempt(replace(run, kind=OUT_OF_MEMORY), seen, reason)


def _give_up(run: RunFacts, seen: Observed, now: datetime) -> Decision:
    words = f"; {seen.job.message}" if seen.job.message else ""
    return _stop_attempt(run, seen, f"its containers ended {seen.job.crashes} times without a new step{words}")


def _move(run: RunFacts, seen: Observed, now: datetime) -> Decision:
    return _stop_attempt(run, seen, f"{MOVES}{seen.job.room_in}, which has room ({seen.job.message})")


def _move_as_asked(run: RunFacts, seen: Observed, now: datetime) -> Decision:
    return _stop_attempt(run, seen, f"{MOVES}{run.pools[0]}, as it was asked to")


def _go_on_ending(run: RunFacts, seen: Observed, now: datetime) -> Decision:
    assert run.attempt
    return Decision(replace(_follow(run, seen), waiting_reason=run.attempt.reason), Action.CANCEL)


def _stop_attempt(run: RunFacts, seen: Observed, reason: str) -> Decision:
    run = _follow(run, seen)
    assert run.attempt
    return Decision(replace(run, attempt=replace(run.attempt, reason=reason), waiting_reason=reason), Action.CANCEL)


def _watch(run: RunFacts, seen: Observed, now: datetime) -> Decision:
    return Decision(_follow(run, seen))


def _drop_attempt(run: RunFacts, seen: Observed, now: datetime) -> Decision:
    """Opened, never seen at the scheduler, and no longer wanted."""
    return Decision(replace(run, attempt=_closed(run, seen, AttemptState.CANCELLED, "not submitted")))


def _submit(run: RunFacts, seen: Observed, now: datetime) -> Decision:
    # Confirmed by the next look and not here: only what is seen counts.
    return Decision(replace(run, waiting_reason=""), Action.SUBMIT)


def _finish(run: RunFacts, seen: Observed, now: datetime) -> Decision:
    outcome = seen.outcome
    assert outcome
    if run.attempt and run.attempt.is_live:
        state = AttemptState.SUCCEEDED if outcome.verdict is Verdict.SUCCEEDED else AttemptState.FAILED
        run = replace(run, attempt=_closed(run, seen, state, outcome.reason))
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
        return Decision(replace(run, attempt=_closed(run, seen, AttemptState.CANCELLED, run.cancel_reason)))
    if run.pause_reason:
        closed = _closed(run, seen, AttemptState.CANCELLED, run.pause_reason)
        # Nor is it condemned any more: what it met it meets again, or not.
        return Decision(replace(run, state=RunState.INTERRUPTED, kind="", attempt=closed))
    if run.kind == OUT_OF_MEMORY:
        reason = attempt.reason or "out of memory"
        run = replace(run, attempt=_closed(run, seen, AttemptState.FAILED, reason))
        return Decision(_end(run, RunState.FAILED, _with_last_words(reason, seen), OUT_OF_MEMORY))
    state = ATTEMPT_ENDS.get(seen.job.state, AttemptState.LOST)
    # Stopped, or lost with its node: that says nothing about the run, however often it happens.
    given_up = bool(attempt.reason) and not attempt.reason.startswith(MOVES)
    blameless = seen.job.state in (JobState.CANCELLED, JobState.LOST, JobState.ABSENT) and not given_up
    advanced = run.step > attempt.first_step
    fruitless = 0 if advanced else run.fruitless + (0 if blameless else 1)
    why = attempt.reason or seen.job.message or UNSAID.get(seen.job.state, "the scheduler no longer has it")
    reason = _with_last_words(why, seen)
    run = replace(run, attempt=_closed(run, seen, state, reason), fruitless=fruitless)
    if fruitless >= MAX_FRUITLESS:
        text = f"{fruitless} attempts in a row ended without a new step; the last one: {reason}"
        return Decision(_end(run, RunState.FAILED, text, "Infrastructure"))
    wait = min(RETRY_SECONDS * 2**fruitless, MAX_RETRY_SECONDS)
    waiting = f"attempt {attempt.number} ended ({why}); the next one starts in {wait:.0f} s"
    return Decision(
        replace(run, state=RunState.INTERRUPTED, not_before=now + timedelta(seconds=wait), waiting_reason=waiting)
    )


def _cancelled(run: RunFacts, seen: Observed, now: datetime) -> Decision:
    return Decision(_end(run, RunState.CANCELLED, run.cancel_reason))


def _paused(run: RunFacts, seen: Observed, now: datetime) -> Decision:
    return Decision(
        replace(run, state=RunState.PAUSED, admitted=False, waiting_reason=run.pause_reason, not_before=None)
    )


def _queue_again(run: RunFacts, seen: Observed, now: datetime) -> Decision:
    return Decision(replace(run, state=RunState.QUEUED, waiting_reason=""))


def _open_attempt(run: RunFacts, seen: Observed, now: datetime) -> Decision:
    if not run.admitted or (run.not_before and now < run.not_before):
        return Decision(run)
    if seen.not_ready:
        return Decision(replace(run, waiting_reason=seen.not_ready))
    number = run.attempt.number + 1 if run.attempt else 1
    # A database that was restored is older than the directory: that attempt may live, and is adopted by its name.
    number = max(number, seen.sent)
    attempt = AttemptFacts(number, seen.pool, first_step=run.step, last_step=run.step)
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
    (_all(_job_lives, _pausing), _pause_job),
    (_all(_job_lives, _being_ended), _go_on_ending),
    (_all(_job_lives, _out_of_memory), _condemn),
    (_all(_job_lives, _crashes), _give_up),
    (_all(_job_lives, _sent_elsewhere), _move_as_asked),
    (_all(_job_lives, _better_elsewhere), _move),
    (_job_lives, _watch),
    # Nothing lives: what the run itself said counts most, even against a request to cancel.
    (_ended, _finish),
    (_all(_unwanted, _unsubmitted), _drop_attempt),
    (_unsubmitted, _submit),
    (_attempt_open, _close_attempt),
    # Between attempts.
    (_cancelling, _cancelled),
    (_pausing, _paused),
    (_is_paused, _queue_again),
    (lambda run, seen: True, _open_attempt),
)


# ---------------------------------------------------------------- pieces of rows


def _follow(run: RunFacts, seen: Observed) -> RunFacts:
    assert run.attempt
    training = seen.sessions_of_attempt > 0
    state = AttemptState.RUNNING if training else AttemptState.SUBMITTED
    attempt = replace(
        run.attempt, state=state, confirmed=True, last_step=run.step, log_tail=seen.log_tail or run.attempt.log_tail
    )
    lives = seen.job.state is JobState.RUNNING
    waiting = seen.trouble if training and lives else seen.job.message or ("workers are starting" if lives else "")
    # Workers that have trained may all have gone since, as when a queue takes their nodes back.
    trained = RunState.RUNNING if lives else RunState.INTERRUPTED
    return replace(run, state=trained if training else RunState.STARTING, attempt=attempt, waiting_reason=waiting)


def _closed(run: RunFacts, seen: Observed, state: AttemptState, reason: str) -> AttemptFacts:
    assert run.attempt
    tail = seen.log_tail or run.attempt.log_tail
    return replace(run.attempt, state=state, reason=reason, last_step=run.step, log_tail=tail)


def _with_last_words(reason: str, seen: Observed) -> str:
    lines = [line for line in seen.log_tail.splitlines() if line.strip()]
    return "\n".join([reason, *lines[-REASON_LINES:]])


def _end(run: RunFacts, state: RunState, reason: str = "", kind: str = "") -> RunFacts:
    return replace(
        run, state=state, admitted=False, reason=reason, kind=kind, waiting_reason="", not_before=None, fruitless=0
    )
