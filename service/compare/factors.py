"""What each factor does, and what each pair of factors does together. Pure; the unit stays the seed.

Within a seed, first the mean over the cells of the other factors; then mean, interval and test over seeds. So a table
of 2 x 3 arms and 5 seeds tests its factors with n = 5, not 15 or 30.
"""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from service.compare.stats import Paired, against_zero, holm, summarise, verdict
from service.schemas.comparison import Contrast, Effect, Estimate, Factor, FactorCell, FactorLevel, Interaction

NOT_TESTED: Mapping[str, Any] = {"p": None, "p_holm": None, "verdict": "not tested: seeds in rounds"}

Levels = Mapping[str, str]
Place = tuple[str, ...]


@dataclass(frozen=True)
class Cell:
    """An arm: its levels, the probe of its finished seeds, and the seeds that were asked for."""

    levels: Levels
    values: Mapping[int, float]
    seeds: Sequence[int]


def main_effects(
    cells: Sequence[Cell], baseline: Levels, higher_is_better: bool, *, tested: bool = True
) -> list[Factor]:  # fmt: skip
    """Every factor with two levels or more. Holm's correction is over all effects of all factors.

    `tested`: whether they get verdicts, which the design of seeds in rounds has no rule for.
    """
    grid = Grid(cells)
    found = {
        (name, level): grid.effect(name, level, baseline[name])
        for name, levels in grid.factors.items()
        for level in levels
        if level != baseline[name]
    }
    adjusted = holm({key: pairs.tested.p for key, pairs in found.items() if pairs.tested.p is not None})

    def effect(key: tuple[str, str]) -> Effect | None:
        if key not in found:
            return None
        pairs, p_holm = found[key], adjusted.get(key)
        judged = verdict(pairs.tested, p_holm, higher_is_better)
        test = {"p": pairs.tested.p, "p_holm": p_holm, "verdict": judged} if tested else NOT_TESTED
        return Effect(**vars(pairs.tested.summary), **test, pairs=pairs.count, missing_pairs=pairs.missing)

    return [
        Factor(
            name=name,
            baseline=baseline[name],
            levels=[
                FactorLevel(level=level, estimate=grid.mean({name: level}), effect=effect((name, level)))
                for level in levels
            ],
        )
        for name, levels in grid.factors.items()
    ]


def interactions(
    cells: Sequence[Cell], baseline: Levels, higher_is_better: bool, *, tested: bool = True
) -> list[Interaction]:  # fmt: skip
    """Every pair of factors. Holm's correction is over all contrasts of all pairs. `tested` as in `main_effects`."""
    grid = Grid(cells)
    pairs = list(itertools.combinations(grid.factors, 2))
    found = {
        (name, other, level, other_level): grid.contrast({name: level, other: other_level}, baseline)
        for name, other in pairs
        for level, other_level in itertools.product(grid.factors[name], grid.factors[other])
        if level != baseline[name] and other_level != baseline[other]
    }
    adjusted = holm({key: contrast.p for key, contrast in found.items() if contrast.p is not None})
    judged = {
        key: {
            "p": contrast.p, "p_holm": adjusted.get(key),
            "verdict": _shown(verdict(contrast, adjusted.get(key), higher_is_better)),
        }
        for key, contrast in found.items()
    }  # fmt: skip
    contrasts = {
        key: Contrast(
            **vars(contrast.summary), **(judged[key] if tested else NOT_TESTED), level=key[2], other_level=key[3]
        )
        for key, contrast in found.items()
    }
    return [
        Interaction(
            factor=name,
            other=other,
            cells=[
                FactorCell(level=level, other_level=at, estimate=grid.mean({name: level, other: at}))
                for level, at in itertools.product(grid.factors[name], grid.factors[other])
            ],
            contrasts=[contrast for key, contrast in contrasts.items() if key[:2] == (name, other)],
        )
        for name, other in pairs
    ]


@dataclass(frozen=True)
class Pairs:
    """A level against another: the difference of every seed, tested, and the pairs of runs that it is made of."""

    tested: Paired
    count: int
    missing: int


class Grid:
    """The arms by their levels."""

    def __init__(self, cells: Sequence[Cell]) -> None:
        self._names = list(dict.fromkeys(name for cell in cells for name in cell.levels))
        self._cells = {self._place(cell.levels): cell for cell in cells}
        self._seeds = sorted({seed for cell in cells for seed in cell.seeds})
        levels = {name: list(dict.fromkeys(cell.levels[name] for cell in cells)) for name in self._names}
        self.factors = {name: found for name, found in levels.items() if len(found) > 1}
        """Factors with two levels or more, levels in the order of the request."""

    def mean(self, levels: Levels) -> Estimate:
        """Over all cells with these levels, of seeds that have all of them: a mean of some is of another thing."""
        cells = [cell for cell in self._cells.values() if levels.items() <= cell.levels.items()]
        whole = [seed for seed in self._seeds if cells and all(seed in cell.values for cell in cells)]
        return Estimate(**vars(summarise([fmean(cell.values[seed] for cell in cells) for seed in whole])))

    def effect(self, name: str, level: str, other: str) -> Pairs:
        """`level` minus `other` of a factor, over the cells and seeds that both have."""
        corners = [(self._at(cell, {name: level}), self._at(cell, {name: other})) for cell in self._with(name, level)]
        seeds = [
            [one.values[seed] - two.values[seed] for one, two in corners if seed in one.values and seed in two.values]
            for seed in self._seeds
        ]
        asked = sum(seed in one.seeds and seed in two.seeds for one, two in corners for seed in self._seeds)
        count = sum(map(len, seeds))
        return Pairs(against_zero([fmean(found) for found in seeds if found]), count, asked - count)

    def contrast(self, levels: Levels, baseline: Levels) -> Paired:
        """Of two factors' levels: the difference of differences, over the cells and seeds that have all four runs."""
        (name, level), (other, other_level) = levels.items()
        ground, ground_other = {name: baseline[name]}, {other: baseline[other]}
        squares = [
            (cell, self._at(cell, ground), self._at(cell, ground_other), self._at(cell, ground | ground_other))
            for cell in self._with(name, level)
            if cell.levels[other] == other_level
        ]
        differences = []
        for seed in self._seeds:
            whole = [[cell.values[seed] for cell in square] for square in squares if _all_have(square, seed)]
            if whole:
                differences.append(fmean((both - without) - (alone - none) for both, without, alone, none in whole))
        return against_zero(differences)

    def _with(self, name: str, level: str) -> Iterator[Cell]:
        return (cell for cell in self._cells.values() if cell.levels[name] == level)

    def _at(self, cell: Cell, changes: Levels) -> Cell:
        return self._cells[self._place({**cell.levels, **changes})]

    def _place(self, levels: Levels) -> Place:
        return tuple(levels[name] for name in self._names)


def _all_have(cells: Sequence[Cell], seed: int) -> bool:
    return all(seed in cell.values for cell in cells)


def _shown(judged: str) -> str:
    # More of a difference is neither better nor worse.
    words = {"better": "interaction shown", "worse": "interaction shown", "no difference shown": "no interaction shown"}
    return words.get(judged, judged)
