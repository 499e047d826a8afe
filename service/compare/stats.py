"""The statistics of a comparison. The unit is the seed; pure functions, tested against cases done by hand."""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

# Not scipy.stats, which takes a second to import; these are its t distribution.
from scipy.special import stdtr, stdtrit

LEVEL = 0.95
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
    summary = summarise([values[seed] - others[seed] for seed in seeds])
    if summary.n < MIN_PAIRS or not summary.sd or summary.mean is None:
        identical = summary.n >= MIN_PAIRS and summary.mean == 0
        return Paired(summary, 1.0 if identical else None)
    t = summary.mean / (summary.sd / math.sqrt(summary.n))
    return Paired(summary, float(2 * stdtr(summary.n - 1, -abs(t))))


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """Holm's step-down adjustment: the k-th smallest of m times m - k + 1, and never below the one before."""
    adjusted: dict[str, float] = {}
    highest = 0.0
    for rank, (name, p) in enumerate(sorted(p_values.items(), key=lambda item: item[1])):
        highest = max(highest, min(1.0, p * (len(p_values) - rank)))
        adjusted[name] = highest
    return adjusted


def _without_rounding_noise(sd: float, mean: float) -> float:
    # 0.3 - 0.2 and 0.2 - 0.1 differ in the last bit; a t-test would take that for a tiny spread and be certain.
    return 0.0 if sd <= 1e-12 * max(1.0, abs(mean)) else sd
