"""What is done to an experiment after it was submitted: cancel, pause, resume, retry, change; whole, or some of it.

Nothing here stops or starts a run: it is written down what the experiment wants, and the reconciler does it.
"""

from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from sqlalchemy.orm import Session

from k8s.pools import Pool
from service import projects
from service.db import Database
from service.errors import (
    AlreadyEnded,
    Ambiguous,
    InvalidSpec,
    NotFound,
    NothingToResume,
    NothingToRetry,
    Unavailable,
)
from service.experiments import repository, views
from service.experiments.placing import misplaced
from service.experiments.service import get, refuse_deleted
from service.experiments.wishes import follow
from service.runs import repository as runs
from service.schemas.experiments import Changes, Part
from service.settings import Settings
from service.states import RunAction, RunState
from service.tables import Arm, Experiment, Run, Trial
from trainer.contract import ExperimentSpec, Placement, Problem
from trainer.contract.records import FAULT, OUT_OF_MEMORY, OUTCOME
from trainer.store.objects import StorageError, open_store

WHOLE = Part()
SOMEBODY = "request"
"""Who asks where nobody is asked for a token."""


@dataclass(frozen=True)
class Chosen:
    """One trial that an action is about."""

    trial: Trial
    run: Run
    arm: Arm

    @property
    def state(self) -> RunState:
        return self.trial.state_of(self.run)


def act(
    db: Database, settings: Settings, experiment_id: str, action: RunAction, by: str = SOMEBODY, part: Part = WHOLE
) -> None:  # fmt: skip
    """One of the four below, and raises what it raises."""
    match action:
        case RunAction.CANCEL:
            cancel(db, experiment_id, by, part)
        case RunAction.PAUSE:
            pause(db, experiment_id, by, part)
        case RunAction.RESUME:
            resume(db, experiment_id, part)
        case RunAction.RETRY:
            retry(db, settings, experiment_id, part)


def cancel(db: Database, experiment_id: str, by: str = SOMEBODY, part: Part = WHOLE) -> None:
    """Cancel what no other experiment wants; doing it again is harmless.

    Arms that are named get no seeds later. Raises NotFound, InvalidSpec, AlreadyEnded.
    """
    reason = f"cancelled by {by}"
    with db.deciding() as session:
        experiment = _mine(session, experiment_id)
        if experiment.cancelled_at:
            return
        if part.is_whole:
            _refuse_ended(session, experiment, "cancel")
            repository.cancel(session, experiment, reason, _now())
            return
        chosen = _chosen(session, experiment, part)
        was = any(item.trial.cancel_reason for item in chosen)
        # Its seeds so far may have ended, and more would come.
        comes = bool(part.arms) and experiment.has_look_to_come
        going = _going(experiment, chosen, "cancel", but=was or comes)
        named = {item.arm.id: item.arm for item in chosen if item.arm.name in part.arms}
        if experiment.has_look_to_come and any(arm.is_baseline for arm in named.values()):
            raise AlreadyEnded(
                f"The baseline of {experiment_id} is what the looks hold the other arms against. Cancel the whole "
                "experiment, or single runs."
            )
        for arm in named.values():
            arm.cancel_reason = arm.cancel_reason or reason
        for item in going:
            item.trial.cancel_reason, item.trial.pause_reason = reason, ""
        _done(session, experiment, going)


def pause(db: Database, experiment_id: str, by: str = SOMEBODY, part: Part = WHOLE) -> None:
    """What trains writes a checkpoint and makes room, and nothing of it starts until it is resumed.

    A run that another experiment wants goes on. Doing it again is harmless. Raises NotFound, InvalidSpec, AlreadyEnded.
    """
    reason = f"paused by {by}"
    with db.deciding() as session:
        experiment = _mine(session, experiment_id)
        chosen = _chosen(session, experiment, part)
        going = _going(experiment, chosen, "pause", but=part.is_whole and experiment.has_look_to_come)
        if part.is_whole:
            experiment.pause_reason = experiment.pause_reason or reason
        else:
            for item in going:
                item.trial.pause_reason = item.trial.pause_reason or reason
        _done(session, experiment, chosen)


def resume(db: Database, experiment_id: str, part: Part = WHOLE) -> None:
    """Paused runs are queued again, and go on from their checkpoints. Raises NotFound, InvalidSpec, NothingToResume."""
    with db.deciding() as session:
        experiment = _mine(session, experiment_id)
        everything = _chosen(session, experiment, WHOLE)
        chosen = everything if part.is_whole else _chosen(session, experiment, part)
        paused = [item for item in chosen if item.trial.pause_reason or experiment.pause_reason]
        if not experiment.pause_reason and not paused:
            raise NothingToResume(f"Nothing of {experiment_id} that you name is paused.")
        if experiment.pause_reason and not part.is_whole:
            # The others stay paused, each by itself.
            for item in (item for item in everything if not item.state.is_final):
                item.trial.pause_reason = item.trial.pause_reason or experiment.pause_reason
        experiment.pause_reason = ""
        for item in chosen:
            item.trial.pause_reason = ""
        _done(session, experiment, everything)


