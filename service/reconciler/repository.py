"""The reconciler's SQL: leases, facts, and writes that a stale lease cannot make."""

import uuid
from collections.abc import Collection, ItemsView, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import ColumnElement, and_, bindparam, case, distinct, func, or_, select, update
from sqlalchemy.orm import Session, aliased, load_only

from service import projects
from service.reconciler.admission import Taken, Waiting
from service.reconciler.facts import AttemptFacts, RunFacts
from service.states import FINAL, AttemptState, RunState
from service.tables import TRIAL_STATE, Arm, Attempt, Charge, Experiment, PoolCharge, Run, Trial
from trainer.contract import Placement, RunSpec


@dataclass(frozen=True)
class RunLease:
    """A run that is ours until the lease expires, with all that is needed to look at it."""

    token: str
    run: Run
    attempt: Attempt | None
    home: Experiment
    arm: Arm
    seed: int
    due_at: datetime
    """When it was due. Another time meanwhile: somebody wants it to be looked at again at once."""


@dataclass(frozen=True)
class ExperimentLease:
    token: str
    experiment: Experiment


def lease_runs(session: Session, now: datetime, seconds: float, limit: int) -> list[RunLease]:
    """Take runs that are due: in flight, to be cancelled, paused or resumed, or ended but not yet settled."""
    wanted = or_(
        Run.admitted, Run.cancel_reason != "", Run.state.in_(FINAL),
        # To be paused, or to go on.
        (Run.pause_reason != "") != (Run.state == RunState.PAUSED),
    )  # fmt: skip
    due = select(Run.id).where(~Run.settled, Run.next_check_at <= now, _free(Run, now), wanted)
    token = uuid.uuid4().hex
    ids = session.scalars(due.order_by(Run.next_check_at).limit(limit).with_for_update(skip_locked=True)).all()
    if not ids:
        return []
    expires = now + timedelta(seconds=seconds)
    session.execute(update(Run).where(Run.id.in_(ids)).values(lease_token=token, lease_expires_at=expires))
    attempts = {
        attempt.run_id: attempt
        for attempt in session.scalars(select(Attempt).where(Attempt.run_id.in_(ids)).order_by(Attempt.number))
    }
    homes = (
        select(Run, Experiment, Arm, Trial.seed)
        .join(Experiment, Experiment.id == Run.home_id)
        .join(Trial, and_(Trial.run_id == Run.id, Trial.experiment_id == Run.home_id))
        .join(Arm, Arm.id == Trial.arm_id)
        .where(Run.id.in_(ids))
        .order_by(Run.next_check_at)
    )
    return [
        RunLease(token, run, attempts.get(run.id), home, arm, seed, run.next_check_at)
        for run, home, arm, seed in session.execute(homes)
    ]


def lease_experiments(session: Session, now: datetime, seconds: float, limit: int) -> list[ExperimentLease]:
    due = select(Experiment.id).where(~Experiment.published, Experiment.next_check_at <= now, _free(Experiment, now))
    ids = session.scalars(due.order_by(Experiment.next_check_at).limit(limit).with_for_update(skip_locked=True)).all()
    token = uuid.uuid4().hex
    values = {"lease_token": token, "lease_expires_at": now + timedelta(seconds=seconds)}
    session.execute(update(Experiment).where(Experiment.id.in_(ids)).values(values))
    found = session.scalars(select(Experiment).where(Experiment.id.in_(ids)))
    return [ExperimentLease(token, experiment) for experiment in found]


def facts(lease: RunLease) -> RunFacts:
    run, row = lease.run, lease.attempt
    attempt = None
    if row:
        attempt = AttemptFacts(
            row.number, row.pool, row.state, row.confirmed, row.first_step, row.last_step, row.reason, row.log_tail
        )
    return RunFacts(
        state=run.state,
        admitted=run.admitted,
        cancel_reason=run.cancel_reason,
        pause_reason=run.pause_reason,
        pools=tuple(Placement.model_validate(run.placement).pools),
        not_before=run.not_before,
        fruitless=run.fruitless,
        step=run.step,
        reason=run.reason,
        kind=run.kind,
        waiting_reason=run.waiting_reason,
        attempt=attempt,
    )


