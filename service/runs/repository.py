"""The SQL of runs."""

from collections.abc import Sequence

from sqlalchemy import select
from sqlalchemy.orm import Session

from service.tables import Arm, Attempt, Experiment, Run, RunState, Trial


def page(
    session: Session, limit: int, after: str | None, experiment: str | None, states: Sequence[RunState]
) -> Sequence[Run]:
    """By id."""
    query = select(Run).order_by(Run.id).limit(limit)
    if after:
        query = query.where(Run.id > after)
    if experiment:
        query = query.where(Run.id.in_(select(Trial.run_id).where(Trial.experiment_id == experiment)))
    if states:
        query = query.where(Run.state.in_(states))
    return session.scalars(query).all()


def beginning_with(session: Session, beginning: str, limit: int) -> Sequence[Run]:
    query = select(Run).where(Run.id.startswith(beginning.replace("\0", ""), autoescape=True))
    return session.scalars(query.order_by(Run.id).limit(limit)).all()


def attempts(session: Session, run_id: str) -> Sequence[Attempt]:
    return session.scalars(select(Attempt).where(Attempt.run_id == run_id).order_by(Attempt.number)).all()


def used_by(session: Session, run_id: str) -> Sequence[tuple[Experiment, Arm, int]]:
    rows = session.execute(
        select(Experiment, Arm, Trial.seed)
        .join(Trial, Trial.experiment_id == Experiment.id)
        .join(Arm, Arm.id == Trial.arm_id)
        .where(Trial.run_id == run_id)
        .order_by(Experiment.created_at)
    )
    return [(experiment, arm, seed) for experiment, arm, seed in rows]
