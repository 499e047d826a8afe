"""The comparison as a picture: one line an arm, every seed a dot, mean and interval above it, floors dashed. SVG."""

from collections.abc import Callable, Iterator
from html import escape

from service.schemas.comparison import ArmRow, Comparison

WIDTH, LEFT, RIGHT, TOP, LINE = 860, 300, 30, 44, 34
COLOURS = {"text": "#1f2933", "faint": "#9aa5b1", "arm": "#1f6feb", "baseline": "#b35900", "dot": "#7b8794"}


def svg(table: Comparison) -> str:
    """Arms in the table's order; a sentence in place of the plot while no run has finished."""
    height = TOP + LINE * len(table.arms) + 50
    body = (
        "\n".join(_plot(table, height))
        if table.metric and _numbers(table)
        else _text(20, TOP, "No run has finished with a probe yet.")
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}" '
        f'font-family="system-ui, sans-serif" font-size="13"><title>{escape(table.title)}</title>\n'
        f'<rect width="100%" height="100%" fill="#ffffff"/>\n{body}\n</svg>\n'
    )


def _plot(table: Comparison, height: int) -> Iterator[str]:
    assert table.metric
    numbers = _numbers(table)
    low, high = min(numbers), max(numbers)
    margin = (high - low) * 0.06 or max(abs(high) * 0.05, 1e-6)
    low, high = low - margin, high + margin
    bottom = TOP + LINE * len(table.arms)

    def x(value: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * (value - low) / (high - low)

    as_of = f"; {table.at}" if table.at else ""
    better = "higher" if table.metric.higher_is_better else "lower"
    yield _text(
        LEFT, 20, f"{table.metric.name} ({table.metric.unit}), {better} is better: mean, 95 % interval, seeds{as_of}"
    )
    for tick in range(5):
        value = low + (high - low) * tick / 4
        yield _rule(x(value), TOP - 8, x(value), bottom, "#e4e7eb")
        yield _text(x(value), bottom + 18, f"{value:.4g}", "middle", COLOURS["faint"])
    for index, row in enumerate(table.arms):
        yield from _arm(row, TOP + LINE * index + LINE / 2, x)
    yield _text(
        LEFT, height - 10, "dashed: floors of the arm (p raw pixels, r untrained encoder)", colour=COLOURS["faint"]
    )


def _arm(row: ArmRow, y: float, x: Callable[[float], float]) -> Iterator[str]:
    colour = COLOURS["baseline" if row.is_baseline else "arm"]
    name = row.name if len(row.name) <= 42 else f"{row.name[:40]}.."
    yield _text(LEFT - 12, y + 4, name + (" (baseline)" if row.is_baseline else ""), "end", colour)
    if row.floors:
        for label, value in ("p", row.floors.pixels), ("r", row.floors.random_encoder):
            yield _rule(x(value), y - 12, x(value), y + 12, COLOURS["faint"], 'stroke-dasharray="3 2"')
            yield _text(x(value), y - 12, label, "middle", COLOURS["faint"], 9)
    for run in row.runs:
        if run.value is not None:
            yield f'<circle cx="{x(run.value):.1f}" cy="{y + 6:.1f}" r="3" fill="{COLOURS["dot"]}" fill-opacity="0.6"/>'
    if row.probe and row.probe.mean is not None:
        if row.probe.low is not None and row.probe.high is not None:
            yield _rule(x(row.probe.low), y, x(row.probe.high), y, colour, 'stroke-width="2"')
        yield f'<circle cx="{x(row.probe.mean):.1f}" cy="{y:.1f}" r="5" fill="{colour}"/>'
    else:
        yield _text(LEFT, y + 4, "no finished run", colour=COLOURS["faint"])


def _numbers(table: Comparison) -> list[float]:
    found: list[float | None] = []
    for row in table.arms:
        found += [run.value for run in row.runs]
        found += [row.probe.low, row.probe.high] if row.probe else []
        found += [row.floors.pixels, row.floors.random_encoder] if row.floors else []
    return [number for number in found if number is not None]


def _text(x: float, y: float, text: str, anchor: str = "start", colour: str = COLOURS["text"], size: int = 13) -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{colour}" font-size="{size}">{escape(text)}</text>'
    )


def _rule(x1: float, y1: float, x2: float, y2: float, colour: str, more: str = "") -> str:
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{colour}" {more}/>'
