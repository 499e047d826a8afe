"""The levels of the looks, by ways that share nothing with service/compare/levels.py: integration and simulation."""

import numpy as np
import pytest
from scipy.special import beta, betainc, stdtr, stdtrit

from service.compare import levels as module
from service.compare.levels import alpha_for, levels
from trainer.contract.rounds import Spending

LINEAR, OBRIEN = Spending.LINEAR, Spending.OBRIEN_FLEMING


def shares(looks: tuple[int, ...]) -> tuple[float, ...]:
    return tuple(count / looks[-1] for count in looks)


def crosses_second(looks: tuple[int, int], first: float, second: float) -> float:
    """P(the first look does not show, the second does), by integration over all directions of n + m numbers.

    Of the square of such a direction, sin^2(psi) is in the first n, whatever these look like; so with v and w for the
    sums of the directions of each part, v2 = sin(psi) v + cos(psi) w.
    """
    n, m = looks[0], looks[1] - looks[0]
    c1, c2 = bound(first, n), bound(second, n + m)
    node, weight = np.polynomial.legendre.leggauss(400)
    v, psi = (c1 * node)[:, None], (np.pi / 4 * (node + 1))[None, :]
    of_v = weight * (1 - (c1 * node) ** 2 / n) ** ((n - 3) / 2) * c1 / (np.sqrt(n) * beta(0.5, (n - 1) / 2))
    of_psi = weight * np.pi / 2 / beta(n / 2, m / 2) * np.sin(psi[0]) ** (n - 1) * np.cos(psi[0]) ** (m - 1)
    beyond = below((-c2 - np.sin(psi) * v) / np.cos(psi), m) + below((-c2 + np.sin(psi) * v) / np.cos(psi), m)
    return float(of_v @ beyond @ of_psi)


def bound(p: float, count: int) -> float:
    t = -stdtrit(count - 1, p / 2)
    return float(t * np.sqrt(count) / np.sqrt(count - 1 + t * t))


def below(w: np.ndarray, count: int) -> np.ndarray:
    """Distribution function of the sum of a direction of `count` numbers."""
    z = np.clip(w / np.sqrt(count), -1, 1)
    found: np.ndarray = 0.5 + 0.5 * np.sign(z) * betainc(0.5, (count - 1) / 2, z * z)
    return found


@pytest.mark.parametrize("looks", [(4, 8), (3, 6), (6, 12)])
@pytest.mark.parametrize("spending", [LINEAR, OBRIEN])
@pytest.mark.parametrize("alpha", [0.05, 0.05 / 7])
def test_two_looks_spend_what_they_may_by_integration(looks: tuple[int, int], spending: Spending, alpha: float) -> None:
    first, second = levels(looks, shares(looks), spending, alpha)
    assert first + crosses_second(looks, first, second) == pytest.approx(alpha, rel=1e-3)


@pytest.mark.parametrize("looks", [(4, 8, 12), (3, 6, 9, 12), (3, 4, 5, 6), (5, 7, 20)])
@pytest.mark.parametrize("spending", [LINEAR, OBRIEN])
def test_more_looks_spend_what_they_may_by_simulation(looks: tuple[int, ...], spending: Spending) -> None:
    random, count = np.random.default_rng(1), 300_000
    found = levels(looks, shares(looks), spending, 0.05)
    total, squares, before = np.zeros(count), np.zeros(count), 0
    crossed = np.zeros(count, bool)
    for n, share, level in zip(looks, shares(looks), found, strict=True):
        for _ in range(n - before):
            drawn = random.standard_normal(count)
            total += drawn
            squares += drawn**2
        before = n
        t = total / n / np.sqrt((squares - total**2 / n) / (n - 1) / n)
        crossed |= 2 * stdtr(n - 1, -abs(t)) < level
        may = float(module.spent(spending, np.array(0.05), share))
        assert crossed.mean() == pytest.approx(may, abs=4 * np.sqrt(may * (1 - may) / count) + 0.002 * may)


def test_finer_cells_change_nothing_that_matters(monkeypatch: pytest.MonkeyPatch) -> None:
    coarse = [levels((3, 6, 9, 12), shares((3, 6, 9, 12)), LINEAR, alpha) for alpha in (0.05, 0.05 / 28)]
    edges = (np.arange(601) / 600) ** 3
    widths = np.diff(edges)
    with monkeypatch.context() as patch:
        for name, value in {
            "CELLS": 600, "_EDGES": edges, "_WIDTHS": widths,
            "_POINTS": np.concatenate([edges[:-1] + widths * share for share in (0.5 - 12**-0.5, 0.5 + 12**-0.5)]),
        }.items():  # fmt: skip
            patch.setattr(module, name, value)
        module._one_more.cache_clear()
        module._levels.cache_clear()
        fine = [levels((3, 6, 9, 12), shares((3, 6, 9, 12)), LINEAR, alpha) for alpha in (0.05, 0.05 / 28)]
    module._one_more.cache_clear()
    module._levels.cache_clear()
    assert np.array(coarse) == pytest.approx(np.array(fine), rel=1e-3)


@pytest.mark.parametrize("spending", [LINEAR, OBRIEN])
def test_an_error_rate_and_its_level_are_inverse_and_grow_together(spending: Spending) -> None:
    looks = (4, 8, 12)
    for alpha in (1e-12, 1e-5, 0.004, 0.05, 0.3):
        for number, level in enumerate(levels(looks, shares(looks), spending, alpha), 1):
            assert alpha_for(level, looks[:number], shares(looks)[:number], spending) == pytest.approx(alpha, rel=1e-9)
    grid = np.array([levels(looks, shares(looks), spending, alpha) for alpha in np.geomspace(1e-8, 1, 200)])
    # Holm gives more to what is left, so a level must not fall where more may be spent.
    assert (np.diff(grid, axis=0) >= 0).all()


def test_what_is_spent_does_not_depend_on_looks_to_come() -> None:
    assert levels((4, 8), (1 / 3, 2 / 3), LINEAR, 0.05) == levels((4, 8, 12), (1 / 3, 2 / 3, 1), LINEAR, 0.05)[:2]


def test_the_first_look_is_a_t_test_at_what_it_may_spend() -> None:
    assert levels((4, 12), (1 / 3, 1), LINEAR, 0.05)[0] == pytest.approx(0.05 / 3)
    assert levels((12,), (1.0,), OBRIEN, 0.05)[0] == pytest.approx(0.05)
