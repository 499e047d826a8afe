"""How small p has to be at each look, so that all looks together make an error no more often than one test would.

Error spending (Lan and DeMets 1983; Jennison and Turnbull 2000, chapter 7), for the two-sided paired t test itself and
not for its normal limit: with four to twelve seeds the normal levels give 0.054 to 0.057 where 0.05 is promised.

When nothing differs, the p-values of one arm at growing numbers of seeds are a Markov chain without a parameter.
Let v = sum of the differences / root of the sum of their squares; t, and so p, is a monotone function of |v|. By
Basu's theorem v is independent of that root, so the next difference, divided by it, is t-distributed whatever was seen
before: s = T / sqrt(n) with n degrees of freedom, and v' = (v + s) / sqrt(1 + s^2). With s = tan(phi) this is
v' = sqrt(1 + v^2) cos(phi - arctan(1 / v)), so how likely |v'| is above a bound is a difference of two values of one
distribution function. The chain is followed on cells of p, which is uniform before the first look.

Suffixes: A levels, N cells, L looks.
"""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import numpy.typing as npt

# Not scipy.stats, which takes a second to import; these are its t and normal distributions.
from scipy.special import ndtr, ndtri, stdtr, stdtrit

from trainer.contract.rounds import Spending

Array = npt.NDArray[np.float64]

# Finer cells change the levels by less than a thousandth of themselves (tests/unit/service/test_levels.py).
CELLS = 300
# Cells are small where p is: the levels are there.
_EDGES = (np.arange(CELLS + 1) / CELLS) ** 3
_WIDTHS = np.diff(_EDGES)
# Two points stand for a cell, as in Gauss's rule.
_POINTS = np.concatenate([_EDGES[:-1] + _WIDTHS * share for share in (0.5 - 12**-0.5, 0.5 + 12**-0.5)])
_ANGLES = np.linspace(-np.pi / 2, np.pi / 2, 20_001)
_PER_RADIAN = (len(_ANGLES) - 1) / np.pi
# Levels are solved for at these errors, and between them read off.
_ALPHAS = np.geomspace(1e-9, 1.0, 160)


def levels(looks: Sequence[int], shares: Sequence[float], spending: Spending, alpha: float) -> list[float]:
    """The two-sided p at which each look shows a difference, where `alpha` may be spent over all of them.

    looks: numbers of pairs, growing. shares: of the information, up to 1 at the last look that is planned; what is
    spent until a look follows from its share alone, so looks to come need not be known.
    """
    known_LA = _levels(tuple(looks), tuple(shares), spending)
    return [_read_off(alpha, _ALPHAS, level_A) for level_A in known_LA]


def alpha_for(p: float, looks: Sequence[int], shares: Sequence[float], spending: Spending) -> float:
    """The smallest `alpha` whose level at the last of these looks is `p`; at most 1. The inverse of `levels`."""
    return min(1.0, _read_off(p, _levels(tuple(looks), tuple(shares), spending)[-1], _ALPHAS))


def spent(spending: Spending, alpha: Array, share: float) -> Array:
    """Error that may have been made until a look at this share of the information."""
    later: Array = 2 * ndtr(ndtri(alpha / 2) / np.sqrt(share))
    return alpha * share if spending is Spending.LINEAR else later


@lru_cache(maxsize=256)
def _levels(looks: tuple[int, ...], shares: tuple[float, ...], spending: Spending) -> list[Array]:
    """Of each look, for every one of _ALPHAS."""
    mass_AN = np.tile(_WIDTHS, (len(_ALPHAS), 1))
    """How likely it is that p is in a cell, and no look before has shown anything."""
    found, before_A = [], np.zeros(len(_ALPHAS))
    for index, share in enumerate(shares):
        for count in range(looks[index - 1] if index else looks[0], looks[index]):
            mass_AN = mass_AN @ _one_more(count)
        until_A = spent(spending, _ALPHAS, share)
        level_A, mass_AN = _cut(mass_AN, until_A - before_A)
        # Near an error of 1 the first look spends so much that little is left: no level falls because more is allowed.
        found.append(np.maximum.accumulate(level_A))
        before_A = until_A
    return found


def _cut(mass_AN: Array, error_A: Array) -> tuple[Array, Array]:
    """The levels under which so much mass lies, and the mass above them."""
    below_AN = np.cumsum(mass_AN, axis=1)
    cell_A = np.minimum((below_AN < error_A[:, None]).sum(axis=1), CELLS - 1)
    rows = np.arange(len(error_A))
    inside_A = mass_AN[rows, cell_A]
    # Rounding must not cut more than there is.
    part_A = np.clip((error_A - (below_AN[rows, cell_A] - inside_A)) / np.maximum(inside_A, 1e-300), 0, 1)
    rest_AN = np.where(np.arange(CELLS) > cell_A[:, None], mass_AN, 0.0)
    rest_AN[rows, cell_A] = inside_A * (1 - part_A)
    return _EDGES[cell_A] + part_A * _WIDTHS[cell_A], rest_AN


@lru_cache(maxsize=64)
def _one_more(count: int) -> Array:
    """Probability to come from a cell of p after `count` pairs to one after `count + 1`: (N, N)."""
    v = np.sqrt(count) * _sine(_POINTS, count)[:, None]
    bound = np.sqrt(count + 1) * _sine(_EDGES, count + 1)[None, :]
    turn, half = np.arctan2(1, v), np.arccos(np.minimum(1, bound / np.sqrt(1 + v**2)))
    above = _angle_below(turn + half, count) - _angle_below(turn - half, count)
    above += _angle_below(turn + half - np.pi, count)  # v' beyond the bound on the other side
    moved = np.diff(above, axis=1)
    return 0.5 * (moved[:CELLS] + moved[CELLS:])


def _angle_below(angle: Array, count: int) -> Array:
    """Distribution function of phi; numpy's interp would search for the place that is computed here."""
    known = stdtr(count, np.sqrt(count) * np.tan(_ANGLES))
    known[0], known[-1] = 0.0, 1.0
    place = np.clip((angle + np.pi / 2) * _PER_RADIAN, 0, len(known) - 1)
    below = np.minimum(place.astype(np.int64), len(known) - 2)
    found: Array = known[below] + (place - below) * np.diff(known)[below]
    return found


def _sine(p: Array, count: int) -> Array:
    """|v| / sqrt(count) of a two-sided p: from 1 at p = 0 to 0 at p = 1."""
    with np.errstate(divide="ignore"):
        t = np.abs(stdtrit(count - 1, p / 2))
    return np.where(p > 0, 1 / np.sqrt(1 + (count - 1) / np.maximum(t, 1e-150) ** 2), 1.0)


def _read_off(x: float, known_x: Array, known_y: Array) -> float:
    """On a double logarithmic scale, on which levels are almost straight lines; below the first, in proportion."""
    if x <= known_x[0]:
        return float(known_y[0] * x / known_x[0])
    return float(np.exp(np.interp(np.log(x), np.log(known_x), np.log(known_y))))
