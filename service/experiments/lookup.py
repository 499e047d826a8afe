"""What somebody means by a name: one experiment or one run, never a guess among several.

An id means what has it. Anything else is the beginning of an id, or the name of an experiment, and has to mean one
thing: `mcf cancel masks` must not stop the wrong one of two.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy.orm import Session

from service.db import Database
from service.errors import Ambiguous, NotFound
from service.experiments import repository, views
from service.runs import repository as runs
from service.schemas.lookup import Found, Kind
from service.settings import Settings
from service.tables import Experiment, Run
from service.text import age

# Of several that are meant, so many are named.
SHOWN = 5
HOW_TO_LIST = {Kind.EXPERIMENT: "`mcf list` lists all experiments", Kind.RUN: "`mcf show EXPERIMENT` lists its runs"}


@dataclass(frozen=True)
class _Meant:
    """Something a name may mean."""

    found: Found
    created_at: datetime
    row: Experiment | Run


def look_up(
    db: Database, settings: Settings, name: str, kinds: Collection[Kind] = tuple(Kind), *, project: str | None = None
) -> Found:
    """The only experiment or run that has this id, or whose id begins so, or whose name this is.

    `project`: the only one whose experiments, and the runs they use, are looked among. Raises NotFound, Ambiguous.
    """
    with db.read() as session:
        meant, count = _meant(session, name, kinds, project)
        if exact := next((each for each in meant if each.found.id == name), None):
            return exact.found
        if count == 1:
            return meant[0].found
        if count > 1:
            raise Ambiguous(_which_of(session, settings, name, meant, count))
    what = " or ".join(f"no {kind}" for kind in kinds)
    ways = "; ".join(HOW_TO_LIST[kind] for kind in kinds)
    raise NotFound(f"There is {what} {name!r}, by name or by the beginning of an id. {ways}.")


def _meant(
    session: Session, name: str, kinds: Collection[Kind], project: str | None
) -> tuple[Sequence[_Meant], int]:  # fmt: skip
    """The one of that id first, then the newest, a handful of each kind; and how many there are in all."""
    found, count = list[_Meant](), 0
    if Kind.EXPERIMENT in kinds:
        rows, all_rows = repository.meant_by(session, name, project, SHOWN)
        found += [_Meant(Found(kind=Kind.EXPERIMENT, id=e.id, name=e.name), e.created_at, e) for e in rows]
        count += all_rows
    if Kind.RUN in kinds:
        beginning, all_beginning = runs.meant_by(session, name, project, SHOWN)
        found += [_Meant(Found(kind=Kind.RUN, id=r.id, name=None), r.created_at, r) for r in beginning]
        count += all_beginning
    return sorted(found, key=lambda each: each.created_at, reverse=True), count


def _which_of(session: Session, settings: Settings, name: str, meant: Sequence[_Meant], count: int) -> str:
    shown = meant[:SHOWN]
    experiments = [each.row for each in shown if isinstance(each.row, Experiment)]
    said = {
        view.id: f"{view.id}  {view.name}, project {view.project}, {view.state.value}, {age(view.created_at)}"
        for view in views.summaries(session, experiments, settings)
    }
    said |= {
        each.row.id: f"{each.row.id}  run, {each.row.state.value}, {age(each.created_at)}"
        for each in shown
        if isinstance(each.row, Run)
    }
    lines = [f"{name!r} means {count} things:", *(f"  {said[each.found.id]}" for each in shown)]
    lines += [f"  and {count - SHOWN} more"] if count > SHOWN else []
    return "\n".join([*lines, "Give an id, or the beginning of one, that means only one of them."])
