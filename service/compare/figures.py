"""Figures for a paper, drawn by matplotlib: the same comparison gives the same bytes, as SVG, PNG or PDF.

plot.py draws the one picture of the page, without matplotlib and in no time; these take about a second each.
"""

import io
import math
import threading
from collections.abc import Callable, Sequence
from textwrap import fill
from typing import TYPE_CHECKING, Any

from service.schemas.comparison import Comparison, Estimate, Interaction, RankingMetric
from service.text import first_line

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FORMS = {"svg": "image/svg+xml", "png": "image/png", "pdf": "application/pdf"}
"""Form -> media type."""
ARM, BASELINE = "#1f6feb", "#b35900"
COLOURS = ("#1f6feb", "#b35900", "#2c7a4b", "#8250df", "#667079", "#bf3989")
MARKERS = "osD^vP"
INCHES, LINE = 6.8, 0.32
"""Width of a figure, and height of a line of it."""
PNG_DPI = 200
MAX_ARMS = 100
MAX_TICKS = 8
UPRIGHT = 32
"""Letters of a line that stands beside an axis."""

# Settings of matplotlib are those of the process.
_one_at_a_time = threading.Lock()


class Undrawable(Exception):
    """There is nothing to draw yet, or never; the text says why."""


def draw(table: Comparison, name: str, form: str) -> bytes:
    """A figure of FIGURES in a form of FORMS. Raises Undrawable."""
    if why := why_not(table, name):
        raise Undrawable(why)
    import matplotlib  # half a second that a start of the service need not spend
    from matplotlib.figure import Figure

    settings: Any = {
        "svg.hashsalt": f"mcf-{name}", "svg.fonttype": "none", "pdf.fonttype": 42, "font.size": 9,
        "axes.spines.top": False, "axes.spines.right": False, "text.parse_math": False,
    }  # fmt: skip
    with _one_at_a_time, matplotlib.rc_context(settings):
        figure = Figure(layout="constrained")
        FIGURES[name](table, figure)
        if table.at:
            figure.suptitle(str(table.at), fontsize="medium")
        file = io.BytesIO()
        # Without a date, which would make every file another one.
        undated: dict[str, dict[str, Any]] = {"svg": {"Date": None}, "pdf": {"CreationDate": None}, "png": {}}
        # As large as what is on it: a label may be longer than its axis.
        figure.savefig(file, format=form, dpi=PNG_DPI, metadata=undated[form], bbox_inches="tight", pad_inches=0.05)
    return file.getvalue()


def drawable(table: Comparison) -> list[str]:
    return [name for name in FIGURES if not why_not(table, name)]


def why_not(table: Comparison, name: str) -> str:
    """Why a figure cannot be drawn; empty where it can."""
    if table.metric is None:
        return "The arms have no probe in common, or no run has finished, so there is nothing to draw."
    if len(table.arms) > MAX_ARMS:
        return f"A figure of {len(table.arms)} arms could not be read; {MAX_ARMS} is the most. The table has them all."
    if name == "forest" and not any(_known(row.difference) for row in table.arms):
        return "No arm has a seed in common with the baseline yet, so there is no difference to draw."
    if name == "factors" and not any(_known(level.estimate) for f in table.factors for level in f.levels):
        return "No factor has two levels with a whole seed yet, so there is no effect to draw."
    if name == "forecast":
        return _why_no_forecast(table)
    if name == "interactions" and not table.interactions:
        return "Interactions are of two factors or more, each with two levels or more; this experiment has fewer."
    if name == "interactions" and not any(_known(cell.estimate) for pair in table.interactions for cell in pair.cells):
        return "No seed has finished in any cell of two factors yet, so there is nothing to draw."
    return ""


def _why_no_forecast(table: Comparison) -> str:
    if table.forecast is None:
        return "No forecast was asked for; ask with ?forecast=IMAGES, or with `forecast` in the spec."
    if any(arm.curve for arm in table.forecast.arms):
        return ""
    return f"There is no forecast: {table.forecast.declined or table.forecast.arms[0].declined}."


