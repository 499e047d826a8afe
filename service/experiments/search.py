"""Which experiments a list is to show: what was asked for, as conditions of SQL, so that a page of it is a full one."""

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import ColumnElement, String, and_, case, cast, exists, or_, select
from sqlalchemy.orm import Session

from service.experiments.views import IN_FLIGHT
from service.schemas.experiments import ExperimentState
from service.states import RunState
from service.tables import Experiment, Run, Trial


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

    def conditions(self) -> list[ColumnElement[bool]]:
        found: list[ColumnElement[bool]] = []
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
    return session.scalars(select(Experiment.project).distinct().order_by(Experiment.project)).all()


def _sent(text: str) -> str:
    """PostgreSQL takes no NUL."""
    return text.replace("\0", "")


def _has(*states: RunState) -> ColumnElement[bool]:
    """A run of the experiment is in one of the states."""
    run = select(Trial.id).join(Run, Run.id == Trial.run_id)
    return exists(run.where(Trial.experiment_id == Experiment.id, Run.state.in_(states)))


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
            (_has(*(state for state in RunState if state is not RunState.QUEUED)), ExperimentState.RUNNING.value),
            else_=ExperimentState.QUEUED.value,
        ),
    ),
    (_LOOK_TO_COME, ExperimentState.RUNNING.value),
    (_has(RunState.FAILED), ExperimentState.FAILED.value),
    (_has(RunState.CANCELLED), ExperimentState.CANCELLED.value),
    else_=ExperimentState.SUCCEEDED.value,
)
"""The state of an experiment: views.state_of, case by case, as SQL. A test holds the two together."""
