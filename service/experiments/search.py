"""Which experiments a list is to show: what was asked for, as conditions of SQL, so that a page of it is a full one."""

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import ColumnElement, String, and_, case, cast, exists, or_, select
from sqlalchemy.orm import Session

from service.experiments.views import IN_FLIGHT, WAITS
from service.schemas.experiments import ExperimentState
from service.states import RunState
from service.tables import TRIAL_STATE, Experiment, Run, Trial


@dataclass(frozen=True)
class Search:
    """What is asked for; nothing of it = every experiment."""

    project: str | None = None
    states: tuple[ExperimentState, ...] = ()
    """Any of these."""
    words: str = ""
    """Part of a name, or the beginning of an id."""
    name: str | None = None
    """All of a name."""
    prefix: str | None = None
    """The beginning of an id."""
    deleted: bool = False
    """Those that can be restored, and no others."""

    def conditions(self) -> list[ColumnElement[bool]]:
        is_deleted = Experiment.deleted_at.is_not(None) if self.deleted else Experiment.deleted_at.is_(None)
        found: list[ColumnElement[bool]] = [Experiment.purged_at.is_(None), is_deleted]
        if self.project:
            found.append(Experiment.project == self.project)
        if self.states:
            found.append(STATE.in_(self.states))
        if words := _sent(self.words).strip().lower():
            # Names and ids are in lower case.
            of_id = Experiment.id.startswith(words, autoescape=True)
            found.append(or_(Experiment.name.contains(words, autoescape=True), of_id))
        if self.name is not None:
            found.append(Experiment.name == _sent(self.name))
        if self.prefix is not None:
            found.append(Experiment.id.startswith(_sent(self.prefix), autoescape=True))
        return found


def projects(session: Session) -> Sequence[str]:
    """All that have an experiment."""
    there = select(Experiment.project).where(Experiment.deleted_at.is_(None))
    return session.scalars(there.distinct().order_by(Experiment.project)).all()


def _sent(text: str) -> str:
    """PostgreSQL takes no NUL."""
    return text.replace("\0", "")


def _has(*states: RunState) -> ColumnElement[bool]:
    """A run of the experiment is in one of the states."""
    run = select(Trial.id).join(Run, Run.id == Trial.run_id)
    return exists(run.where(Trial.experiment_id == Experiment.id, TRIAL_STATE.in_(states)))


# As Experiment.has_look_to_come. Of looks only the last one may have given nobody more; all else in them is ids, times
# and lists of seeds, so that text can be looked for, which is the same in SQLite and in PostgreSQL.
_LOOK_TO_COME = and_(
    Experiment.spec[("seeds", "rounds")].as_string().is_not(None),
    ~cast(Experiment.looks, String).contains('"on": []'),
)  # fmt: skip

STATE: ColumnElement[str] = case(
    (Experiment.cancelled_at.is_not(None), ExperimentState.CANCELLED.value),
    (_has(*IN_FLIGHT), ExperimentState.RUNNING.value),
    (
        _has(RunState.QUEUED),
        case(
            (_has(*(state for state in RunState if state not in WAITS)), ExperimentState.RUNNING.value),
            else_=ExperimentState.QUEUED.value,
        ),
    ),
    (or_(_has(RunState.PAUSED), and_(Experiment.pause_reason != "", _LOOK_TO_COME)), ExperimentState.PAUSED.value),
    (_LOOK_TO_COME, ExperimentState.RUNNING.value),
    (_has(RunState.FAILED), ExperimentState.FAILED.value),
    (
        and_(_has(RunState.CANCELLED), ~_has(*(state for state in RunState if state is not RunState.CANCELLED))),
        ExperimentState.CANCELLED.value,
    ),
    else_=ExperimentState.SUCCEEDED.value,
)
"""The state of an experiment: views.state_of, case by case, as SQL. A test holds the two together."""
