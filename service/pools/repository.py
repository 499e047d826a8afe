"""The SQL of pools."""

from collections.abc import Iterator
from datetime import datetime
from typing import NamedTuple

from sqlalchemy import and_, func, or_, select
from sqlalchemy.orm import Session

from service.states import FINAL, AttemptState, RunState
from service.tables import Arm, Attempt, Experiment, Run, Trial


class Unended(NamedTuple):
    """A run that has not ended, and the first of the experiments that want it."""

    run_id: str
    state: RunState
    holds_a_place: bool
    """Or is being stopped, and then has no claim on one any more."""
    step: int
    total_steps: int
    waiting_reason: str
    created_at: datetime
    experiment_id: str
    experiment: str
    project: str
    priority: int
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
    # Columns and not objects: most of a run is JSON, and there may be thousands.
    rows = session.execute(
        select(
            Run.id,
            Run.state,
            or_(Run.admitted, Run.cancel_reason != ""),
            Run.step,
            Run.total_steps,
            Run.waiting_reason,
            Run.created_at,
            Experiment.id,
            Experiment.name,
            Experiment.project,
            Experiment.priority,
            Arm.name,
            Trial.seed,
            func.coalesce(Attempt.pool, ""),
        )
        .join(Trial, Trial.run_id == Run.id)
        .join(Experiment, Experiment.id == Trial.experiment_id)
        .join(Arm, Arm.id == Trial.arm_id)
        .outerjoin(Attempt, and_(Attempt.run_id == Run.id, Attempt.state.in_(live)))
        # An index finds by the first what the others are asked of.
        .where(
            ~Run.settled, Run.state.not_in(FINAL), Experiment.cancelled_at.is_(None), Experiment.deleted_at.is_(None)
        )
        .where(Trial.cancel_reason == "")
        .order_by(Experiment.priority.desc(), Experiment.created_at, Trial.id)
    )
    seen: set[str] = set()
    for row in map(Unended._make, rows):
        if row.run_id not in seen:
            seen.add(row.run_id)
            yield row
