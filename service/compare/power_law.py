"""From subsets to all data: what a metric would be with more images, by metric(n) = a + b n^-c with c > 0.

The curve is fitted to means over the seeds that all sizes have. A seed may shift all sizes alike, as it draws the same
initial weights for them, so the spread between seeds counts in two parts: the shift, and the rest. Intervals are
likelihood intervals: for every exponent c that the means allow, the curve and Student's t around it. A bootstrap over
three to five seeds would hold the true value in 70 to 90 % of the cases instead of 95 (docs/decisions/0023).

Letters: K sizes, S seeds.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy import optimize, special

MIN_SIZES, MIN_SPAN, MIN_SEEDS = 4, 8.0, 3
FAR = 100.0
"""Times the largest size: beyond it a forecast is called a guess."""
LEVEL, MISFIT = 0.95, 0.01
EXPONENTS = 0.02, 4.0
"""A smaller one cannot be told from a logarithm, a larger one from a plateau."""
GRID, ALONG = 80, 65
"""Exponents that are tried: for the best one, and along an interval."""

Points = Mapping[int, Mapping[int, float]]
"""Size in images -> seed -> the metric."""


class Declined(Exception):
    """There is no forecast; the text says why."""


@dataclass(frozen=True)
class Interval:
    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Forecast:
    size: int
    """That it is for, in images."""
    at_size: Interval
    check: Interval
    """The largest size, as predicted from the others."""
    curve: "Curve"

    @property
    def seen(self) -> float:
        """What the metric was at the largest size: mean over seeds."""
        return self.curve.means[-1][1]

    @property
    def is_far(self) -> bool:
        return self.size > FAR * self.curve.sizes[-1]

    @property
    def check_holds(self) -> bool:
        return self.check.low <= self.seen <= self.check.high


def forecast(points: Points, size: int, *, higher_is_better: bool) -> Forecast:
    """Raises Declined."""
    sizes, value_KS = complete(points)
    curve = Curve(sizes, value_KS)
    curve.check_shape(higher_is_better=higher_is_better)
    found = curve.at(size)
    # What would be said had one begun with a larger size: how much the form of the curve matters.
    later = range(1, len(sizes) - MIN_SIZES + 1)
    others = [Curve(sizes[first:], value_KS[first:], curve.error).value(size) for first in later]
    at_size = Interval(found.value, min(found.low, *others, found.value), max(found.high, *others, found.value))
    check = Curve(sizes[:-1], value_KS[:-1], curve.error).next_mean(sizes[-1])
    return Forecast(size, at_size, check, curve)


def difference(one: Interval, other: Interval) -> Interval:
    """One minus the other, with an interval from theirs (MOVER: Zou and Donner 2008), as if they were independent."""
    value = one.value - other.value
    low = value - math.hypot(one.value - one.low, other.high - other.value)
    return Interval(value, low, value + math.hypot(one.high - one.value, other.value - other.low))


@dataclass(frozen=True)
class Error:
    """Spread between seeds that is not the same at all sizes."""

    variance: float
    df: int

    def t(self) -> float:
        return float(special.stdtrit(self.df, (1 + LEVEL) / 2))


class Curve:
    """a + b (n / largest)^-c, fitted to the means over seeds."""

    def __init__(self, sizes: list[int], value_KS: np.ndarray, error: Error | None = None) -> None:
        """`error`: that of more sizes, where it is known."""
        count, self.seeds = map(int, value_KS.shape)
        self.sizes, self._largest = sizes, sizes[-1]
        self._x_K = np.array(sizes, float) / self._largest
        self._mean_K = value_KS.mean(axis=1)
        shift_S = value_KS.mean(axis=0)
        left_KS = value_KS - self._mean_K[:, None] - shift_S + shift_S.mean()
        df = (count - 1) * (self.seeds - 1)
        self.error = error or Error(float(np.square(left_KS).sum()) / df, df)
        self._shift = float(shift_S.var(ddof=1))
        """Variance of a seed's mean over the sizes."""

    @property
    def means(self) -> list[tuple[int, float]]:
        """Size, and the mean over seeds there."""
        return [(size, float(mean)) for size, mean in zip(self.sizes, self._mean_K, strict=True)]

    @property
    def limit(self) -> float:
        """a: what no number of images would get past, if the curve holds."""
        return float(self._best.a_C[0])

    def value(self, size: float) -> float:
        return float(self._best.at(size / self._largest)[0])

    def at(self, size: float) -> Interval:
        """The curve at a size, with its 95 % interval."""
        return self._interval(size, self._half)

    def next_mean(self, size: float) -> Interval:
        """The mean that the same seeds will have at another size. Their shift is in the curve already."""
        return self._interval(
            size, lambda spread_C: self.error.t() * np.sqrt(self.error.variance * (1 + spread_C) / self.seeds)
        )

    def check_shape(self, *, higher_is_better: bool) -> None:
        """Raises Declined where the sizes do not lie on such a curve, or the metric does not get better with them."""
        if (spare := len(self._x_K) - 3) > 0:
            most = special.fdtri(spare, self.error.df, 1 - MISFIT) * self.error.variance / self.seeds
            if self._least / spare > most:
                raise Declined("the means do not lie on a curve a + b n^-c: it turns, or has a step")
        low, high = self._gain
        if low <= 0 if higher_is_better else high >= 0:
            raise Declined("the metric is not shown to get better with more images")

    @property
    def _gain(self) -> tuple[float, float]:
        """Interval of what the metric changes by from the smallest size to the largest: the seeds' shift is in both."""
        some, smallest = self._possible, float(self._x_K[0])
        gain_C = some.at(1) - some.at(smallest)
        rise_C = 1 - smallest**-some.exponent_C
        half_C = self.error.t() * np.sqrt(self.error.variance / self.seeds * some.slope_C * rise_C**2)
        half_C *= np.sqrt(self._left(some))
        return float((gain_C - half_C).min()), float((gain_C + half_C).max())

    def _interval(self, size: float, half: Callable[[np.ndarray], np.ndarray]) -> Interval:
        """`half`: of the interval around curves, by the sum of squares of the means' weights in their value."""
        some, x, value = self._possible, size / self._largest, self.value(size)
        half_C = half(some.spread(x)) * np.sqrt(self._left(some))
        at_C = some.at(x)
        return Interval(value, min(value, float((at_C - half_C).min())), max(value, float((at_C + half_C).max())))

    def _half(self, spread_C: np.ndarray) -> np.ndarray:
        # The weights of the means sum to 1: a shift of a seed counts once, whatever the size.
        shift = self._shift / self.seeds
        rest_C = self.error.variance / self.seeds * np.maximum(0, spread_C - 1 / len(self._x_K))
        total_C = shift + rest_C
        # Satterthwaite's degrees of freedom of the sum.
        parts_C = shift**2 / (self.seeds - 1) + rest_C**2 / self.error.df
        df_C = np.divide(total_C**2, parts_C, out=np.ones_like(total_C), where=parts_C > 0)
        half_C: np.ndarray = special.stdtrit(df_C, (1 + LEVEL) / 2) * np.sqrt(total_C)
        return half_C

    def _left(self, some: "_Fits") -> np.ndarray:
        """Of the room that the likelihood leaves, the share that an exponent with this sum of squares has not used."""
        used_C = (some.squares_C - self._least) / self._room if self._room else np.zeros_like(some.squares_C)
        return np.clip(1 - used_C, 0, 1)

    @property
    def _least(self) -> float:
        return float(self._best.squares_C[0])

    @property
    def _room(self) -> float:
        """How much larger the sum of squares may be."""
        room: float = self.error.t() ** 2 * self.error.variance / self.seeds
        return room

    @cached_property
    def _possible(self) -> "_Fits":
        """Of exponents whose sum of squares is small enough."""

        def over(log_exponent: float) -> float:
            return float(self._fitted(math.exp(log_exponent)).squares_C[0]) - self._least - self._room

        best, bounds = math.log(self._best.exponent_C[0]), [math.log(end) for end in EXPONENTS]
        ends = [optimize.brentq(over, best, end) if over(end) > 0 > over(best) else end for end in bounds]
        return self._fitted(*np.exp(np.linspace(ends[0], ends[1], ALONG))) if self._room else self._best

    @cached_property
    def _best(self) -> "_Fits":
        grid = np.geomspace(EXPONENTS[0], EXPONENTS[1], GRID)
        place = int(self._fitted(*grid).squares_C.argmin())
        around = grid[max(0, place - 1)], grid[min(GRID - 1, place + 1)]
        found = optimize.minimize_scalar(
            lambda exponent: self._fitted(exponent).squares_C[0], bounds=around, method="bounded",
            options={"xatol": 1e-9},
        )  # fmt: skip
        return self._fitted(found.x)

    def _fitted(self, *exponents: float) -> "_Fits":
        exponent_C = np.array(exponents, float)
        u_CK, count = self._x_K ** -exponent_C[:, None], len(self._x_K)
        middle_C = u_CK.mean(axis=1)
        slope_C = 1 / np.square(u_CK - middle_C[:, None]).sum(axis=1)
        b_C = slope_C * ((u_CK - middle_C[:, None]) @ self._mean_K)
        a_C = self._mean_K.mean() - b_C * middle_C
        left_CK = self._mean_K - a_C[:, None] - b_C[:, None] * u_CK
        return _Fits(exponent_C, a_C, b_C, np.square(left_CK).sum(axis=1), middle_C, slope_C, count)


