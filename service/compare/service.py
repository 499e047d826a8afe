"""The comparison of one experiment, and what a report of it needs besides."""

import platform
import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from importlib.metadata import version

from sqlalchemy.orm import Session

from service.compare import repository
from service.compare.across import Across, across, dotted
from service.compare.ranking import NoSuchMetric
from service.compare.readings import NoSuchStep, as_of
from service.compare.repository import Fingerprint
from service.compare.table import ORDINARY, ArmTrials, Question, compare
from service.costs import FREE, Prices
from service.errors import NotFound
from service.schemas.comparison import Comparison, Report
from service.tables import Experiment

MAX_KEPT = 50
"""Comparisons; one of 240 runs is 33 kB as JSON."""

TURNS = 64

SOFTWARE = ("mcf", "scipy", "matplotlib")


class Comparisons:
    """Comparisons made of late: every open page asks every few seconds. Safe to ask from several threads."""

    def __init__(self, tracking_uri: str | None, prices: Prices = FREE) -> None:
        self._tracking_uri, self._prices = tracking_uri, prices
        self._kept: OrderedDict[tuple[str, Question], tuple[Fingerprint, Comparison]] = OrderedDict()
        self._lock = threading.Lock()
        # Several who ask for one that nobody has made yet: one makes it, and the others wait.
        self._turns = [threading.Lock() for _ in range(TURNS)]

    def of(self, session: Session, experiment_id: str, question: Question = ORDINARY) -> Comparison:
        """As `comparison_of`; not to be changed. Raises NotFound."""
        key = (experiment_id, question)
        with self._turns[hash(key) % TURNS]:
            found = repository.fingerprint(session, experiment_id)
            with self._lock:
                if known := self._kept.get(key):
                    self._kept.move_to_end(key)
            if known and known[0] == found:
                return known[1].model_copy(update={"made_at": datetime.now(UTC)})
            made = comparison_of(session, experiment_id, self._tracking_uri, question, self._prices)
            with self._lock:
                self._kept[key] = found, made
                while len(self._kept) > MAX_KEPT:
                    self._kept.popitem(last=False)
            return made


def across_of(
    session: Session, comparisons: Comparisons, one: str, other: str, metric: str | None = None
) -> Across:  # fmt: skip
    """Two experiments side by side. Raises NotFound."""
    table, other_table = (comparisons.of(session, id, Question(metric)) for id in (one, other))
    specs, other_specs = (
        {arm: dotted(spec) for arm, spec in repository.specs(session, id).items()} for id in (one, other)
    )  # fmt: skip
    return across(table, other_table, specs, other_specs)


def comparison_of(
    session: Session, experiment_id: str, tracking_uri: str | None, question: Question = ORDINARY,
    prices: Prices = FREE,
) -> Comparison:  # fmt: skip
    """Raises NotFound."""
    experiment, arms = _load(session, experiment_id, tracking_uri)
    try:
        return _compared(experiment, arms if question.step is None else as_of(arms, question.step), question, prices)
    except (NoSuchMetric, NoSuchStep) as error:
        raise NotFound(str(error)) from error


def arms_of(session: Session, experiment_id: str) -> tuple[list[ArmTrials], str | None]:
    """All that is known of an experiment's runs, and `evaluation.rank_by` of its spec. Raises NotFound."""
    experiment, arms = _load(session, experiment_id, None)
    return arms, rank_by(experiment)


def report_of(
    session: Session, experiment_id: str, tracking_uri: str | None, prices: Prices = FREE
) -> Report:  # fmt: skip
    """Raises NotFound."""
    experiment, arms = _load(session, experiment_id, tracking_uri)
    return Report(
        spec=experiment.spec,
        comparison=_compared(experiment, arms, ORDINARY, prices),
        digests=repository.digests(session, experiment_id),
        software={"python": platform.python_version(), **{name: version(name) for name in SOFTWARE}},
        trained_with=_trained_with(arms),
    )


def _load(session: Session, experiment_id: str, tracking_uri: str | None) -> tuple[Experiment, list[ArmTrials]]:
    found = repository.load(session, experiment_id, tracking_uri)
    if found is None:
        raise NotFound(f"There is no experiment {experiment_id!r}. GET /v1/experiments lists all.")
    return found


def _trained_with(arms: Sequence[ArmTrials]) -> dict[str, list[str]]:
    found: dict[str, set[str]] = {}
    for trial in (trial for arm in arms for trial in arm.trials if trial.result):
        for name, number in trial.result.software.items() if trial.result else ():
            found.setdefault(name, set()).add(number)
    return {name: sorted(numbers) for name, numbers in found.items()}


def _compared(experiment: Experiment, arms: Sequence[ArmTrials], question: Question, prices: Prices) -> Comparison:
    question = replace(question, size=question.size or experiment.spec.get("forecast"))
    rounds = repository.rounds_of(experiment, arms)
    return compare(
        experiment.id, experiment.name, arms, datetime.now(UTC), question, rank_by(experiment), rounds, prices
    )  # fmt: skip


def rank_by(experiment: Experiment) -> str | None:
    """`evaluation.rank_by` of its spec."""
    found: str | None = (experiment.spec["base"].get("evaluation") or {}).get("rank_by")
    return found
