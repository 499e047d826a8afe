"""The SQL of experiments."""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import NamedTuple

from sqlalchemy import ColumnElement, and_, case, func, or_, select, tuple_, update
from sqlalchemy.orm import Session, defer

from service.experiments.wishes import follow
from service.states import FINAL, RunState
from service.tables import TRIAL_REASON, TRIAL_STATE, Arm, Charge, Doomed, Experiment, PoolCharge, Run, Trial


@dataclass
class Tally:
    """An experiment's runs, summed up."""

    counts: dict[RunState, int] = field(default_factory=dict)
    done: float = 0.0
    """Sum over runs of the share that is done."""
    steps: int = 0
    train_seconds: float = 0.0
    steps_left: int = 0
    process_seconds: float = 0.0
    paid_process_seconds: float = 0.0
    """What it cost while this experiment was the home of a run."""
    paid_by_pool: dict[str, float] = field(default_factory=dict)
    """Of that, what is known by node pool."""
    own_steps_left: int = 0

    @property
    def num_runs(self) -> int:
        return sum(self.counts.values())


class ShownTrial(NamedTuple):
    """A seed of an arm, as its experiment sees it."""

    arm_id: int
    seed: int
    run_id: str
    state: RunState
    home_id: str
    step: int
    total_steps: int
    restarts: int
    waiting_reason: str
    reason: str
    tracking_id: str | None
    tracking_run_id: str | None


@dataclass(frozen=True)
class TrackedTrial:
    """A trial and where its run is in MLflow."""

    position: int
    """Of its arm."""
    arm: str
    is_baseline: bool
    seed: int
    run_id: str
    state: RunState
    step: int
    tracking_run_id: str | None
    ended_at: datetime | None


def by_key(session: Session, project: str, key: str) -> Experiment | None:
    query = select(Experiment).where(Experiment.project == project, Experiment.idempotency_key == key)
    return session.scalar(query)


def page(
    session: Session, limit: int, before: tuple[datetime, str] | None, conditions: Iterable[ColumnElement[bool]] = ()
) -> Sequence[Experiment]:
    """Newest first, those that meet the conditions (search.py)."""
    query = select(Experiment).order_by(Experiment.created_at.desc(), Experiment.id.desc()).limit(limit)
    query = query.where(*conditions)
    if before:
        query = query.where(tuple_(Experiment.created_at, Experiment.id) < before)
    return session.scalars(query).all()


def meant_by(session: Session, name: str, project: str | None, limit: int) -> tuple[Sequence[Experiment], int]:
    """Of that name, or with ids that begin so: the one of that id, then the newest; and how many there are."""
    text = name.replace("\0", "")
    named = or_(Experiment.name == text, Experiment.id.startswith(text, autoescape=True))
    # What is deleted goes by its whole id alone.
    is_meant = and_(Experiment.purged_at.is_(None), or_(Experiment.id == text, named & Experiment.deleted_at.is_(None)))
    if project:
        is_meant = and_(is_meant, Experiment.project == project)
    order = (Experiment.id == text).desc(), Experiment.created_at.desc(), Experiment.id.desc()
    found = session.scalars(select(Experiment).where(is_meant).order_by(*order).limit(limit)).all()
    if len(found) < limit:
        return found, len(found)
    return found, session.scalar(select(func.count()).select_from(Experiment).where(is_meant)) or 0


