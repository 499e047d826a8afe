"""Several differences, looked at after each round of seeds, with one error rate over all of them and all looks.

Group-sequential Holm (Ye, Li, Liu and Yao 2013; Maurer and Bretz 2013): at a look, a difference is shown if its p is
below the level of that look for 5 % / (differences that are open). What is shown leaves, and its share of the error
goes to the others, at once and at later looks. Intervals are repeated confidence intervals (Jennison and Turnbull 2000,
chapter 9), at 1 - the level of the look: an interval holds 0 exactly where its difference is not shown, and holds the
truth at 95 %, whenever one stops. (All of them at once do so a little less often where arms differ, as the share of
those that are shown is then spent twice: on their intervals and on the others'.) Pure functions; the unit is the seed.
"""

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TypeVar

from scipy.special import ndtr, ndtri, stdtrit

from service.compare.levels import alpha_for, levels
from service.compare.stats import ALPHA, Paired, Summary, against_zero
from trainer.contract.rounds import Rounds

Key = TypeVar("Key", bound=Hashable)
Differences = Sequence[float]
"""One a seed that has finished in both arms."""

UNTESTED = Paired(Summary(0, None, None, None, None), None)


@dataclass(frozen=True)
class Outcome:
    """What the looks so far say of a difference."""

    found: Paired = UNTESTED
    """At its last look; low and high are the repeated confidence interval, and p is that of the look alone."""
    level: float | None = None
    """Below which p has to be at that look; None = it has not been tested."""
    p: float | None = None
    """The smallest error rate over all looks and differences at which its last look would have shown it."""
    shown_at: int | None = None
    """Number of the look that has shown it, from 0."""
    chance: float | None = None
    """That the last look shows it, as the looks so far predict; None where it is shown, untested or at the last."""


def analyse(design: Rounds, looks: Mapping[Key, Sequence[Differences]]) -> dict[Key, Outcome]:
    """looks: of each difference, its pairs at every look taken so far; later ones hold the earlier ones' pairs.

    Takes time with the cube of their number: 45 differences a tenth of a second, 200 ten.
    """
    tests = {key: _Tests(design, differences) for key, differences in looks.items()}
    steps = {key: test.alphas for key, test in tests.items()}
    shown = _shown(steps, ALPHA)
    left = len(tests) - len(shown)
    # What was shown stays as it was then, whatever came later.
    ends = {key: number for key, (number, _) in shown.items()}
    steps = {
        key: {number: alpha for number, alpha in alphas.items() if number <= ends.get(key, number)}
        for key, alphas in steps.items()
    }
    outcomes = {}
    for key, test in tests.items():
        at, count = shown.get(key, (None, left))
        outcome = test.outcome(at, ALPHA / count if count else ALPHA)
        if outcome.level is not None:
            last = max(steps[key])
            outcome = replace(outcome, p=_smallest(key, {**steps, key: {last: steps[key][last]}}))
        outcomes[key] = outcome
    return outcomes


class _Tests:
    """One difference at its looks. One without a new pair is none, and what it might have spent is spent later."""

    def __init__(self, design: Rounds, looks: Sequence[Differences]) -> None:
        self._design, self._last = design, UNTESTED
        self._numbers: list[int] = []
        self._found: list[Paired] = []
        for number, differences in enumerate(looks):
            found = against_zero(differences)
            if found.summary.n > self._last.summary.n:
                self._last = found
                # Of few pairs, or the same difference at every seed, there is no p: a later look may have one.
                if found.p is not None:
                    self._numbers.append(number)
                    self._found.append(found)

    @cached_property
    def alphas(self) -> dict[int, float]:
        """Look -> the error rate that would have shown this difference there, if it were the only one."""
        return {
            number: alpha_for(found.p, self._counts(index + 1), self._shares(index + 1), self._design.spending)
            for index, (number, found) in enumerate(zip(self._numbers, self._found, strict=True))
            if found.p is not None
        }

    def outcome(self, shown_at: int | None, alpha: float) -> Outcome:
        """alpha: what this difference may spend over all of its looks."""
        if not self._found or self._last.p is None:
            return Outcome(replace(self._last, summary=replace(self._last.summary, low=None, high=None)))
        upto = len(self._numbers) if shown_at is None else sum(number <= shown_at for number in self._numbers)
        found = self._found[upto - 1]
        level = levels(self._counts(upto), self._shares(upto), self._design.spending, alpha)[-1]
        summary = found.summary
        assert summary.mean is not None
        assert summary.sd is not None
        half = float(stdtrit(summary.n - 1, 1 - level / 2)) * summary.sd / math.sqrt(summary.n)
        interval = replace(summary, low=summary.mean - half, high=summary.mean + half)
        chance = self._chance(alpha) if shown_at is None else None
        return Outcome(replace(found, summary=interval), level, shown_at=shown_at, chance=chance)

    def _chance(self, alpha: float) -> float | None:
        """Predictive power: of the last look, averaged over the effects that the looks so far leave possible.

        The conditional power of the effect that is seen, taken for the truth, is too sure of three or four seeds: it
        stops so many arms early that power falls by five points and not by one (docs/rounds.md).
        """
        number, last = self._numbers[-1], len(self._design.rounds) - 1
        if number == last:
            return None
        counts, shares = self._counts(len(self._numbers)), self._shares(len(self._numbers))
        to_come = self._design.rounds[number + 1 :]
        planned = (*shares, *(count / self._design.most for count in to_come))
        needed = -ndtri(levels((*counts, *to_come), planned, self._design.spending, alpha)[-1] / 2)
        p, share = self._found[-1].p, shares[-1]
        assert p is not None
        return float(ndtr((-ndtri(p / 2) / math.sqrt(share) - needed) * math.sqrt(share / (1 - share))))

    def _counts(self, upto: int) -> tuple[int, ...]:
        return tuple(found.summary.n for found in self._found[:upto])

    def _shares(self, upto: int) -> tuple[float, ...]:
        """Of the information. The last look spends all there is, also where a seed is missing."""
        last = len(self._design.rounds) - 1
        return tuple(
            1.0 if number == last else found.summary.n / self._design.most
            for number, found in zip(self._numbers[:upto], self._found[:upto], strict=True)
        )


Steps = Mapping[Key, Mapping[int, float]]


def _shown(steps: Steps[Key], alpha: float) -> dict[Key, tuple[int, int]]:
    """What an error rate of `alpha` shows -> the look that does, and the differences that were open before."""
    shown: dict[Key, tuple[int, int]] = {}
    now: dict[Key, float] = {}
    for number in sorted({number for alphas in steps.values() for number in alphas}):
        now |= {key: alphas[number] for key, alphas in steps.items() if number in alphas}
        while True:
            count = len(steps) - len(shown)
            found = [key for key, needed in now.items() if key not in shown and needed * count <= alpha]
            if not found:
                break
            shown |= dict.fromkeys(found, (number, count))
    return shown


def _smallest(key: Key, steps: Steps[Key]) -> float:
    """Error rate at which the difference is shown: one of those at which anything changes."""
    rates = sorted({
        needed * count
        for alphas in steps.values() for needed in alphas.values() for count in range(1, len(steps) + 1)
    })  # fmt: skip
    low, high = 0, len(rates) - 1
    while low < high:
        middle = (low + high) // 2
        if key in _shown(steps, rates[middle]):
            high = middle
        else:
            low = middle + 1
    return min(1.0, rates[low])