def retry(db: Database, settings: Settings, experiment_id: str, part: Part = WHOLE) -> None:
    """Queue the failed runs again, from their last checkpoints; of runs and arms that are named also cancelled ones.

    Raises NotFound, InvalidSpec, NothingToRetry, Unavailable.
    """
    wanted = (RunState.FAILED,) if part.is_whole else (RunState.FAILED, RunState.CANCELLED)
    with db.read() as session:
        experiment = get(session, experiment_id)
        refuse_deleted(experiment)
        chosen = _chosen(session, experiment, part, lock=False)
        ended = [item.run.id for item in chosen if item.state in wanted and item.run.state.is_final]
        stopped = [item.arm.id for item in chosen if item.arm.name in part.arms and item.arm.cancel_reason]
    if experiment.cancelled_at:
        raise NothingToRetry(
            f"Experiment {experiment_id} was cancelled. Submit it again: finished runs are shared and cost nothing."
        )
    if not stopped and not any(item.state in wanted for item in chosen):
        there = _there(chosen)
        what = f"Experiment {experiment_id} has" if part.is_whole else "What you name has"
        raise NothingToRetry(f"{what} no {' or '.join(wanted)} run (there: {there}).")
    # Before the database says queued: a trainer that finds an outcome believes it and does not train.
    try:
        for id in ended:
            open_store(settings.run_uri(id)).delete([OUTCOME, OUT_OF_MEMORY, FAULT])
    except StorageError as error:
        raise Unavailable(f"The store does not answer, so nothing was queued: {error}") from error
    with db.deciding() as session:
        experiment = _mine(session, experiment_id)
        chosen = _chosen(session, experiment, part)
        again = [item for item in chosen if item.state in wanted]
        if late := [item.run.id for item in again if item.run.state.is_final and item.run.id not in ended]:
            raise Unavailable(f"{', '.join(late)} ended meanwhile, so nothing was queued. Ask again.")
        for item in again:
            item.trial.cancel_reason = item.trial.pause_reason = ""
        for item in chosen:
            if item.arm.id in stopped:
                item.arm.cancel_reason = ""
        back = [item.run for item in again if item.run.id in ended and item.run.state.is_final]
        repository.requeue(session, back, experiment_id, _now())
        _done(session, experiment, again)


def change(db: Database, experiment_id: str, changes: Changes, pools: Mapping[str, Pool] | None) -> None:
    """Other priority, concurrency, cap or pool for what has not ended. Raises NotFound, InvalidSpec, AlreadyEnded.

    A run that another experiment has brought here keeps that one's pool.
    """
    asked: dict[str, Any] = changes.model_dump(exclude_unset=True)
    with db.deciding() as session:
        experiment = _mine(session, experiment_id)
        _refuse_ended(session, experiment, "change")
        mine = [item.run for item in _chosen(session, experiment, WHOLE) if item.run.home_id == experiment_id]
        going = [run for run in mine if not run.state.is_final]
        was = experiment.spec
        placement = was["placement"] | {name: asked[name] for name in ("priority", "pool") if name in asked}
        if problems := projects.problems_with(session, experiment.project, placement["priority"]):
            raise InvalidSpec("; ".join(map(str, problems)), problems=problems)
        if "pool" in asked:
            _refuse_pool(Placement.model_validate(placement), pools, going)
        spec = was | {name: asked[name] for name in ("concurrency", "gpu_hours") if name in asked}
        _refuse_spent(session, experiment, asked.get("gpu_hours"))
        # As it would be read again.
        experiment.spec = ExperimentSpec.model_validate(spec | {"placement": placement}).model_dump(mode="json")
        experiment.concurrency, experiment.gpu_hours = experiment.spec["concurrency"], experiment.spec["gpu_hours"]
        experiment.priority = experiment.spec["placement"]["priority"]
        for run in going if "pool" in asked else ():
            run.placement = {**run.placement, "pool": experiment.spec["placement"]["pool"]}
            run.next_check_at = _now()
        # Whoever looks at it now has read the old cap.
        repository.reopen(session, [experiment_id], _now())