def _forest(table: Comparison, figure: "Figure") -> None:
    """Every arm's difference to the baseline with its interval."""
    metric = _metric(table)
    rows = [row for row in table.arms if row.difference]
    figure.set_size_inches(INCHES, 1.1 + LINE * len(rows))
    axes = figure.subplots()
    axes.axvline(0, color=BASELINE, linewidth=1)
    for y, row in enumerate(rows):
        found = row.difference
        if found and found.mean is not None:
            shown = found.verdict in ("better", "worse")
            axes.errorbar(
                [found.mean], [y], xerr=_half(found), color=ARM, marker="o", capsize=2, linewidth=1.3,
                markerfacecolor=ARM if shown else "white",
            )  # fmt: skip
    axes.set_yticks(range(len(rows)), [first_line(row.name, 60) for row in rows])
    axes.set_ylim(len(rows) - 0.5, -0.5)
    side = "right" if metric.higher_is_better else "left"
    axes.set_xlabel(
        f"difference to the baseline ({first_line(table.baseline, 40)}) in {_unit(metric)}\n"
        f"{'repeated ' if table.rounds else ''}95 % interval over seeds; better is to the {side}; filled: shown after "
        "Holm's correction"
    )


def _factors(table: Comparison, figure: "Figure") -> None:
    """Every factor's levels, in the mean over the other factors."""
    factors = table.factors
    columns = min(3, len(factors))
    rows = -(-len(factors) // columns)
    figure.set_size_inches(max(3.4, INCHES * columns / 3), 2.5 * rows)
    grid = figure.subplots(rows, columns, squeeze=False, sharey=True)
    for axes, factor in zip(grid.flat, factors, strict=False):
        _curve(axes, [level.estimate for level in factor.levels], ARM, "o")
        _ticks(axes, [level.level for level in factor.levels])
        for label, level in zip(axes.get_xticklabels(), factor.levels, strict=True):
            label.set_fontweight("bold" if level.level == factor.baseline else "normal")
        axes.set_xlabel(first_line(factor.name, 40))
    for axes in grid.flat[len(factors) :]:
        axes.set_axis_off()
    for axes in grid[:, 0]:
        axes.set_ylabel(_axis(_metric(table)))


def _interactions(table: Comparison, figure: "Figure") -> None:
    """Every pair of factors: a line for each level of the second."""
    pairs = table.interactions
    columns = min(2, len(pairs))
    rows = -(-len(pairs) // columns)
    figure.set_size_inches(INCHES if columns > 1 else 4.6, 3.0 * rows)
    grid = figure.subplots(rows, columns, squeeze=False, sharey=True)
    for axes, pair in zip(grid.flat, pairs, strict=False):
        _pair(axes, pair)
    for axes in grid.flat[len(pairs) :]:
        axes.set_axis_off()
    for axes in grid[:, 0]:
        axes.set_ylabel(_axis(_metric(table)))


def _cost(table: Comparison, figure: "Figure") -> None:
    """What an arm reached against what it cost."""
    rows = [(row, row.probe, row.probe.mean) for row in table.arms if row.probe and row.probe.mean is not None]
    figure.set_size_inches(INCHES, 1.8 + max(1.6, 0.26 * len(rows)))
    axes = figure.subplots()
    for index, (row, probe, mean) in enumerate(rows):
        axes.errorbar(
            [row.gpu_hours / row.seeds], [mean], yerr=_half(probe), linestyle="none", capsize=2,
            color=COLOURS[index % len(COLOURS)], marker=MARKERS[index % len(MARKERS)],
            label=f"{first_line(row.name, 50)}{' (baseline)' if row.is_baseline else ''}",
        )  # fmt: skip
    axes.set_xlabel(f"{table.hours} per run, all attempts")
    axes.set_ylabel(_axis(_metric(table)))
    axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False)


def _forecast(table: Comparison, figure: "Figure") -> None:
    """The curve of each arm over the sizes of the subset, and on to the size that is asked for."""
    assert table.forecast
    figure.set_size_inches(INCHES, 3.2)
    axes = figure.subplots()
    for index, arm in enumerate(arm for arm in table.forecast.arms if arm.curve):
        colour, marker = COLOURS[index % len(COLOURS)], MARKERS[index % len(MARKERS)]
        sizes = [point.size for point in arm.curve]
        axes.fill_between(
            sizes, [point.low for point in arm.curve], [point.high for point in arm.curve], color=colour, alpha=0.15,
            linewidth=0,
        )  # fmt: skip
        axes.plot(sizes, [point.value for point in arm.curve], color=colour, linewidth=1.1, linestyle="dashed")
        axes.plot(
            [n for n, _ in arm.means], [mean for _, mean in arm.means], color=colour, marker=marker, linestyle="none",
            label=first_line(arm.name, 50),
        )  # fmt: skip
        if arm.check:
            axes.plot([arm.means[-1][0]], [arm.check.value], color=colour, marker=marker, markerfacecolor="white")
    axes.set_xscale("log")
    # Not matplotlib's own, which are formulas: text is taken as it is here.
    ticks = sorted({n for arm in table.forecast.arms for n, _ in arm.means} | {table.forecast.size})
    # The size that is forecast has one in any case.
    ticks = ticks[:: -math.ceil(len(ticks) / MAX_TICKS)]
    axes.set_xticks(ticks, [f"{n:,}" for n in ticks])
    axes.minorticks_off()
    axes.set_xlabel("images (data.subset_size)")
    axes.set_ylabel(_axis(_metric(table)))
    axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False)