def tallies(session: Session, ids: Iterable[str]) -> dict[str, Tally]:
    """Three statements for any number of experiments."""
    final = TRIAL_STATE.in_(FINAL)
    done: ColumnElement[float] = case((final, 1.0), else_=Run.step * 1.0 / Run.total_steps)
    left: ColumnElement[int] = case((final, 0), else_=Run.total_steps - Run.step)
    is_own = Run.home_id == Trial.experiment_id
    own_left: ColumnElement[int] = case((is_own, left), else_=0)
    rows = session.execute(
        select(
            Trial.experiment_id, TRIAL_STATE, func.count(), func.sum(done), func.sum(Run.step),
            func.sum(Run.train_seconds), func.sum(left), func.sum(Run.process_seconds),
            func.sum(own_left),
        )
        .join(Run, Run.id == Trial.run_id)
        .where(Trial.experiment_id.in_(list(ids)))
        .group_by(Trial.experiment_id, TRIAL_STATE)
    )  # fmt: skip
    found: dict[str, Tally] = {}
    for experiment, state, count, done_sum, steps, train_seconds, left_sum, seconds, own_left_sum in rows:
        tally = found.setdefault(experiment, Tally())
        tally.counts[state] = count
        tally.done += done_sum
        tally.steps += steps
        tally.train_seconds += train_seconds
        tally.steps_left += left_sum
        tally.process_seconds += seconds
        tally.own_steps_left += own_left_sum
    # Also for runs that others have taken the place of since, which measure more.
    paid = select(Charge.experiment_id, func.sum(Charge.process_seconds)).group_by(Charge.experiment_id)
    for experiment, seconds in session.execute(paid.where(Charge.experiment_id.in_(list(found)))):
        found[experiment].paid_process_seconds = seconds
    by_pool = select(PoolCharge.experiment_id, PoolCharge.pool, func.sum(PoolCharge.process_seconds))
    by_pool = by_pool.where(PoolCharge.experiment_id.in_(list(found)))
    for experiment, pool, seconds in session.execute(by_pool.group_by(PoolCharge.experiment_id, PoolCharge.pool)):
        found[experiment].paid_by_pool[pool] = seconds
    return found


def num_arms(session: Session, ids: Iterable[str]) -> dict[str, int]:
    query = select(Arm.experiment_id, func.count()).where(Arm.experiment_id.in_(list(ids))).group_by(Arm.experiment_id)
    return dict(session.execute(query).all())


def arms_and_trials(session: Session, experiment_id: str) -> tuple[Sequence[Arm], list[tuple[Trial, Run]]]:
    rows = session.execute(
        select(Trial, Run)
        .join(Run, Run.id == Trial.run_id)
        # Most of a row is JSON that is not shown.
        .options(*(defer(column) for column in (Run.spec, Run.sessions, Run.result, Run.losses, Run.placement)))
        .where(Trial.experiment_id == experiment_id)
        .order_by(Trial.seed)
    )
    return arms_of(session, experiment_id), [(trial, run) for trial, run in rows]


def arms_of(session: Session, experiment_id: str) -> Sequence[Arm]:
    return session.scalars(select(Arm).where(Arm.experiment_id == experiment_id).order_by(Arm.position)).all()


def shown_trials(session: Session, experiment_id: str) -> list[ShownTrial]:
    """By seed. Columns and not objects: there may be thousands, and pages ask every few seconds."""
    rows = session.execute(
        select(
            Trial.arm_id, Trial.seed, Run.id, TRIAL_STATE, Run.home_id, Run.step, Run.total_steps, Run.restarts,
            case((Run.state == TRIAL_STATE, Run.waiting_reason), else_=""), TRIAL_REASON, Run.tracking_id,
            Run.tracking_run_id,
        )
        .join(Run, Run.id == Trial.run_id)
        .where(Trial.experiment_id == experiment_id)
        .order_by(Trial.seed)
    )  # fmt: skip
    return [ShownTrial(*row) for row in rows]


def tracked_trials(session: Session, experiment_id: str, arms: Collection[int] | None) -> list[TrackedTrial]:
    query = (
        select(
            Arm.position, Arm.name, Arm.is_baseline, Trial.seed, Run.id, TRIAL_STATE, Run.step, Run.tracking_run_id,
            Run.ended_at,
        )
        .join(Trial, Trial.arm_id == Arm.id)
        .join(Run, Run.id == Trial.run_id)
        .where(Arm.experiment_id == experiment_id)
        .order_by(Arm.position, Trial.seed)
    )  # fmt: skip
    rows = session.execute(query if arms is None else query.where(Arm.position.in_(arms)))
    return [TrackedTrial(*row) for row in rows]


