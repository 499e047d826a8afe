"""Limits of projects: what an admin has set, and what they have now."""

from sqlalchemy import distinct, func, select
from sqlalchemy.orm import Session

from service.db import Database
from service.errors import TooManyQueued
from service.schemas.retention import ProjectChanges, ProjectLimits, ProjectView
from service.states import FINAL, RunState
from service.tables import Experiment, Project, Run, Trial
from trainer.contract import Problem

NO_LIMITS = ProjectLimits()


def limits_of(session: Session, name: str) -> ProjectLimits:
    row = session.get(Project, name)
    if row is None:
        return NO_LIMITS
    return ProjectLimits(**{limit: getattr(row, limit) for limit in ProjectLimits.model_fields})


def views(session: Session, only: str | None = None) -> list[ProjectView]:
    """Every project that has experiments or limits, by name."""
    rows = session.execute(
        select(Experiment.project, func.count()).where(Experiment.deleted_at.is_(None)).group_by(Experiment.project)
    )
    counts = dict(rows.all())
    names = {*counts, *session.scalars(select(Project.name))} if only is None else {only}
    in_flight, queued = going(session, admitted=True), going(session, admitted=False)
    return [
        ProjectView(
            name=name, experiments=counts.get(name, 0), in_flight=in_flight.get(name, 0), queued=queued.get(name, 0),
            **limits_of(session, name).model_dump(),
        )
        for name in sorted(names)
    ]  # fmt: skip


def change(db: Database, name: str, changes: ProjectChanges) -> ProjectView:
    with db.deciding() as session:
        row = session.get(Project, name)
        if row is None:
            row = Project(name=name)
            session.add(row)
        for limit, value in changes.model_dump(exclude_unset=True).items():
            setattr(row, limit, value)
        session.flush()
        return views(session, name)[0]


def problems_with(session: Session, project: str, priority: int) -> list[Problem]:
    """Of a priority that is asked for."""
    limits = limits_of(session, project)
    if limits.max_priority is None or priority <= limits.max_priority:
        return []
    possible = f"at most {limits.max_priority} in project {project}"
    return [Problem(field="placement.priority", asked=str(priority), possible=possible)]


def refuse_too_many(session: Session, project: str, before: int) -> None:
    """Once a request is written, and not committed; `before`: runs that waited then. Raises TooManyQueued."""
    limits = limits_of(session, project)
    if limits.max_queued is None:
        return
    queued = going(session, admitted=False).get(project, 0)
    if queued > max(before, limits.max_queued):
        raise TooManyQueued(
            f"{before} runs of project {project} wait already, and this would make {queued}; possible: "
            f"{limits.max_queued}. Send it again when some have started, submit fewer runs, or ask an admin for more: "
            f"`mcf project set {project} --max-queued {queued}`."
        )


def max_places(session: Session) -> dict[str, int]:
    """Of the projects that have such a limit."""
    rows = session.execute(select(Project.name, Project.max_places))
    return {name: places for name, places in rows if places is not None}


def going(session: Session, *, admitted: bool) -> dict[str, int]:
    """Project -> runs that train or wait, with a place or without."""
    rows = session.execute(
        select(Experiment.project, func.count(distinct(Run.id)))
        .join(Trial, Trial.experiment_id == Experiment.id)
        .join(Run, Run.id == Trial.run_id)
        .where(~Run.settled, Run.state.not_in((*FINAL, RunState.PAUSED)), Run.admitted == admitted)
        # What goes on for another project takes no place of this one.
        .where(
            Trial.cancel_reason == "",
            Trial.pause_reason == "",
            Experiment.cancelled_at.is_(None),
            Experiment.pause_reason == "",
            Experiment.deleted_at.is_(None),
        )
        .group_by(Experiment.project)
    )
    return dict(rows.all())
