"""The answer of an experiment in a line, for lists: which arm is best, and whether that is real.

A list shows many experiments and is asked for every few seconds, so answers are kept; two statements tell for all of
them which are out of date. What an answer says changes when a run ends, and not while it trains.
"""

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Collection
from dataclasses import dataclass

from sqlalchemy import String, cast, func, select
from sqlalchemy.orm import Session

from service.compare.headline import headline
from service.compare.service import Comparisons
from service.schemas.comparison import Comparison
from service.states import RunState
from service.tables import TRIAL_STATE, Experiment, Run, Trial

MAX_KEPT = 2000
"""Answers of a few hundred bytes."""


@dataclass(frozen=True)
class Answer:
    """In the words of the headline."""

    best: str
    """Name of the best arm so far; empty where no arm is."""
    metric: str
    value: float | None
    unit: str
    is_real: str
    """Whether its difference to the others is real, in a word or three."""


@dataclass(frozen=True)
class Known:
    """What is known of an experiment's answer without comparing anything."""

    mark: str
    """Another one whenever the answer may be."""
    answer: Answer | None
    """The last that was made; None = never."""
    is_current: bool


class Answers:
    """Answers made of late. Safe to ask from several threads."""

    def __init__(self, comparisons: Comparisons) -> None:
        self._comparisons = comparisons
        self._kept: OrderedDict[str, tuple[str, Answer]] = OrderedDict()
        self._lock = threading.Lock()

    def known(self, session: Session, ids: Collection[str]) -> dict[str, Known]:
        """Of those that have a run which has succeeded: of the others there is nothing to say yet."""
        marks = _marks(session, ids)
        with self._lock:
            found = {id: self._kept.get(id, ("", None)) for id in marks}
            for id in marks:
                if id in self._kept:
                    self._kept.move_to_end(id)
        return {id: Known(marks[id], answer, mark == marks[id]) for id, (mark, answer) in found.items()}

    def of(self, session: Session, experiment_id: str) -> Answer:
        """Made anew where it is not current. Raises NotFound."""
        known = self.known(session, [experiment_id]).get(experiment_id)
        if known and known.answer and known.is_current:
            return known.answer
        made = _answer(self._comparisons.of(session, experiment_id))
        if known:
            with self._lock:
                self._kept[experiment_id] = known.mark, made
                self._kept.move_to_end(experiment_id)
                while len(self._kept) > MAX_KEPT:
                    self._kept.popitem(last=False)
        return made


def _answer(table: Comparison) -> Answer:
    head = headline(table)
    if not (head.best and head.best.probe and table.metric):
        return Answer("", "", None, "", head.answer)
    return Answer(head.best.name, table.metric.name, head.best.probe.mean, table.metric.unit, head.answer)


def _marks(session: Session, ids: Collection[str]) -> dict[str, str]:
    """Experiment -> digest of what its comparison is of, but for cost and speed."""
    rows = session.execute(
        select(
            Trial.experiment_id, TRIAL_STATE, func.count(), func.max(Trial.id), func.max(Run.ended_at),
            func.min(Run.id), func.max(Run.id),
        )
        .join(Run, Run.id == Trial.run_id)
        .where(Trial.experiment_id.in_(ids))
        .group_by(Trial.experiment_id, TRIAL_STATE)
        .order_by(Trial.experiment_id, TRIAL_STATE)
    )  # fmt: skip
    parts: dict[str, list[str]] = {}
    have_succeeded = set()
    for id, state, *rest in rows:
        parts.setdefault(id, []).append(repr((state.value, *rest)))
        if state is RunState.SUCCEEDED:
            have_succeeded.add(id)
    asked = Experiment.spec[("base", "evaluation")].as_string()
    of_experiments = select(Experiment.id, asked, func.length(cast(Experiment.looks, String)), Experiment.cancelled_at)
    for id, *rest in session.execute(of_experiments.where(Experiment.id.in_(have_succeeded))):
        parts[id].append(repr(rest))
    return {id: hashlib.sha256("\n".join(parts[id]).encode()).hexdigest()[:12] for id in sorted(have_succeeded)}
