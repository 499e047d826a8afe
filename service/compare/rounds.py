"""Seeds in rounds, arm by arm: what the looks have shown, and which arms get more seeds. Pure.

A look is recorded as the seeds that had finished then (Look), and everything else follows from their numbers: so a
table by any metric, or as of any step, is of the same looks.
"""

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from statistics import fmean

from service.compare.sequential import Outcome, analyse
from trainer.contract.rounds import Rounds, Target

Values = Mapping[int, float]
"""Seed -> the ranking metric of the run that has finished."""
Pair = tuple[str, str]
"""An arm and the one that is subtracted from it."""


@dataclass(frozen=True)
class Look:
    """After a round: the seeds of each arm whose runs had finished, and the arms that were given more."""

    taken_at: datetime
    finished: Mapping[str, frozenset[int]]
    """Arm -> seeds."""
    on: frozenset[str]

    def seeds(self, arm: str) -> frozenset[int]:
        return self.finished.get(arm, frozenset())


@dataclass(frozen=True)
class InRounds:
    """The design of an experiment in rounds, and the looks that have been taken."""

    design: Rounds
    looks: Sequence[Look] = ()
    is_cancelled: bool = False

    @property
    def is_over(self) -> bool:
        """No look is to come."""
        return self.is_cancelled or (bool(self.looks) and not self.looks[-1].on)


@dataclass(frozen=True)
class Course:
    """An experiment in rounds, as one metric sees it."""

    rounds: InRounds
    arms: Mapping[str, Values]
    """In the order of the request."""
    baseline: str
    higher_is_better: bool

    @cached_property
    def outcomes(self) -> dict[Pair, Outcome]:
        """Of every difference that is tested."""
        looks = self.rounds.looks
        return analyse(self._design, {pair: [self._pairs(pair, look) for look in looks] for pair in self._tested()})

    def going_on(self, of: Iterable[str]) -> set[str]:
        """Of the arms that have had all seeds so far: those that are to get more after the last look."""
        if len(self.rounds.looks) == len(self._design.rounds):
            return set()
        # Where no seed of an arm has finished, no other would.
        alive = {name for name in of if self._seen(name)} - self.dropped.keys()
        if self.measure not in alive:
            return set()
        on = {name for name in alive - {self.measure} if self._is_open(name)}
        return on | {self.measure} if on else set()

    @cached_property
    def measure(self) -> str:
        """The arm that the others are held against: the baseline, or whichever leads now."""
        if self._design.target is Target.BASELINE or not self.rounds.looks:
            return self.baseline
        left = [name for name in self.arms if self._seen(name) and name not in self.dropped]
        return max(left, key=self._mean, default=self.baseline)

    @property
    def dropped(self) -> dict[str, str]:
        """Arms that cannot be the best any more, and the one that each is worse than, where that is the question."""
        return self._beaten if self._design.target is Target.BEST else {}

    @cached_property
    def _beaten(self) -> dict[str, str]:
        """Arm that is shown to be worse -> the one that it is shown to be worse than, the first to show it."""
        found: dict[str, tuple[int, str]] = {}
        for (name, other), outcome in self.outcomes.items():
            if outcome.shown_at is None:
                continue
            is_better = (outcome.found.summary.mean or 0) > 0
            loser, winner = (other, name) if is_better == self.higher_is_better else (name, other)
            if loser not in found or outcome.shown_at < found[loser][0]:
                found[loser] = outcome.shown_at, winner
        return {loser: winner for loser, (_, winner) in found.items()}

    def outcome(self, name: str, other: str) -> Outcome:
        """Of `name` against `other`, in either order."""
        return self.outcomes.get((name, other)) or self.outcomes[other, name]

    @property
    def _design(self) -> Rounds:
        return self.rounds.design

    def _tested(self) -> list[Pair]:
        if self._design.target is Target.BASELINE:
            return [(name, self.baseline) for name in self.arms if name != self.baseline]
        pairs = itertools.combinations(self.arms, 2)
        # So that the baseline is subtracted from the others, as everywhere.
        return [(two, one) if one == self.baseline else (one, two) for one, two in pairs]

    def _pairs(self, pair: Pair, look: Look) -> list[float]:
        one, other = (self.arms[name] for name in pair)
        seeds = look.seeds(pair[0]) & look.seeds(pair[1]) & one.keys() & other.keys()
        return [one[seed] - other[seed] for seed in sorted(seeds)]

    def _is_open(self, name: str) -> bool:
        outcome = self.outcome(name, self.measure)
        return outcome.shown_at is None and (outcome.chance is None or outcome.chance >= self._design.futility)

    def _seen(self, name: str) -> list[float]:
        values = self.arms[name]
        return [values[seed] for seed in self.rounds.looks[-1].seeds(name) & values.keys()]

    def _mean(self, name: str) -> float:
        mean = fmean(self._seen(name))
        return mean if self.higher_is_better else -mean
