"""The chart of a forecast, as numbers a template can draw: images on a logarithmic axis."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from service.pages.curves import Tick, round_values
from service.pages.overlay import BOTTOM, HEIGHT, LEFT, RIGHT, TOP, WIDTH, Frame
from service.schemas.comparison import Forecasts
from service.text import short

MAX_LINES = 6
"""More colours cannot be told apart; the table has the others."""


@dataclass(frozen=True)
class SizeLine:
    style: int
    points: str
    band: str
    dots: list[tuple[float, float]]
    check: tuple[float, float]


@dataclass(frozen=True, kw_only=True)
class SizeChart(Frame):
    lines: list[SizeLine]


def forecast_chart(found: Forecasts) -> SizeChart:
    """Without lines where nothing is forecast."""
    drawn = [(style, arm) for style, arm in enumerate(found.arms) if arm.curve and arm.check][:MAX_LINES]
    if not drawn:
        return SizeChart(lines=[], x_ticks=[], y_ticks=[])
    x_low, x_high = (math.log10(drawn[0][1].curve[place].size) for place in (0, -1))
    values = [value for _, arm in drawn for point in arm.curve for value in (point.low, point.high)]
    values += [mean for _, arm in drawn for _, mean in arm.means]
    y_marks = round_values(min(values), max(values), 5)
    y_low, y_high = y_marks[0], y_marks[-1]

    def x(size: float) -> float:
        return round(LEFT + (math.log10(size) - x_low) / ((x_high - x_low) or 1) * (WIDTH - LEFT - RIGHT), 1)

    def y(value: float) -> float:
        return round(TOP + (y_high - value) / (y_high - y_low) * (HEIGHT - TOP - BOTTOM), 1)

    lines = []
    for style, arm in drawn:
        assert arm.check
        sizes = [point.size for point in arm.curve]
        highs, lows = [point.high for point in arm.curve], [point.low for point in arm.curve]
        outline = [*zip(sizes, highs, strict=True), *reversed(list(zip(sizes, lows, strict=True)))]
        lines.append(SizeLine(
            style=style, band=_path([(x(n), y(value)) for n, value in outline]),
            points=_path([(x(point.size), y(point.value)) for point in arm.curve]),
            dots=[(x(n), y(mean)) for n, mean in arm.means], check=(x(arm.means[-1][0]), y(arm.check.value)),
        ))  # fmt: skip
    powers = range(math.ceil(x_low), math.floor(x_high) + 1)
    marks = [factor * 10**power for power in range(math.floor(x_low), math.ceil(x_high) + 1) for factor in (1, 2, 5)]
    shown = [10**power for power in powers] if len(powers) > 2 else marks
    return SizeChart(
        lines=lines,
        x_ticks=[Tick(x(mark), f"{mark:,}") for mark in shown if x_low <= math.log10(mark) <= x_high],
        y_ticks=[Tick(y(mark), short(mark)) for mark in y_marks],
    )


def _path(points: Sequence[tuple[float, float]]) -> str:
    return " ".join(f"{x},{y}" for x, y in points)
