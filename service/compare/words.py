"""What a comparison shows and what it does not, in sentences."""

from collections import Counter
from collections.abc import Sequence

from service.compare import round_words
from service.compare.stats import MIN_PAIRS, MOST_SEEDS
from service.schemas.comparison import (
    ArmForecast,
    ArmRow,
    Comparison,
    Factor,
    FactorLevel,
    Interaction,
    SeedValue,
    Standing,
)
from service.text import short
from trainer.contract.rounds import Target

BEYOND_CHANCE = "by more than chance would explain"
TESTED = "paired t test over seeds, Holm-adjusted, 5 % level"
SANITY = "The sanity metrics are there to check that training works; they do not rank arms."
MOST_NAMES = 6


def describe(table: Comparison, doubt: str) -> list[str]:
    """One sentence a point, the most important first."""
    words, rounds = [*_as_of(table), *_missing(table)], round_words.describe(table)
    if doubt:
        words.append(doubt)
    if table.metric:
        direction = "higher" if table.metric.higher_is_better else "lower"
        words.append(f"Arms are ranked by mean {table.metric.name} ({table.metric.unit}; {direction} is better).")
        if table.metric.note:
            words.append(table.metric.note[0].upper() + table.metric.note[1:].rstrip(".") + ".")
        words += rounds[:-1] + _against_baseline(table)
        words += _power(table.arms)
        words += _effects(table) if table.rounds is None else _untested_effects(table)
        words += _interactions(table.interactions)
        words += _floors(table.arms)
    words += rounds[-1:] if table.metric else rounds
    words += _forecast(table)
    beside = dict.fromkeys(name for row in table.arms for name in row.sanity)
    if any(name.startswith("sanity/") for name in beside):
        ranks = table.metric is not None and table.metric.name.startswith("sanity/")
        words.append(SANITY.replace("The", "The other", 1) if ranks else SANITY)
    # Beside the sanity metrics stand their floors; a stage's name has no slash (ranking.beside).
    if stages := [name for name in beside if "/" not in name]:
        words.append(f"The table also shows these stages of evaluation, and can rank by them: {_list(stages)}.")
    return words


def count_states(runs: Sequence[SeedValue]) -> str:
    """`2 failed, 1 running`."""
    return ", ".join(f"{count} {state}" for state, count in sorted(Counter(run.state.value for run in runs).items()))


def _as_of(table: Comparison) -> list[str]:
    if table.at is None:
        return []
    return [
        f"This is the table {table.at}, and not of the end of the runs; runs that were not measured there are missing. "
        "Hours and speed are of the whole runs."
    ]


def _missing(table: Comparison) -> list[str]:
    missing = [run for row in table.arms for run in row.missing]
    if not missing:
        return []
    total = sum(row.seeds for row in table.arms)
    return [f"{len(missing)} of {total} runs are missing and are left out of every mean: {count_states(missing)}."]


def _against_baseline(table: Comparison) -> list[str]:
    others = [row for row in table.arms if row.difference]
    if not others:
        return ["The experiment has one arm: there is nothing to compare it with."]
    if table.rounds and (not table.rounds.looks or table.rounds.target is Target.BEST):
        # Of pairs of arms the words of rounds tell.
        return []
    baseline = next(row for row in table.arms if row.is_baseline)
    if not baseline.probe or baseline.probe.n == 0:
        return [f"The baseline ({baseline.name}) has no finished run yet, so no arm can be compared with it."]
    told, tested = [], round_words.TESTED if table.rounds else TESTED
    for verdict in "better", "worse":
        if names := [row.name for row in others if row.difference and row.difference.verdict == verdict]:
            told.append(
                f"{verdict.capitalize()} than the baseline ({baseline.name}) {BEYOND_CHANCE} ({tested}): "
                f"{_list(names)}."
            )
    if not told and any(row.difference and row.difference.verdict == "no difference shown" for row in others):
        told.append(
            f"No arm is shown to be better or worse than the baseline ({baseline.name}): chance could explain every "
            f"tested difference ({tested}). This does not show that the arms are equal."
        )
    few = [row.name for row in others if row.difference and row.difference.n < MIN_PAIRS]
    if few:
        told.append(f"No verdict yet, fewer than {MIN_PAIRS} seeds in common with the baseline: {_list(few)}.")
    if same := [row.name for row in others if is_without_spread(row)]:
        told.append(f"No test is possible, the difference to the baseline is the same at every seed: {_list(same)}.")
    return told


def is_without_spread(row: ArmRow) -> bool:
    """Whether it has seeds enough and yet no verdict, because all of them differ from the baseline by the same."""
    found = row.difference
    return found is not None and found.n >= MIN_PAIRS and found.verdict.endswith("no verdict")


def _power(rows: Sequence[ArmRow]) -> list[str]:
    undecided = [row for row in rows if row.difference and row.difference.verdict == "no difference shown"]
    needed = [
        f"{row.name}: {count:,}{'' if count < MOST_SEEDS else ' or more'}"
        for row in undecided
        if row.difference and (count := row.difference.more_seeds) is not None
    ]
    if not needed:
        return []
    return [
        "Seeds to add, if the true difference is as large as the one seen, to show it in 4 of 5 experiments (80 % "
        f"power, spread as seen, 5 % level divided by the number of arms compared): {_first(needed)}."
    ]