def experiment_of(db: Database, run_id: str, project: str | None, asked: str | None) -> str:
    """The experiment that an action on a run is about: the one asked for, or the only one that uses it.

    Raises NotFound, Ambiguous.
    """
    with db.read() as session:
        users = {experiment.id: experiment for experiment, _, _ in runs.used_by(session, run_id, project)}
    if asked is not None and asked not in users:
        raise NotFound(f"Run {run_id} is not of experiment {asked!r}, but of {', '.join(users) or 'none'}.")
    # One that was cancelled or deleted wants nothing any more.
    gone = {id for id, experiment in users.items() if experiment.cancelled_at or experiment.deleted_at}
    live = [id for id in users if id not in gone] or list(users)
    if asked is None and len(live) != 1:
        raise Ambiguous(
            f"Run {run_id} is shared by {', '.join(f'{id} ({users[id].name})' for id in live)}. Say which of them no "
            "longer wants it: for the others it goes on."
        )
    return asked or live[0]


def _mine(session: Session, experiment_id: str) -> Experiment:
    """Locked. Raises NotFound, Deleted."""
    experiment = get(session, experiment_id, lock=True)
    refuse_deleted(experiment)
    return experiment


def _chosen(session: Session, experiment: Experiment, part: Part, *, lock: bool = True) -> list[Chosen]:
    """Raises InvalidSpec with everything that is named and not there."""
    rows = [Chosen(*row) for row in repository.trials_of(session, experiment.id, lock=lock)]
    if part.is_whole:
        return rows
    arms, ids = list(dict.fromkeys(item.arm.name for item in rows)), [item.run.id for item in rows]
    problems = [*_unknown("arms", part.arms, arms), *_unknown("runs", part.runs, ids)]
    if problems:
        raise InvalidSpec(f"{experiment.id} has not all of that: {'; '.join(map(str, problems))}", problems=problems)
    return [item for item in rows if item.arm.name in part.arms or item.run.id in part.runs]


def _unknown(field: str, asked: Iterable[str], there: Collection[str]) -> Iterable[Problem]:
    some = ", ".join(list(there)[:10]) + (f" and {len(there) - 10} more" if len(there) > 10 else "")
    return (Problem(field=field, asked=repr(name), possible=some) for name in asked if name not in there)


def _going(experiment: Experiment, chosen: Iterable[Chosen], what: str, *, but: bool) -> list[Chosen]:
    """Those that have not ended. Raises AlreadyEnded where there is none; `but`: not then."""
    chosen = list(chosen)
    going = [item for item in chosen if not item.state.is_final]
    if experiment.cancelled_at or not (going or but):
        raise AlreadyEnded(
            f"All that you name of {experiment.id} has ended ({_there(chosen)}): there is nothing to {what}."
        )
    return going


def _there(chosen: Iterable[Chosen]) -> str:
    """`2 succeeded, 1 failed`."""
    return ", ".join(f"{count} {state}" for state, count in Counter(item.state for item in chosen).items())


def _refuse_ended(session: Session, experiment: Experiment, what: str) -> None:
    counts = repository.tallies(session, [experiment.id])[experiment.id].counts
    state = views.state_of(experiment, counts)
    if state.is_final:
        raise AlreadyEnded(f"Experiment {experiment.id} has already {state.value}: there is nothing left to {what}.")


def _refuse_pool(placement: Placement, pools: Mapping[str, Pool] | None, going: Iterable[Run]) -> None:
    if pools is None:
        possible = "nothing here: runs are processes of the service's machine, which has no pools"
        problems = [Problem(field="pool", asked=", ".join(placement.pools), possible=possible)]
    else:
        needs_gpu = any(run.spec["data"].get("decoder") == "nvjpeg" for run in going)
        problems = list(misplaced(placement, pools, needs_gpu=needs_gpu))
    if problems:
        raise InvalidSpec("; ".join(map(str, problems)), problems=problems)


def _refuse_spent(session: Session, experiment: Experiment, cap: float | None) -> None:
    used = repository.tallies(session, [experiment.id])[experiment.id].paid_process_seconds / 3600
    if cap is not None and cap <= used:
        possible = f"more than the {used:.3g} that are used; to stop it, cancel or pause it"
        raise InvalidSpec(
            f"gpu_hours: asked {cap:g}, possible: {possible}",
            problems=[Problem(field="gpu_hours", asked=f"{cap:g}", possible=possible)],
        )


def _done(session: Session, experiment: Experiment, chosen: Iterable[Chosen]) -> None:
    """The runs are told, and the experiment is looked at anew: it may be over, or go on."""
    follow(session, [item.run.id for item in chosen], _now())
    repository.reopen(session, [experiment.id], _now())


def _now() -> datetime:
    return datetime.now(UTC)