@dataclass(frozen=True)
class _Fits:
    """Least squares of a and b for each of C exponents."""

    exponent_C: np.ndarray
    a_C: np.ndarray
    b_C: np.ndarray
    squares_C: np.ndarray
    """Sum over the means of what is left."""
    middle_C: np.ndarray
    """Mean of x^-c over the sizes."""
    slope_C: np.ndarray
    """Sum of squares of the means' weights in b."""
    count: int

    def at(self, x: float) -> np.ndarray:
        """Value at x times the largest size."""
        return self.a_C + self.b_C * x**-self.exponent_C

    def spread(self, x: float) -> np.ndarray:
        """Sum of squares of the means' weights in that value."""
        found: np.ndarray = 1 / self.count + self.slope_C * np.square(x**-self.exponent_C - self.middle_C)
        return found


def complete(points: Points) -> tuple[list[int], np.ndarray]:
    """Sizes, and values [K, S] of the seeds that all of them have. Raises Declined."""
    sizes = sorted(points)
    if len(sizes) < MIN_SIZES:
        raise Declined(f"it needs {MIN_SIZES} sizes of data.subset_size; there are {len(sizes)}")
    if (span := sizes[-1] / sizes[0]) < MIN_SPAN:
        raise Declined(f"the largest size has to be {MIN_SPAN:g} times the smallest; it is {span:.3g} times")
    seeds = sorted(set.intersection(*(set(points[n]) for n in sizes)))
    if len(seeds) < MIN_SEEDS:
        raise Declined(f"it needs {MIN_SEEDS} seeds that have finished at every size; there are {len(seeds)}")
    return sizes, np.array([[points[n][seed] for seed in seeds] for n in sizes])
