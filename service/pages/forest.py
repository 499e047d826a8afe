"""The comparison as one small picture a row, all on the same axis: mean, 95 % interval, seeds, floors."""

from collections.abc import Iterator
from dataclasses import dataclass

from service.schemas.comparison import ArmRow, Comparison
from service.text import short

WIDTH = 200
MARGIN = 8
FLOORS_WITHIN = 0.5
"""Of the arms' own range: farther ones would leave the arms a corner of the picture."""


@dataclass(frozen=True)
class Marks:
    """Pixels from the left; None where the arm has no such number."""

    mean: float | None
    low: float | None
    high: float | None
    seeds: list[float]
    floors: list[float]
    words: str


@dataclass(frozen=True)
class Forest:
    low: str
    high: str
    """What the ends of the axis stand for."""
    baseline: float | None
    rows: list[Marks]
    """As the comparison's arms."""
    width: int = WIDTH


def forest(table: Comparison) -> Forest | None:
    """None while there is no number to draw."""
    numbers = [number for row in table.arms for number in _numbers(row)]
    if not numbers:
        return None
    reach = FLOORS_WITHIN * (max(numbers) - min(numbers))
    floors = [floor for row in table.arms for floor in _floors(row)]
    numbers += [floor for floor in floors if min(numbers) - reach <= floor <= max(numbers) + reach]
    low, high = min(numbers), max(numbers)
    span = (high - low) or abs(high) or 1.0

    def x(value: float) -> float:
        return round(MARGIN + (value - low) / span * (WIDTH - 2 * MARGIN), 1)

    def at(value: float | None) -> float | None:
        return None if value is None else x(value)

    def marks(row: ArmRow) -> Marks:
        probe = row.probe
        return Marks(
            mean=at(probe.mean if probe else None), low=at(probe.low if probe else None),
            high=at(probe.high if probe else None), seeds=[x(run.value) for run in row.runs if run.value is not None],
            floors=[x(value) for value in _floors(row) if low <= value <= high], words=_words(row),
        )  # fmt: skip

    rows = [marks(row) for row in table.arms]
    baseline = next((marks.mean for row, marks in zip(table.arms, rows, strict=True) if row.is_baseline), None)
    return Forest(short(low), short(high), baseline, rows)


def _numbers(row: ArmRow) -> Iterator[float]:
    yield from (run.value for run in row.runs if run.value is not None)
    if row.probe and row.probe.low is not None and row.probe.high is not None:
        yield from (row.probe.low, row.probe.high)


def _floors(row: ArmRow) -> list[float]:
    return [row.floors.pixels, row.floors.random_encoder] if row.floors else []


def _words(row: ArmRow) -> str:
    if not row.probe or row.probe.mean is None:
        return "no finished run"
    if row.probe.low is None:
        return f"mean {short(row.probe.mean)}"
    return f"mean {short(row.probe.mean)}, 95 % interval {short(row.probe.low)} to {short(row.probe.high)}"
