"""The comparison as Markdown (rounded, for people) and as CSV (in full, for programs)."""

import csv
import io
from collections.abc import Sequence

from service.compare.words import count_states
from service.schemas.comparison import ArmRow, Comparison, Estimate, Factor, Interaction
from service.text import short


def markdown(table: Comparison) -> str:
    """A heading, the table, the words, and a list of what is missing."""
    sanity = _sanity_names(table)
    metric = f"{table.metric.name} ({table.metric.unit})" if table.metric else "probe"
    header = ["rank", "arm", "n", metric, "sd", "95 % interval", "difference to baseline", "p (Holm)", "verdict"]
    header += ["floors: pixels / random", "above floors", *sanity, "images seen", table.hours, "restarts", "processes"]
    lines = [f"# {table.name} ({table.experiment_id})", "", line(header), line(["---"] * len(header))]
    lines += [line(_markdown_row(row, sanity)) for row in table.arms]
    lines += ["", *(f"* {word}" for word in table.words)]
    if len(table.factors) > 1:
        lines += ["", "Factors, in the mean over the others:", "", *_factors(table.factors)]
    for pair in table.interactions:
        lines += ["", f"{pair.factor} with {pair.other}:", "", *_interaction(pair)]
    missing = [(row.name, run) for row in table.arms for run in row.missing]
    if missing:
        lines += ["", "Missing runs:", "", line(["arm", "seed", "run", "state", "reason"]), line(["---"] * 5)]
        lines += [
            line([arm, str(run.seed), run.run_id, run.state.value, _first_line(run.reason)]) for arm, run in missing
        ]
    return "\n".join(lines) + "\n"


def comma_separated(table: Comparison) -> str:
    """One row an arm, numbers in full, empty where there is none."""
    sanity = _sanity_names(table)
    factors = list(dict.fromkeys(name for row in table.arms for name in row.levels))
    rows = [_csv_row(table, row, factors, sanity) for row in table.arms]
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _factors(factors: Sequence[Factor]) -> list[str]:
    header = ["factor", "level", "n", "mean", "95 % interval", "to the baseline's level", "p (Holm)", "verdict"]
    lines = [line(header), line(["---"] * len(header))]
    for factor in factors:
        for level in factor.levels:
            mean, effect = level.estimate, level.effect
            versus = [signed(effect), short(effect.p_holm), effect.verdict] if effect else ["baseline", "", ""]
            lines.append(line([factor.name, level.level, str(mean.n), short(mean.mean), interval(mean), *versus]))
    return lines


def _interaction(pair: Interaction) -> list[str]:
    header = [pair.factor, pair.other, "n", "mean", "95 % interval", "difference of differences", "p (Holm)", "verdict"]
    contrasts = {(contrast.level, contrast.other_level): contrast for contrast in pair.contrasts}
    lines = [line(header), line(["---"] * len(header))]
    for cell in pair.cells:
        mean, contrast = cell.estimate, contrasts.get((cell.level, cell.other_level))
        versus = [signed(contrast), short(contrast.p_holm), contrast.verdict] if contrast else ["", "", ""]
        lines.append(line([cell.level, cell.other_level, str(mean.n), short(mean.mean), interval(mean), *versus]))
    return lines


def _markdown_row(row: ArmRow, sanity: Sequence[str]) -> list[str]:
    probe, floors = row.probe, row.floors
    missing = f" ({count_states(row.missing)})" if row.missing else ""
    return [
        str(row.rank or ""),
        row.name,
        f"{row.seeds - len(row.missing)} of {row.seeds}{missing}",
        short(probe.mean) if probe else "",
        short(probe.sd) if probe else "",
        interval(probe) if probe else "",
        *versus(row),
        f"{short(floors.pixels)} / {short(floors.random_encoder)}" if floors else "",
        floors.words if floors else "",
        *(short(row.sanity.get(name)) for name in sanity),
        f"{row.images_seen:,.0f}" if row.images_seen is not None else "",
        short(row.gpu_hours),
        str(row.restarts),
        ", ".join(map(str, row.world_sizes)),
    ]


def versus(row: ArmRow) -> list[str]:
    """Difference to the baseline, p and verdict."""
    if row.is_baseline:
        return ["baseline", "", ""]
    difference = row.difference
    return [signed(difference), short(difference.p_holm), difference.verdict] if difference else ["", "", ""]


def _csv_row(table: Comparison, row: ArmRow, factors: Sequence[str], sanity: Sequence[str]) -> dict[str, object]:
    probe, difference, floors = row.probe, row.difference, row.floors
    cells: dict[str, object] = {"rank": row.rank, "arm": row.name}
    cells |= {name: row.levels.get(name) for name in factors}
    cells |= {"baseline": row.is_baseline, "seeds": row.seeds, "n": row.seeds - len(row.missing)}
    cells |= {
        "metric": table.metric.name if table.metric else None,
        "unit": table.metric.unit if table.metric else None,
    }
    for name in "mean", "sd", "low", "high":
        cells[name] = getattr(probe, name, None)
    for name in "n", "mean", "low", "high", "p", "p_holm", "verdict", "more_seeds":
        cells[f"difference_{name}"] = getattr(difference, name, None)
    for name in "pixels", "random_encoder", "above":
        cells[f"floor_{name}"] = getattr(floors, name, None)
    cells |= {name: row.sanity.get(name) for name in sanity}
    cells |= {"images_seen": row.images_seen, "gpu_hours": row.gpu_hours, "restarts": row.restarts}
    cells["world_sizes"] = " ".join(map(str, row.world_sizes))
    cells["runs"] = " ".join(f"{run.seed}:{run.run_id}:{run.state.value}" for run in row.runs)
    return cells


def _sanity_names(table: Comparison) -> list[str]:
    return list(dict.fromkeys(name for row in table.arms for name in row.sanity))


def line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _first_line(text: str) -> str:
    first = text.strip().partition("\n")[0]
    return first if len(first) <= 160 else f"{first[:157]}..."


def interval(estimate: Estimate) -> str:
    return "" if estimate.low is None else f"{short(estimate.low)} to {short(estimate.high)}"


def signed(estimate: Estimate) -> str:
    if estimate.mean is None:
        return ""
    between = f" ({estimate.low:+.3g} to {estimate.high:+.3g})" if estimate.low is not None else ""
    return f"{estimate.mean:+.3g}{between}"
