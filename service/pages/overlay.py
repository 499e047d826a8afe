"""The arms' curves in one chart: a line for the mean over an arm's seeds, a band from their lowest to their highest."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from service.pages.curves import Tick, round_values
from service.schemas.experiments import ArmCurve
from service.text import short

WIDTH, HEIGHT = 720, 300
LEFT, RIGHT, TOP, BOTTOM = 60, 12, 10, 38


@dataclass(frozen=True)
class ArmLine:
    style: int
    """Which colour and which dashes."""
    name: str
    is_baseline: bool
    points: str
    band: str
    """Outline, as `x,y x,y ...`."""
    last_step: int
    mean: str
    low: str
    high: str
    seeds: int
    """Of the last step."""


@dataclass(frozen=True, kw_only=True)
class Frame:
    """Where a large chart is drawn."""

    x_ticks: list[Tick]
    y_ticks: list[Tick]
    width: int = WIDTH
    height: int = HEIGHT
    left: int = LEFT
    right: int = WIDTH - RIGHT
    bottom: int = HEIGHT - BOTTOM


@dataclass(frozen=True, kw_only=True)
class Overlay(Frame):
    lines: list[ArmLine]


def overlay(curves: Sequence[ArmCurve], styles: Mapping[str, int]) -> Overlay | None:
    """`styles`: by the arm's name, so that an arm keeps its colour. None without a curve."""
    if not curves:
        return None
    x_low, x_high = min(curve.steps[0] for curve in curves), max(curve.steps[-1] for curve in curves)
    x_high = max(x_high, x_low + 1)
    y_marks = round_values(min(min(curve.low) for curve in curves), max(max(curve.high) for curve in curves), 5)
    y_low, y_high = y_marks[0], y_marks[-1]

    def x(step: float) -> float:
        return round(LEFT + (step - x_low) / (x_high - x_low) * (WIDTH - LEFT - RIGHT), 1)

    def y(value: float) -> float:
        return round(TOP + (y_high - value) / (y_high - y_low) * (HEIGHT - TOP - BOTTOM), 1)

    def path(steps: Sequence[int], values: Sequence[float]) -> list[str]:
        return [f"{x(step)},{y(value)}" for step, value in zip(steps, values, strict=True)]

    lines = [
        ArmLine(
            style=styles[curve.arm], name=curve.arm, is_baseline=curve.is_baseline,
            points=" ".join(path(curve.steps, curve.mean)),
            band=" ".join([*path(curve.steps, curve.high), *reversed(path(curve.steps, curve.low))]),
            last_step=curve.steps[-1], mean=short(curve.mean[-1]), low=short(curve.low[-1]),
            high=short(curve.high[-1]), seeds=curve.seeds[-1],
        )
        for curve in curves
    ]  # fmt: skip
    return Overlay(
        lines=lines,
        x_ticks=[
            Tick(x(mark), _round_number(mark)) for mark in round_values(x_low, x_high, 6) if x_low <= mark <= x_high
        ],
        y_ticks=[Tick(y(mark), short(mark)) for mark in y_marks],
    )


def _round_number(value: float) -> str:
    return f"{value / 1e6:g} M" if value >= 1e6 else f"{value:,.0f}" if value == int(value) else f"{value:g}"