def write_run(
    session: Session, lease: RunLease, values: dict[str, Any], attempt: AttemptFacts | None, now: datetime
) -> bool:
    """Write what was decided. False, and nothing written, when the lease is no longer ours."""
    owned = update(Run).where(Run.id == lease.run.id, Run.lease_token == lease.token)
    if "next_check_at" in values:
        values = values | {"next_check_at": _unless_wanted_sooner(lease.due_at, values["next_check_at"])}
    home = session.scalar(owned.values(values).returning(Run.home_id))
    if home is None:
        return False
    if "process_seconds" in values:
        _charge(session, lease.run.id, home, values["process_seconds"])
    if "pool_seconds" in values:
        _charge_by_pool(session, lease.run.id, home, values["pool_seconds"])
    if attempt:
        row = session.get(Attempt, (lease.run.id, attempt.number))
        if row is None:
            row = Attempt(run_id=lease.run.id, number=attempt.number, created_at=now)
            session.add(row)
        row.state, row.confirmed, row.reason = attempt.state, attempt.confirmed, attempt.reason
        row.first_step, row.last_step = attempt.first_step, attempt.last_step
        row.pool, row.log_tail = attempt.pool, attempt.log_tail
        if not attempt.is_live and row.ended_at is None:
            row.ended_at = now
    return True


def give_back(session: Session, looks: Sequence[tuple[RunLease, datetime]]) -> None:
    """Runs of which nothing is new, and when they are due again; not those whose lease is no longer ours."""
    at = Run.next_check_at.type
    due, later = bindparam("due", type_=at), bindparam("later", type_=at)
    mine = update(Run).where(Run.id == bindparam("run"), Run.lease_token == bindparam("token"))
    values = {"lease_token": None, "lease_expires_at": None, "next_check_at": _unless_wanted_sooner(due, later)}
    rows = [{"run": lease.run.id, "token": lease.token, "due": lease.due_at, "later": at_} for lease, at_ in looks]
    session.connection().execute(mine.values(values), rows)


def _unless_wanted_sooner(due: Any, later: Any) -> ColumnElement[datetime]:
    """What has come up since the run was leased sets it to be looked at at once (`look_soon`, requests of people)."""
    return case((Run.next_check_at == due, later), else_=Run.next_check_at)


def _charge(session: Session, run_id: str, home: str, process_seconds: float) -> None:
    """Of all that the run has cost, the home pays what no other experiment has paid before."""
    charges = {row.experiment_id: row for row in session.scalars(select(Charge).where(Charge.run_id == run_id))}
    own = charges.setdefault(home, Charge(run_id=run_id, experiment_id=home, process_seconds=0.0))
    session.add(own)
    others = sum(row.process_seconds for row in charges.values() if row is not own)
    own.process_seconds = max(0.0, process_seconds - others)


def _charge_by_pool(session: Session, run_id: str, home: str, pool_seconds: Mapping[str, float]) -> None:
    rows = session.scalars(select(PoolCharge).where(PoolCharge.run_id == run_id)).all()
    for pool, seconds in pool_seconds.items():
        own = next((row for row in rows if (row.pool, row.experiment_id) == (pool, home)), None)
        if own is None:
            own = PoolCharge(run_id=run_id, experiment_id=home, pool=pool, process_seconds=0.0)
            session.add(own)
        others = sum(row.process_seconds for row in rows if row.pool == pool and row is not own)
        own.process_seconds = max(0.0, seconds - others)