def existing_runs(
    session: Session, digests: Iterable[str], private_to: str = "", *, lock: bool = False
) -> dict[str, Run]:  # fmt: skip
    """Digest -> the run that can be used; of several, which a release before told apart, the one that is furthest."""
    # In one order everywhere, so that two writers never wait for each other in a circle.
    query = select(Run).where(Run.digest.in_(list(digests)), Run.private_to == private_to).order_by(Run.id)
    found: dict[str, Run] = {}
    for run in session.scalars(query.with_for_update() if lock else query):
        if run.digest not in found or _usefulness(run) > _usefulness(found[run.digest]):
            found[run.digest] = run
    return found


def _usefulness(run: Run) -> tuple[bool, bool, int]:
    return run.state is RunState.SUCCEEDED, not run.state.is_final, run.step


def trained(session: Session, pretrainings: Iterable[str], private_to: str = "") -> dict[str, str]:
    """Digest of a pretraining -> id of a run that has finished it."""
    query = select(Run.pretraining, Run.id).where(
        Run.pretraining.in_(list(pretrainings)), Run.private_to == private_to, Run.state == RunState.SUCCEEDED
    )
    return dict(session.execute(query.order_by(Run.id.desc())).all())


def taken_ids(session: Session, ids: Iterable[str]) -> set[str]:
    """Also those of deleted runs whose directories are not empty yet."""
    asked = list(ids)
    removing = session.scalars(select(Doomed.run_id).where(Doomed.run_id.in_(asked)))
    return {*session.scalars(select(Run.id).where(Run.id.in_(asked))), *removing}


def trials_of(session: Session, experiment_id: str, *, lock: bool = False) -> list[tuple[Trial, Run, Arm]]:
    """In the order of the request. `lock`: the runs, in one order everywhere."""
    query = (
        select(Trial, Run, Arm)
        .join(Run, Run.id == Trial.run_id)
        .join(Arm, Arm.id == Trial.arm_id)
        .where(Trial.experiment_id == experiment_id)
        .order_by(Run.id)
    )
    rows = session.execute(query.with_for_update(of=Run) if lock else query)
    return sorted(((trial, run, arm) for trial, run, arm in rows), key=lambda row: (row[2].position, row[0].seed))


def requeue(session: Session, runs: Collection[Run], home: str, now: datetime) -> None:
    """Let ended runs go on: what was checkpointed counts, and the next attempt has the next number.

    What was published of them is out of date, in every experiment that uses one.
    """
    for run in runs:
        run.state, run.settled, run.admitted = RunState.QUEUED, False, False
        run.cancel_reason = run.pause_reason = run.reason = run.kind = run.waiting_reason = ""
        run.not_before, run.ended_at, run.fruitless = None, None, 0
        run.home_id = home
        run.next_check_at = now
        # Whoever is still settling its end has lost the right to.
        run.lease_token = run.lease_expires_at = None
    session.execute(update(Trial).where(Trial.run_id.in_([run.id for run in runs])).values(published=False))
    users = select(Trial.experiment_id).where(Trial.run_id.in_([run.id for run in runs]))
    reopen(session, session.scalars(users.distinct()).all(), now)


def reopen(session: Session, ids: Collection[str], now: datetime) -> None:
    """These experiments are looked at again, and published when their runs have ended.

    Whoever is publishing one of them, or about to cancel it, has lost the right to: it looked before this.
    """
    values = {"published": False, "next_check_at": now, "lease_token": None, "lease_expires_at": None}
    # What it is told of anew (service/notify): the end that follows.
    opened = case((Experiment.published, Experiment.opened + 1), else_=Experiment.opened)
    changed = {"revision": Experiment.revision + 1, "opened": opened}
    session.execute(update(Experiment).where(Experiment.id.in_(ids)).values(values | changed))


def cancel(session: Session, experiment: Experiment, reason: str, now: datetime) -> None:
    """Runs that no other live experiment wants are asked to stop; the others find a new home."""
    experiment.cancelled_at, experiment.cancel_reason = now, reason
    experiment.next_check_at = now
    experiment.revision += 1
    follow(session, runs_of(session, experiment.id), now)


def runs_of(session: Session, experiment_id: str) -> Sequence[str]:
    return session.scalars(select(Trial.run_id).where(Trial.experiment_id == experiment_id)).all()
