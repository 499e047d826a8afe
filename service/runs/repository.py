"""The SQL of runs."""

from collections.abc import Sequence
from datetime import datetime

from sqlalchemy import Select, and_, func, select, tuple_
from sqlalchemy.orm import Session, defer

from service.states import RunState
from service.tables import Arm, Attempt, Experiment, Run, Trial


def page(
    session: Session,
    limit: int,
    before: tuple[datetime, str] | None,
    experiment: str | None,
    states: Sequence[RunState],
    project: str | None,
    beginning: str | None = None,
) -> Sequence[Run]:
    """Newest first; those that an experiment, or one of a project, uses, or whose ids begin so."""
    # Most of a row is JSON that a list does not show.
    unseen = (Run.spec, Run.sessions, Run.result, Run.placement)
    query = select(Run).options(*(defer(column) for column in unseen)).order_by(Run.created_at.desc(), Run.id.desc())
    if beginning is not None:
        query = query.where(Run.id.startswith(beginning.replace("\0", ""), autoescape=True))
    if before:
        query = query.where(tuple_(Run.created_at, Run.id) < before)
    if experiment:
        query = query.where(Run.id.in_(select(Trial.run_id).where(Trial.experiment_id == experiment)))
    if states:
        query = query.where(Run.state.in_(states))
    if project:
        query = query.where(Run.id.in_(_used_in(project)))
    return session.scalars(query.limit(limit)).all()


def is_used_in(session: Session, run_id: str, project: str) -> bool:
    return session.scalar(_used_in(project).where(Trial.run_id == run_id).limit(1)) is not None


def beginning_with(session: Session, beginning: str, limit: int, project: str | None) -> Sequence[Run]:
    query = select(Run).where(Run.id.startswith(beginning.replace("\0", ""), autoescape=True))
    if project:
        query = query.where(Run.id.in_(_used_in(project)))
    return session.scalars(query.order_by(Run.id).limit(limit)).all()


def meant_by(session: Session, beginning: str, project: str | None, limit: int) -> tuple[Sequence[Run], int]:
    """With ids that begin so: the one of that id, then the newest; and how many there are."""
    text = beginning.replace("\0", "")
    is_meant = Run.id.startswith(text, autoescape=True)
    if project:
        is_meant = and_(is_meant, Run.id.in_(_used_in(project)))
    unseen = (Run.spec, Run.sessions, Run.result, Run.placement)
    query = select(Run).options(*(defer(column) for column in unseen)).where(is_meant)
    found = session.scalars(query.order_by((Run.id == text).desc(), Run.created_at.desc(), Run.id.desc()).limit(limit))
    rows = found.all()
    if len(rows) < limit:
        return rows, len(rows)
    return rows, session.scalar(select(func.count()).select_from(Run).where(is_meant)) or 0


def attempts(session: Session, run_id: str) -> Sequence[Attempt]:
    return session.scalars(select(Attempt).where(Attempt.run_id == run_id).order_by(Attempt.number)).all()


def used_by(session: Session, run_id: str, project: str | None) -> Sequence[tuple[Experiment, Arm, int]]:
    query = (
        select(Experiment, Arm, Trial.seed)
        .join(Trial, Trial.experiment_id == Experiment.id)
        .join(Arm, Arm.id == Trial.arm_id)
        .where(Trial.run_id == run_id)
        .order_by(Experiment.created_at)
    )
    rows = session.execute(query.where(Experiment.project == project) if project else query)
    return [(experiment, arm, seed) for experiment, arm, seed in rows]


def _used_in(project: str) -> Select[str]:
    """Ids of runs: equal ones are shared, so a run may be used in several projects."""
    return (
        select(Trial.run_id).join(Experiment, Experiment.id == Trial.experiment_id).where(Experiment.project == project)
    )