def write_experiment(session: Session, lease: ExperimentLease, values: dict[str, Any]) -> bool:
    """False, and nothing written, when the lease is no longer ours."""
    owned = update(Experiment).where(Experiment.id == lease.experiment.id, Experiment.lease_token == lease.token)
    written = owned.values({**values, "lease_token": None, "lease_expires_at": None}).returning(Experiment.id)
    return session.scalar(written) is not None


def renew(session: Session, lease: ExperimentLease, expires: datetime, published: Trial | None) -> bool:
    """False, and nothing written, when the lease is no longer ours; else it holds on, and the trial is published."""
    owned = update(Experiment).where(Experiment.id == lease.experiment.id, Experiment.lease_token == lease.token)
    if session.scalar(owned.values(lease_expires_at=expires).returning(Experiment.id)) is None:
        return False
    if published:
        session.execute(update(Trial).where(Trial.id == published.id).values(published=True))
    return True


def still_leased(session: Session, lease: ExperimentLease) -> Experiment | None:
    """The experiment, locked; None when the lease is no longer ours."""
    query = select(Experiment).where(Experiment.id == lease.experiment.id, Experiment.lease_token == lease.token)
    return session.scalar(query.with_for_update(key_share=True))


def published_with_a_look_to_come(session: Session) -> list[str]:
    """Experiments whose seeds come in rounds, and which somebody took for over."""
    query = select(Experiment).where(Experiment.published, Experiment.cancelled_at.is_(None))
    # Two JSON columns of each, once at a start: what is JSON is asked for in other words by each database.
    rows = session.scalars(query.options(load_only(Experiment.spec, Experiment.looks)))
    return [row.id for row in rows if row.has_look_to_come]


def published_without(session: Session, run_id: str) -> Sequence[str]:
    """Experiments that are over and had cancelled this run by itself."""
    query = select(Experiment.id).join(Trial, Trial.experiment_id == Experiment.id)
    query = query.where(Trial.run_id == run_id, Trial.cancel_reason != "", Experiment.published)
    return session.scalars(query.where(Experiment.purged_at.is_(None)).distinct()).all()


# A run that is settled waits for nothing and holds no place. Said in each query, as an index finds the others by it:
# without, every tick would read all runs there have ever been.
GOING = (~Run.settled, Run.state.not_in(FINAL))
WITHOUT_A_PLACE = (
    *GOING, ~Run.admitted, Run.state != RunState.PAUSED, Run.cancel_reason == "", Run.pause_reason == "",
)  # fmt: skip
# A trial that wants its run (service/experiments/wishes.py).
WANTS = (
    Trial.cancel_reason == "", Trial.pause_reason == "", Experiment.cancelled_at.is_(None),
    Experiment.pause_reason == "", Experiment.deleted_at.is_(None),
)  # fmt: skip


def is_anything_waiting(session: Session) -> bool:
    query = select(Run.id).where(*WITHOUT_A_PLACE).limit(1)
    return session.scalar(query) is not None


def waiting(session: Session) -> list[Waiting]:
    """Runs without a place, the first to get one first."""
    rows = session.execute(
        select(
            Run.id,
            Run.waiting_reason,
            Experiment.id,
            Experiment.name,
            Experiment.concurrency,
            Experiment.project,
            _weights(),
        )
        .join(Trial, Trial.run_id == Run.id)
        .join(Experiment, Experiment.id == Trial.experiment_id)
        .where(*WITHOUT_A_PLACE, *WANTS)
        .order_by(Experiment.priority.desc(), Experiment.created_at, Trial.id)
    )
    return [Waiting(*row) for row in rows]


def in_flight(session: Session) -> Taken:
    """Runs that hold a place."""
    total = session.scalar(select(func.count()).select_from(Run).where(*GOING, Run.admitted)) or 0
    by_experiment = session.execute(
        select(Trial.experiment_id, func.count(distinct(Run.id)))
        .join(Run, Run.id == Trial.run_id)
        .where(*GOING, Run.admitted, Trial.cancel_reason == "", Trial.pause_reason == "")
        .group_by(Trial.experiment_id)
    )
    return Taken(total, dict(by_experiment.all()), projects.going(session, admitted=True))