def _effects(table: Comparison) -> list[str]:
    """With one factor the arms are its levels, and everything is said."""
    if len(table.factors) < 2:
        return []
    told = []
    for verdict in "better", "worse":
        names = [_versus(factor, level) for factor, level in _levels(table) if _verdict(level) == verdict]
        if names:
            told.append(f"{verdict.capitalize()} {BEYOND_CHANCE}, averaged over the other factors: {_list(names)}.")
    if not told:
        told.append(
            "Averaged over the others, no factor is shown to change the result (Holm-adjusted over all levels)."
        )
    if missing := sum(level.effect.missing_pairs for _, level in _levels(table) if level.effect):
        total = missing + sum(level.effect.pairs for _, level in _levels(table) if level.effect)
        told.append(
            "The effect of a factor is measured on pairs of runs that differ in this factor alone and have the same "
            f"seed; {missing} of {total} pairs are left out because a run of theirs has not finished."
        )
    return told


def _untested_effects(table: Comparison) -> list[str]:
    if len(table.factors) < 2:
        return []
    return [
        "Effects of factors have no verdicts: the error rate over the looks is that of the arms. Their intervals are "
        "not corrected for looks."
    ]


def _interactions(found: Sequence[Interaction]) -> list[str]:
    shown = [
        f"{pair.factor}={contrast.level} with {pair.other}={contrast.other_level} "
        f"(together {contrast.mean:+.3g} beyond the sum of both effects)"
        for pair in found
        for contrast in pair.contrasts
        if contrast.verdict == "interaction shown"
    ]
    if not shown:
        return []
    return [f"The effect of one factor depends on the other, so compare single arms and not averages: {_list(shown)}."]


def _forecast(table: Comparison) -> list[str]:
    found, metric = table.forecast, table.metric
    if found is None:
        return []
    if found.declined or metric is None:
        return [f"There is no forecast for {found.size:,} images: {found.declined}."]
    told = []
    for arm in found.arms:
        if arm.at_size and arm.check:
            check = f"{short(arm.check.value)} ({short(arm.check.low)} to {short(arm.check.high)})"
            largest = f"{arm.means[-1][0]:,} images"
            told.append(
                f"Forecast for {arm.name} with {found.size:,} images: {short(arm.at_size.value)} {metric.unit} "
                f"({short(arm.at_size.low)} to {short(arm.at_size.high)}), if the curve a + b n^-c through "
                f"{len(arm.means)} sizes goes on. From the smaller sizes alone the largest ({largest}) "
                f"would have been forecast as {check}; it was {short(arm.seen)}"
                f"{'.' if arm.check_holds else ', which that interval does not hold: do not believe this forecast.'}"
            )
        else:
            which = f" for {arm.name}" if arm.levels else ""
            told.append(f"There is no forecast{which}: {arm.declined}.")
    told += _draws(found.arms)
    told += [_standing(standing, found.size) for standing in found.standings]
    if found.is_far:
        told.append(
            f"{found.size:,} images are more than a hundred times the largest subset ({found.largest:,}): take the "
            "forecast for a guess, whatever its interval."
        )
    return told


def _draws(arms: Sequence[ArmForecast]) -> list[str]:
    forecast = [arm for arm in arms if arm.at_size]
    shared = [arm.name for arm in forecast if arm.shares_draw]
    if not shared:
        return []
    which = "" if len(shared) == len(forecast) else f" of {_first(shared)}"
    return [
        f"All seeds{which} share one draw of images, and the interval does not count what another draw would change; "
        "with `data.subset_seed: run` each seed draws its own."
    ]


def _standing(standing: Standing, size: int) -> str:
    now = "ahead of" if standing.is_ahead else "behind"
    gap = standing.forecast
    order = {
        "stays": f"and is forecast to stay {'ahead' if standing.is_ahead else 'behind'} with {size:,} images",
        "changes": f"and is forecast to be {'behind' if standing.is_ahead else 'ahead'} with {size:,} images",
        "not shown": f"and it is not shown which of them is ahead with {size:,} images",
    }[standing.order]
    return (
        f"{standing.name} is {now} the baseline's curve at the largest size, {order} (difference of the forecasts "
        f"{gap.value:+.3g}, 95 % interval {gap.low:+.3g} to {gap.high:+.3g})."
    )


def _levels(table: Comparison) -> list[tuple[Factor, FactorLevel]]:
    return [(factor, level) for factor in table.factors for level in factor.levels if level.effect]


def _verdict(level: FactorLevel) -> str:
    return level.effect.verdict if level.effect else ""


def _versus(factor: Factor, level: FactorLevel) -> str:
    assert level.effect
    return f"{factor.name}={level.level} instead of {factor.baseline} (mean difference {level.effect.mean:+.3g})"


def _floors(rows: Sequence[ArmRow]) -> list[str]:
    checked = [row for row in rows if row.floors]
    above = [row.name for row in checked if row.floors and row.floors.above]
    unknown = [row.name for row in checked if row.floors and row.floors.above is None]
    below = [row.name for row in checked if row.floors and row.floors.above is False]
    told = []
    if above:
        told.append(f"Better than both floors (raw pixels, the untrained encoder): {_first(above)}.")
    if below:
        which = _first(below) if len(below) < len(rows) or len(rows) == 1 else f"all {len(rows)} arms"
        told.append(
            f"Not shown to be better than both floors (raw pixels, the untrained encoder): {which}. Differences "
            "between such arms may say nothing about pretraining."
        )
    if unknown:
        told.append(f"Too few seeds to compare with the floors: {_first(unknown)}.")
    return told


def _list(names: Sequence[str]) -> str:
    return "; ".join(names)


def _first(names: Sequence[str]) -> str:
    """As many as one reads: JSON and CSV have them all."""
    told = _list(names[:MOST_NAMES])
    return told if len(names) <= MOST_NAMES else f"{told}; and {len(names) - MOST_NAMES} more"
