"""Line charts as numbers a template can draw: where the points go, and which round values label the axes."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from service.text import short

WIDTH, HEIGHT = 360, 170
LEFT, RIGHT, TOP, BOTTOM = 50, 10, 10, 22
MAX_POINTS = 300
"""More points than pixels only make the page heavier."""
TINY = 1e-300
"""Numbers so small have few digits, or none, left for others between them."""


@dataclass(frozen=True)
class Tick:
    at: float
    """Pixels from the left for x, from the top for y."""
    label: str


@dataclass(frozen=True)
class Curve:
    """One metric over steps. `lines` holds one `x,y x,y ...` list for each stretch without a gap."""

    name: str
    newest: str
    lines: list[str]
    dots: list[tuple[float, float]]
    """Values with a gap on both sides, which no line would show."""
    x_ticks: list[Tick]
    y_ticks: list[Tick]
    width: int = WIDTH
    height: int = HEIGHT
    left: int = LEFT
    right: int = WIDTH - RIGHT
    bottom: int = HEIGHT - BOTTOM


History = Sequence[tuple[int, float | None]]


def curve(name: str, history: History) -> Curve | None:
    """Chart of (step, value) pairs in step order; None is a gap. No chart where nothing but gaps is left."""
    finite = [(step, value) for step, value in history if value is not None]
    if not finite:
        return None
    shown = _thinned(history)
    steps, values = [step for step, _ in finite], [value for _, value in finite]
    x_low, x_high = steps[0], max(steps[-1], steps[0] + 1)
    y_marks = round_values(min(values), max(values), 4)
    y_low, y_high = y_marks[0], y_marks[-1]

    def x(step: float) -> float:
        return round(LEFT + (step - x_low) / (x_high - x_low) * (WIDTH - LEFT - RIGHT), 1)

    def y(value: float) -> float:
        return round(TOP + (y_high - value) / (y_high - y_low) * (HEIGHT - TOP - BOTTOM), 1)

    stretches = [[(x(step), y(value)) for step, value in stretch] for stretch in _stretches(shown)]
    return Curve(
        name=name,
        newest=short(values[-1]),
        lines=[" ".join(f"{px},{py}" for px, py in stretch) for stretch in stretches if len(stretch) > 1],
        dots=[stretch[0] for stretch in stretches if len(stretch) == 1],
        x_ticks=[Tick(x(mark), f"{mark:g}") for mark in round_values(x_low, x_high, 4) if x_low <= mark <= x_high],
        y_ticks=[Tick(y(mark), short(mark)) for mark in y_marks],
    )


def round_values(low: float, high: float, count: int) -> list[float]:
    """About `count` round numbers (1, 2 or 5 times a power of ten apart) that enclose low to high."""
    # Marks closer together than numbers of this size can be would be one and the same.
    if high - low <= max(1e-12 * max(abs(low), abs(high)), TINY):
        margin = abs(low) * 0.05 if abs(low) > TINY else 1.0
        low, high = low - margin, high + margin
    rough = (high - low) / count
    power = 10.0 ** math.floor(math.log10(rough))
    distance = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * 0.999)
    first, last = math.floor(low / distance + 1e-9), math.ceil(high / distance - 1e-9)
    return [number * distance for number in range(first, last + 1)]


def _thinned(history: History) -> History:
    every = math.ceil(len(history) / MAX_POINTS)
    kept = list(history[::every])
    return kept if kept[-1] == history[-1] else [*kept, history[-1]]


def _stretches(history: History) -> list[list[tuple[int, float]]]:
    stretches: list[list[tuple[int, float]]] = [[]]
    for step, value in history:
        if value is not None:
            stretches[-1].append((step, value))
        elif stretches[-1]:
            stretches.append([])
    return [stretch for stretch in stretches if stretch]
