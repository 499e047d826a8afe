"""What a comparison shows and what it does not, in sentences."""

from collections import Counter
from collections.abc import Sequence

from service.compare.schemas import ArmRow, Comparison, SeedValue
from service.compare.stats import MIN_PAIRS

SANITY = "The sanity metrics show that training works; they do not rank arms."


def describe(table: Comparison, doubt: str) -> list[str]:
    """One sentence a point, the most important first."""
    words = [*_missing(table)]
    if doubt:
        words.append(doubt)
    if table.metric:
        direction = "higher" if table.metric.higher_is_better else "lower"
        words.append(f"Arms are ranked by {table.metric.name} ({table.metric.unit}; {direction} is better).")
        if table.metric.note:
            words.append(table.metric.note[0].upper() + table.metric.note[1:].rstrip(".") + ".")
        words += _against_baseline(table)
        words += _floors(table.arms)
    if any(row.sanity for row in table.arms):
        words.append(SANITY)
    return words


def count_states(runs: Sequence[SeedValue]) -> str:
    """`2 failed, 1 running`."""
    return ", ".join(f"{count} {state}" for state, count in sorted(Counter(run.state.value for run in runs).items()))


def _missing(table: Comparison) -> list[str]:
    missing = [run for row in table.arms for run in row.missing]
    if not missing:
        return []
    total = sum(row.seeds for row in table.arms)
    return [f"{len(missing)} of {total} runs are missing and in no mean: {count_states(missing)}."]


def _against_baseline(table: Comparison) -> list[str]:
    others = [row for row in table.arms if row.difference]
    if not others:
        return ["There is one arm: nothing to compare it with."]
    baseline = next(row for row in table.arms if row.is_baseline)
    if not baseline.probe or baseline.probe.n == 0:
        return [f"The baseline ({baseline.name}) has no finished run, so there is no difference to it yet."]
    told = []
    for verdict in "better", "worse":
        if names := [row.name for row in others if row.difference and row.difference.verdict == verdict]:
            told.append(f"{verdict.capitalize()} than the baseline ({baseline.name}): {_list(names)}.")
    few = [row.name for row in others if row.difference and row.difference.n < MIN_PAIRS]
    if few:
        told.append(f"Fewer than {MIN_PAIRS} seeds in common with the baseline, so no verdict: {_list(few)}.")
    if not told:
        told.append(f"No arm is shown to differ from the baseline ({baseline.name}) after Holm's correction.")
    return told


def _floors(rows: Sequence[ArmRow]) -> list[str]:
    checked = [row for row in rows if row.floors]
    above = [row.name for row in checked if row.floors and row.floors.above]
    unknown = [row.name for row in checked if row.floors and row.floors.above is None]
    below = [row.name for row in checked if row.floors and row.floors.above is False]
    told = []
    if above:
        told.append(f"Above both floors (raw pixels, the untrained encoder): {_list(above)}.")
    if below:
        told.append(
            f"Not shown to be above both floors: {_list(below)}. Where the probe cannot tell a trained encoder from "
            "an untrained one, differences between such arms say nothing about pretraining."
        )
    if unknown:
        told.append(f"Too few seeds to say whether they are above the floors: {_list(unknown)}.")
    return told


def _list(names: Sequence[str]) -> str:
    return "; ".join(names)
