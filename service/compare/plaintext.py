"""The comparison as Markdown (rounded, for people) and as CSV (in full, for programs)."""

import csv
import io
from collections.abc import Sequence

from service.compare.columns import Column, Columns, interval, p_value, predicted_interval, signed, signed_interval
from service.schemas.comparison import ArmRow, Comparison, Factor, Forecasts, Interaction, Tested
from service.text import first_line, short

COLUMNS = ("rank", "arm", "seeds", "mean", "sd", "interval")
BENEATH = ("pixels", "untrained", "floors")
COST = ("images", "hours", "restarts", "processes")


def markdown(table: Comparison) -> str:
    """A heading, the table, the words, and a list of what is missing."""
    columns = Columns(table)
    chosen = columns.choose(*COLUMNS)
    against = columns.choose("difference", "difference's interval", "p", "verdict", *columns.rounds)
    rest = columns.choose(*BENEATH, *columns.sanity, *COST, *columns.money, *columns.speed)
    lines = [f"# {table.heading}", "", *rows([*chosen, *against, *rest], table.arms)]
    lines += ["", *(f"* {word}" for word in table.words)]
    if len(table.factors) > 1:
        lines += ["", "Factors, averaged over the others:", "", *_factors(table.factors)]
    for pair in table.interactions:
        lines += ["", f"{pair.factor} with {pair.other}:", "", *_interaction(pair)]
    if table.forecast and table.forecast.arms:
        lines += ["", f"Forecast with {table.forecast.size:,} images:", "", *_forecast(table.forecast)]
    missing = [(row.name, run) for row in table.arms for run in row.missing]
    if missing:
        lines += ["", "Missing runs:", "", line(["arm", "seed", "run", "state", "reason"]), line(["---"] * 5)]
        lines += [
            line([arm, str(run.seed), run.run_id, run.state.value, first_line(run.reason, 160)]) for arm, run in missing
        ]
    return "\n".join(lines) + "\n"


def comma_separated(table: Comparison) -> str:
    """One row an arm, numbers in full, empty where there is none."""
    columns = Columns(table)
    found = [columns.fields(row) for row in table.arms]
    if table.at:
        found = [{"as_of_step": table.at.step, **row} for row in found]
    text = io.StringIO()
    writer = csv.DictWriter(text, list(found[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(found)
    return text.getvalue()


def rows(columns: Sequence[Column], arms: Sequence[ArmRow]) -> list[str]:
    """A table in Markdown."""
    header = [column.heading for column in columns]
    return [
        line(header), line(["---"] * len(header)), *(line([column.cell(row) for column in columns]) for row in arms)
    ]  # fmt: skip


def _factors(factors: Sequence[Factor]) -> list[str]:
    header = ["factor", "level", "n", "mean", "95 % interval", "to baseline", "95 % interval", "p (Holm)", "verdict"]
    lines = [line(header), line(["---"] * len(header))]
    for factor in factors:
        for level in factor.levels:
            mean, effect = level.estimate, level.effect
            versus = _tested(effect) if effect else ["baseline", "", "", ""]
            lines.append(line([factor.name, level.level, str(mean.n), short(mean.mean), interval(mean), *versus]))
    return lines


def _interaction(pair: Interaction) -> list[str]:
    header = [pair.factor, pair.other, "n", "mean", "95 % interval"]
    header += ["difference of differences", "95 % interval", "p (Holm)", "verdict"]
    contrasts = {(contrast.level, contrast.other_level): contrast for contrast in pair.contrasts}
    lines = [line(header), line(["---"] * len(header))]
    for cell in pair.cells:
        mean, contrast = cell.estimate, contrasts.get((cell.level, cell.other_level))
        versus = _tested(contrast) if contrast else ["", "", "", ""]
        lines.append(line([cell.level, cell.other_level, str(mean.n), short(mean.mean), interval(mean), *versus]))
    return lines


def _forecast(found: Forecasts) -> list[str]:
    header = ["arm", "forecast", "95 % interval", "largest size", "was", "would have been forecast", "95 % interval"]
    lines = [line(header), line(["---"] * len(header))]
    for arm in found.arms:
        if not (arm.at_size and arm.check):
            lines.append(line([arm.name, f"none: {arm.declined}", *[""] * (len(header) - 2)]))
            continue
        lines.append(line([
            arm.name, short(arm.at_size.value), predicted_interval(arm.at_size), f"{arm.means[-1][0]:,}",
            short(arm.seen), short(arm.check.value), predicted_interval(arm.check),
        ]))  # fmt: skip
    return lines


def _tested(found: Tested) -> list[str]:
    return [signed(found), signed_interval(found), p_value(found), found.verdict]


def line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
