"""The statistics of a comparison. The unit is the seed; pure functions, tested against cases done by hand."""

import math
import statistics
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

# Not scipy.stats, which takes a second to import; these are its t distribution.
from scipy.special import nctdtr, stdtr, stdtrit

Key = TypeVar("Key", bound=Hashable)

LEVEL = 0.95
ALPHA = 0.05
POWER = 0.8
MOST_SEEDS = 10_000
# Below this, an interval is too wide to carry a verdict and looks as if it could.
MIN_PAIRS = 3


@dataclass(frozen=True)
class Summary:
    """Mean, standard deviation (n - 1) and 95 % t-interval of a sample; None where n is too small for it."""

    n: int
    mean: float | None
    sd: float | None
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Paired:
    """Difference over the same seeds, with interval and the p of a paired t-test."""

    summary: Summary
    p: float | None
    """None below 3 pairs, and where every pair differs by the same amount: then there is no spread to test against."""

    @property
    def has_spread(self) -> bool:
        return bool(self.summary.sd)


def summarise(values: Sequence[float]) -> Summary:
    n = len(values)
    if n == 0:
        return Summary(0, None, None, None, None)
    mean = statistics.fmean(values)
    if n == 1:
        return Summary(1, mean, None, None, None)
    sd = _without_rounding_noise(statistics.stdev(values), mean)
    half = float(stdtrit(n - 1, (1 + LEVEL) / 2)) * sd / math.sqrt(n)
    return Summary(n, mean, sd, mean - half, mean + half)


def paired(values: Mapping[int, float], others: Mapping[int, float]) -> Paired:
    """`values` minus `others`, over the seeds that both have."""
    seeds = sorted(values.keys() & others.keys())
    return against_zero([values[seed] - others[seed] for seed in seeds])


def against_zero(differences: Sequence[float]) -> Paired:
    """One difference a seed, against zero."""
    summary = summarise(differences)
    if summary.n < MIN_PAIRS or not summary.sd or summary.mean is None:
        identical = summary.n >= MIN_PAIRS and summary.mean == 0
        return Paired(summary, 1.0 if identical else None)
    t = summary.mean / (summary.sd / math.sqrt(summary.n))
    return Paired(summary, float(2 * stdtr(summary.n - 1, -abs(t))))


def unpaired(values: Sequence[float], others: Sequence[float]) -> Paired:
    """Mean of `values` minus mean of `others`, with Welch's interval and p; n is the smaller one, and sd is None."""
    one, two = summarise(values), summarise(others)
    n = min(one.n, two.n)
    if one.mean is None or two.mean is None:
        return Paired(Summary(n, None, None, None, None), None)
    mean = one.mean - two.mean
    if one.sd is None or two.sd is None or not (one.sd or two.sd):
        return Paired(Summary(n, mean, None, None, None), None)
    parts = one.sd**2 / one.n, two.sd**2 / two.n
    error = math.sqrt(sum(parts))
    freedom = sum(parts) ** 2 / (parts[0] ** 2 / (one.n - 1) + parts[1] ** 2 / (two.n - 1))
    half = float(stdtrit(freedom, (1 + LEVEL) / 2)) * error
    return Paired(Summary(n, mean, None, mean - half, mean + half), float(2 * stdtr(freedom, -abs(mean) / error)))


def verdict(found: Paired, p_holm: float | None, higher_is_better: bool) -> str:
    """better, worse, no difference shown, or why nothing can be said."""
    summary = found.summary
    if summary.n < MIN_PAIRS or summary.mean is None:
        return f"n = {summary.n}: no verdict"
    if not found.has_spread:
        same = "identical at every seed" if summary.mean == 0 else "the same difference at every seed"
        return f"{same}: no verdict"
    if p_holm is None or p_holm >= ALPHA:
        return "no difference shown"
    return "better" if (summary.mean > 0) == higher_is_better else "worse"


def power(effect: float, n: int, alpha: float) -> float:
    """Chance that a two-sided paired t-test of `n` pairs shows a difference of `effect` (mean over sd)."""
    bound, shift = float(stdtrit(n - 1, 1 - alpha / 2)), abs(effect) * math.sqrt(n)
    return float(1 - nctdtr(n - 1, shift, bound) + nctdtr(n - 1, shift, -bound))


def more_seeds(found: Paired, comparisons: int) -> int | None:
    """Seeds to add until the difference seen so far would be shown with 80 % power; MOST_SEEDS = that or more.

    At the strictest level that Holm's method may ask for, 0.05 / comparisons. None without a spread, or below 3 pairs.
    """
    summary = found.summary
    if summary.n < MIN_PAIRS or not summary.sd or summary.mean is None:
        return None
    effect, alpha = summary.mean / summary.sd, ALPHA / comparisons
    if power(effect, summary.n + MOST_SEEDS, alpha) < POWER:
        return MOST_SEEDS
    low, high = 0, MOST_SEEDS
    while low < high:
        middle = (low + high) // 2
        if power(effect, summary.n + middle, alpha) < POWER:
            low = middle + 1
        else:
            high = middle
    return low


def holm(p_values: Mapping[Key, float]) -> dict[Key, float]:
    """Holm's step-down adjustment: the k-th smallest of m times m - k + 1, and never below the one before."""
    adjusted: dict[Key, float] = {}
    highest = 0.0
    for rank, (name, p) in enumerate(sorted(p_values.items(), key=lambda item: item[1])):
        highest = max(highest, min(1.0, p * (len(p_values) - rank)))
        adjusted[name] = highest
    return adjusted


def _without_rounding_noise(sd: float, mean: float) -> float:
    # 0.3 - 0.2 and 0.2 - 0.1 differ in the last bit; a t-test would take that for a tiny spread and be certain.
    return 0.0 if sd <= 1e-12 * max(1.0, abs(mean)) else sd
