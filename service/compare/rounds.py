"""Seeds in rounds, arm by arm: what the looks have shown, and which arms get more seeds. Pure.

A look is recorded as the seeds that had finished then (Look), and everything else follows from their numbers: so a
table by any metric, or as of any step, is of the same looks.
"""

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
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
    stopped: Mapping[str, str] = field(default_factory=dict)
    """Arms that a person has cancelled, with who it was: they get no more seeds, whatever they show."""

    def had_finished(self, arm: str) -> bool:
        """Whether a run of it had, at the last look."""
        return bool(self.looks) and bool(self.looks[-1].seeds(arm))

    def given(self, arm: str) -> int:
        """Seeds that it has been given."""
        # An arm is in every round until the first look that does not let it go on.
        closed = next((number for number, look in enumerate(self.looks) if arm not in look.on), len(self.looks))
        return self.design.rounds[closed]

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
        alive = {name for name in of if self._seen(name)} - self.dropped.keys() - self.rounds.stopped.keys()
        if self.measure not in alive:
            return set()
        on = {name for name in alive - {self.measure} if self._is_open(name)}
        if on and self._design.target is Target.BEST:
            # One that is level with the leader now may lead at the next look: it goes on as long as anything can show.
            return alive
        return on | {self.measure} if on else set()

    @cached_property
    def measure(self) -> str:
        """The arm that the others are held against: the baseline, or whichever leads now."""
        if self._design.target is Target.BASELINE or not self.rounds.looks:
            return self.baseline
        # Of those that have had all looks: means over other seeds are another thing.
        out = self.dropped.keys() | self.rounds.stopped.keys()
        left = [name for name in self.arms if self._seen(name) and name not in out]
        most = max((self.rounds.given(name) for name in left), default=0)
        return max((name for name in left if self.rounds.given(name) == most), key=self._mean, default=self.baseline)

    @property
    def dropped(self) -> dict[str, str]:
        """Arms that cannot be the best any more, and the one that each is worse than, where that is the question."""
        return self._beaten if self._design.target is Target.BEST else {}

    def loss(self, name: str) -> Outcome:
        """Of an arm that is dropped, minus the one that it is worse than."""
        other = self.dropped[name]
        if found := self.outcomes.get((name, other)):
            return found
        mirrored = self.outcomes[other, name]
        was = mirrored.found.summary
        assert was.mean is not None
        assert was.low is not None
        assert was.high is not None
        summary = replace(was, mean=-was.mean, low=-was.high, high=-was.low)
        return replace(mirrored, found=replace(mirrored.found, summary=summary))

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