def training(session: Session) -> dict[str, str]:
    """Weights that a run with a place trains, as `waiting` calls them -> that run."""
    rows = session.execute(select(_weights(), Run.id).where(*GOING, Run.admitted))
    return {weights: run_id for weights, run_id in rows if weights}


def weights_for(session: Session, run_ids: Collection[str]) -> dict[str, str]:
    """Run -> the ended run of the same pretraining that it starts from, where there is one.

    One that has finished comes before all others, and of those the one with most of the measurements that are wanted.
    """
    found = {}
    for run in session.scalars(select(Run).where(Run.id.in_(run_ids), Run.pretraining != "")):
        wanted = RunSpec.model_validate(run.spec).measurements.items()
        others = session.scalars(
            select(Run).where(
                Run.pretraining == run.pretraining, Run.private_to == run.private_to, Run.id != run.id,
                Run.state.in_(FINAL), Run.step > 0,
            )
        )  # fmt: skip

        def useful(other: Run, wanted: ItemsView[str, str] = wanted) -> tuple[bool, int, int]:
            shared = wanted & RunSpec.model_validate(other.spec).measurements.items()
            return other.state is RunState.SUCCEEDED, len(shared), other.step

        if best := max(others, key=useful, default=None):
            found[run.id] = best.id
    return found


def usage(session: Session, experiment_id: str) -> tuple[float, int, int]:
    """Of an experiment: process-seconds it has paid for, runs that go on, runs not settled yet."""
    paid = select(func.sum(Charge.process_seconds)).where(Charge.experiment_id == experiment_id)
    going = func.count().filter(TRIAL_STATE.not_in(FINAL))
    # What was cancelled here and goes on elsewhere keeps nobody here waiting.
    given_away = and_(
        or_(Trial.cancel_reason != "", Experiment.cancelled_at.is_not(None)), Run.home_id != experiment_id
    )
    unsettled = func.count().filter(~Run.settled, ~given_away)
    trials = (
        select(going, unsettled)
        .select_from(Trial)
        .join(Run, Run.id == Trial.run_id)
        .join(Experiment, Experiment.id == Trial.experiment_id)
    )
    row = session.execute(trials.where(Trial.experiment_id == experiment_id)).one()
    return session.scalar(paid) or 0.0, row[0], row[1]


def look_soon(session: Session, names: Collection[str], now: datetime) -> None:
    """Runs of these attempts have news: they are due, even if they are being looked at just now."""
    runs = {name.rpartition("-")[0] for name in names}
    session.execute(update(Run).where(Run.id.in_(runs), ~Run.settled).values(next_check_at=now))


def ended_attempts(session: Session, names: Sequence[str]) -> list[str]:
    """Of attempts that live at the scheduler, those that the database has closed."""
    keys = [(run_id, int(number)) for run_id, _, number in (name.rpartition("-") for name in names) if number.isdigit()]
    rows = session.scalars(select(Attempt).where(Attempt.run_id.in_({run_id for run_id, _ in keys})))
    return [row.name for row in rows if (row.run_id, row.number) in keys and not AttemptState(row.state).is_live]


def _weights() -> ColumnElement[str]:
    """The same for runs of the same pretraining; empty where a run has finished it."""
    other = aliased(Run)
    finished = (
        select(other.id)
        .where(
            other.pretraining == Run.pretraining, other.private_to == Run.private_to,
            other.state == RunState.SUCCEEDED,
        )
        .exists()
    )  # fmt: skip
    unknown = or_(Run.pretraining == "", finished)
    return case((unknown, ""), else_=Run.private_to + " " + Run.pretraining)


def _free(table: type[Run] | type[Experiment], now: datetime) -> Any:
    return or_(table.lease_expires_at.is_(None), table.lease_expires_at <= now)
