"""The SQL of pools."""

from collections.abc import Iterator
from dataclasses import dataclass

from sqlalchemy import and_, func, select
from sqlalchemy.orm import Session, defer

from service.states import FINAL, AttemptState
from service.tables import Arm, Attempt, Experiment, Run, Trial


@dataclass(frozen=True)
class Unended:
    """A run that has not ended, and the first of the experiments that want it."""

    run: Run
    experiment: Experiment
    arm: str
    seed: int
    pool: str


def attempts_by_pool(session: Session) -> dict[tuple[str, AttemptState], int]:
    """Attempts that live, by pool and state."""
    live = [state for state in AttemptState if state.is_live]
    rows = session.execute(
        select(Attempt.pool, Attempt.state, func.count())
        .where(Attempt.state.in_(live))
        .group_by(Attempt.pool, Attempt.state)
    )
    return {(pool, state): count for pool, state, count in rows}


def unended(session: Session) -> Iterator[Unended]:
    """In the order in which places are given out (reconciler/repository.waiting), each run once."""
    live = [state for state in AttemptState if state.is_live]
    rows = session.execute(
        select(Run, Experiment, Arm.name, Trial.seed, Attempt.pool)
        .join(Trial, Trial.run_id == Run.id)
        .join(Experiment, Experiment.id == Trial.experiment_id)
        .join(Arm, Arm.id == Trial.arm_id)
        .outerjoin(Attempt, and_(Attempt.run_id == Run.id, Attempt.state.in_(live)))
        .options(*(defer(column) for column in (Run.spec, Run.sessions, Run.result, Experiment.spec)))
        .where(Run.state.not_in(FINAL), Experiment.cancelled_at.is_(None), Experiment.deleted_at.is_(None))
        .where(Trial.cancel_reason == "")
        .order_by(Experiment.priority.desc(), Experiment.created_at, Trial.id)
    )
    seen: set[str] = set()
    for run, experiment, arm, seed, pool in rows:
        if run.id not in seen:
            seen.add(run.id)
            yield Unended(run, experiment, arm, seed, pool or "")