FIGURES: dict[str, Callable[[Comparison, "Figure"], None]] = {
    "forest": _forest,
    "factors": _factors,
    "interactions": _interactions,
    "cost": _cost,
    "forecast": _forecast,
}
CAPTIONS = {
    "forest": "Each arm's difference to the baseline, paired over seeds, with its 95 % interval.",
    "factors": "Each level of a factor, averaged over the other factors, with its 95 % interval over seeds.",
    "interactions": "Two factors at a time: where lines are not parallel, the effect of one depends on the other.",
    "cost": "The result of each arm against the cost of one of its runs.",
    "forecast": "What each arm would be with more images: the curve a + b n^-c through the sizes, with its 95 % "
    "interval. Open marks: the largest size as forecast from the smaller ones.",
}


def _pair(axes: "Axes", pair: Interaction) -> None:
    levels = list(dict.fromkeys(cell.level for cell in pair.cells))
    others = list(dict.fromkeys(cell.other_level for cell in pair.cells))
    for index, other in enumerate(others):
        cells = [cell.estimate for cell in pair.cells if cell.other_level == other]
        # Beside one another, so that intervals can be told apart.
        shift = 0.06 * (index - (len(others) - 1) / 2)
        colour, marker = COLOURS[index % len(COLOURS)], MARKERS[index % len(MARKERS)]
        _curve(axes, cells, colour, marker, shift=shift, label=first_line(other, 24))
    _ticks(axes, levels)
    axes.set_xlabel(first_line(pair.factor, 40))
    axes.legend(title=first_line(pair.other, 30), frameon=False, fontsize="small")


def _curve(
    axes: "Axes", points: Sequence[Estimate], colour: str, marker: str, *, shift: float = 0.0, label: str | None = None
) -> None:
    """A line through the means; a level without one leaves a gap."""
    middle = [float("nan") if point.mean is None else point.mean for point in points]
    half = [_half(point) or 0.0 for point in points]
    places = [index + shift for index in range(len(points))]
    axes.errorbar(places, middle, yerr=half, color=colour, marker=marker, capsize=2, linewidth=1.1, label=label)


def _ticks(axes: "Axes", levels: Sequence[str]) -> None:
    crowded = sum(len(level) for level in levels) > 24
    labels = [first_line(level, 24) for level in levels]
    axes.set_xticks(range(len(levels)), labels, rotation=30 if crowded else 0, ha="right" if crowded else "center")
    axes.set_xlim(-0.5, len(levels) - 0.5)


def _half(found: Estimate) -> float | None:
    """Half the width of the interval; None without one."""
    return None if found.high is None or found.mean is None else found.high - found.mean


def _known(found: Estimate | None) -> bool:
    return found is not None and found.mean is not None


def _metric(table: Comparison) -> RankingMetric:
    assert table.metric
    return table.metric


def _axis(metric: RankingMetric) -> str:
    return fill(f"{_unit(metric)}, {'higher' if metric.higher_is_better else 'lower'} is better", UPRIGHT)


def _unit(metric: RankingMetric) -> str:
    name = metric.name.rpartition("/")[2].replace("_", " ")
    return f"{name} ({metric.unit})" if metric.unit else name
