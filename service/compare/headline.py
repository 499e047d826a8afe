"""What a person wants to know first, in words: which arm is best, whether that is real, what is not said by it."""

from dataclasses import dataclass

from service.compare.columns import interval
from service.compare.stats import MIN_PAIRS, MOST_SEEDS
from service.compare.words import BEYOND_CHANCE, is_without_spread
from service.schemas.comparison import ArmRow, Comparison, RankingMetric, Tested
from service.text import count, hours, short


@dataclass(frozen=True)
class Headline:
    best: ArmRow | None
    """The arm with the best mean so far; None while no arm has one."""
    best_arm: tuple[str, str] | None
    """Which arm is best, and in sentences what it reached and cost; a format sets the first part bold."""
    answer: str
    """Whether its difference to the others is real, in a word or three."""
    why: str
    cautions: list[str]
    """What would be read into it otherwise."""


def headline(table: Comparison) -> Headline:
    """In the words of the comparison: nothing is tested here that is not tested there."""
    best = next((row for row in table.arms if row.rank == 1), None)
    if table.metric is None or best is None:
        return Headline(None, None, "Not known yet", _why_no_arm(table), [])
    answer, why = _for_the_baseline(table, best) if best.is_baseline else _against_the_baseline(table, best)
    return Headline(best, _best_arm(table, table.metric, best), answer, why, _cautions(table, best))


def _best_arm(table: Comparison, metric: RankingMetric, best: ArmRow) -> tuple[str, str]:
    probe = best.probe
    assert probe  # it has a rank
    between = f" (95 % interval {interval(probe)})" if probe.low is not None else ""
    direction = "higher" if metric.higher_is_better else "lower"
    mean = f"{metric.name} {short(probe.mean)} {metric.unit}".rstrip()
    over = f", mean over {count(probe.n, 'seed')}" if probe.n > 1 else ", from 1 seed"
    total = sum(row.gpu_hours for row in table.arms)
    cost = f"It took {hours(best.gpu_hours)} {table.hours}; all arms together took {hours(total)}."
    return f"Best arm: {best.name}.", f"It reached {mean}{between}{over}; {direction} is better. {cost}"


def _why_no_arm(table: Comparison) -> str:
    finished = any(run.value is not None or run.state == "succeeded" for row in table.arms for run in row.runs)
    return "No arm is ranked; the sentences below say why." if finished else "No run has finished yet."


def _against_the_baseline(table: Comparison, best: ArmRow) -> tuple[str, str]:
    found, baseline = best.difference, f"the baseline ({table.baseline})"
    if found is None or found.mean is None or found.n < MIN_PAIRS:
        shared = found.n if found else 0
        return (
            "Too early to say",
            f"A verdict needs {MIN_PAIRS} seeds in common with {baseline}; this arm has {shared}.",
        )
    by = f"{abs(found.mean):.3g} {table.metric.unit if table.metric else ''}".strip()
    if found.verdict == "better":
        return "Yes", f"It beats {baseline} by {by}, more than chance would explain ({_tested(found)})."
    if found.verdict == "no difference shown":
        more = found.more_seeds
        needed = (
            f" About {count(more, 'more seed')} should settle a difference of this size." if more and _few(more) else ""
        )
        return "Not shown", f"It leads {baseline} by {by}, but chance could explain that ({_tested(found)}).{needed}"
    return "No verdict", f"It leads {baseline} by {by}, but cannot be tested: {found.verdict.partition(':')[0]}."


def _for_the_baseline(table: Comparison, best: ArmRow) -> tuple[str, str]:
    others = [row for row in table.arms if row.difference]
    if not others:
        return "Nothing to compare", "The experiment has one arm."
    worse = sum(row.difference.verdict == "worse" for row in others if row.difference)
    if worse == len(others):
        return "Yes", f"The best arm is the baseline, and every other arm loses to it {BEYOND_CHANCE}."
    if all(row.difference.n < MIN_PAIRS for row in others if row.difference):
        return "Too early to say", (
            f"The best arm is the baseline. A verdict needs {MIN_PAIRS} seeds in common; no other arm has them yet."
        )
    if all(is_without_spread(row) for row in others):
        return "No verdict", (
            "The best arm is the baseline, but no test is possible: every difference to it is the same at every seed."
        )
    if worse == 0:
        return "Not shown", f"The best arm is the baseline, but no other arm loses to it {BEYOND_CHANCE}."
    return (
        "In part",
        f"The best arm is the baseline; {worse} of the {len(others)} other arms lose to it {BEYOND_CHANCE}.",
    )


def _cautions(table: Comparison, best: ArmRow) -> list[str]:
    told = []
    missing, total = sum(len(row.missing) for row in table.arms), sum(row.seeds for row in table.arms)
    if missing:
        told.append(f"This is the result so far: {missing} of {total} runs are missing.")
    if best.floors and best.floors.above is False:
        told.append(
            "The best arm is not shown to beat both floors, so the probe may not tell trained encoders apart at all."
        )
    second = next((row for row in table.arms if row is not best and row.probe and row.probe.mean is not None), None)
    if second and second.probe and not best.is_baseline and not second.is_baseline:
        told.append(
            f"The test is against the baseline, not against the second ({second.name}, {short(second.probe.mean)})."
        )
    return told


def _few(more: int | None) -> bool:
    return more is not None and 0 < more < MOST_SEEDS


def _tested(found: Tested) -> str:
    return (
        "not tested"
        if found.p_holm is None
        else f"paired t test over {found.n} seeds, Holm-adjusted p = {found.p_holm:.2g}"
    )
