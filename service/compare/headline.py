"""What a person wants to know first, in words: which arm is best, whether that is real, what is not said by it."""

from dataclasses import dataclass

from service.compare.columns import interval
from service.compare.round_words import TESTED, next_look
from service.compare.stats import MIN_PAIRS, MOST_SEEDS
from service.compare.words import BEYOND_CHANCE, is_without_spread
from service.schemas.comparison import ArmRow, Comparison, RankingMetric, RoundsSoFar, Tested
from service.text import count, hours, short
from trainer.contract.rounds import Target


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
    if table.rounds and table.rounds.target is Target.BEST:
        answer, why = _among_all(table, table.rounds, best)
    else:
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
    if table.rounds and not table.rounds.looks:
        return _before_the_first_look(table.rounds)
    if found is None or found.mean is None or found.n < MIN_PAIRS:
        shared = found.n if found else 0
        return (
            "No verdict" if table.rounds and table.rounds.is_over else "Too early to say",
            f"A verdict needs {MIN_PAIRS} seeds in common with {baseline}; this arm has {shared}.",
        )
    assert table.metric  # the arm has a rank
    if (found.mean if table.metric.higher_is_better else -found.mean) <= 0:
        # The rank is by other seeds than the test, which takes those it has in common with the baseline.
        over = "the seeds that all arms have" if table.rounds else "all its seeds"
        return "Not shown", (
            f"Its mean over {over} is the best, but it does not lead {baseline} over the {found.n} seeds that "
            f"both have ({_tested(table, found)})."
        )
    # 87 % instead of 58 % is not 29 % more.
    unit = "percentage points" if table.metric.unit == "%" else table.metric.unit
    by = f"{abs(found.mean):.3g} {unit}".strip()
    if found.verdict == "better":
        return "Yes", f"It beats {baseline} by {by}, more than chance would explain ({_tested(table, found)})."
    if found.verdict == "no difference shown":
        more = found.more_seeds
        needed = (
            f" If the true difference is this large, {count(more, 'more seed')} would show it in 4 of 5 experiments."
            if more and _few(more)
            else ""
        )
        waits = _waits(table) if best.rounds and best.rounds.goes_on else ""
        if best.rounds and not waits:
            waits = f" This arm: {best.rounds.words}."
        return "Not shown yet" if best.rounds and best.rounds.goes_on else "Not shown", (
            f"It leads {baseline} by {by}, but chance could explain that ({_tested(table, found)}).{needed}{waits}"
        )
    return "No verdict", f"It leads {baseline} by {by}, but cannot be tested: {found.verdict.partition(':')[0]}."


def _among_all(table: Comparison, rounds: RoundsSoFar, best: ArmRow) -> tuple[str, str]:
    """Where the question is which arm is best: every arm is tested against every other."""
    if not rounds.looks:
        return _before_the_first_look(rounds)
    ranked = [row for row in table.arms if row.rank is not None]
    left = [row.name for row in ranked if row.rounds and row.rounds.worse_than is None]
    if left == [best.name] and len(ranked) > 1:
        return (
            "Yes",
            f"Every other arm is shown to be worse than another {BEYOND_CHANCE} ({TESTED}): only this one is left.",
        )
    told = f"{len(left)} of {len(ranked)} arms are not shown to be worse than another: {'; '.join(left)}."
    if rounds.is_over:
        return "Not shown", told
    return "Not shown yet", f"{told} Those that go on wait for {next_look(rounds)}."


def _before_the_first_look(rounds: RoundsSoFar) -> tuple[str, str]:
    if rounds.is_cancelled:
        return "No verdict", f"Seeds come in rounds, and the experiment was cancelled before {next_look(rounds)}."
    return "Too early to say", f"Seeds come in rounds: arms are tested first at {next_look(rounds)}."


def _for_the_baseline(table: Comparison, best: ArmRow) -> tuple[str, str]:
    others = [row for row in table.arms if row.difference]
    if not others:
        return "Nothing to compare", "The experiment has one arm."
    worse = sum(row.difference.verdict == "worse" for row in others if row.difference)
    if worse == len(others):
        return "Yes", f"The best arm is the baseline, and every other arm loses to it {BEYOND_CHANCE}."
    if table.rounds and not table.rounds.looks:
        return _before_the_first_look(table.rounds)
    if all(row.difference.n < MIN_PAIRS for row in others if row.difference):
        return "No verdict" if table.rounds and table.rounds.is_over else "Too early to say", (
            f"The best arm is the baseline. A verdict needs {MIN_PAIRS} seeds in common; no other arm has them yet."
        )
    if all(is_without_spread(row) for row in others):
        return "No verdict", (
            "The best arm is the baseline, but no test is possible: every difference to it is the same at every seed."
        )
    waits = _waits(table)
    if worse == 0:
        return "Not shown yet" if waits else "Not shown", (
            f"The best arm is the baseline, but chance could explain its lead over every arm that was tested.{waits}"
        )
    return (
        "For some arms",
        f"The best arm is the baseline; {worse} of the {len(others)} other arms lose to it {BEYOND_CHANCE}.{waits}",
    )


def _waits(table: Comparison) -> str:
    return f" Arms are tested next at {next_look(table.rounds)}." if table.rounds and not table.rounds.is_over else ""


def _cautions(table: Comparison, best: ArmRow) -> list[str]:
    told = [f"This is {table.at}, not the end of the runs."] if table.at else []
    if table.metric and table.metric.name.startswith("sanity/"):
        told.append(f"{table.metric.note}.")
    missing, total = sum(len(row.missing) for row in table.arms), sum(row.seeds for row in table.arms)
    if missing:
        told.append(f"This is the result so far: {missing} of {total} runs are missing.")
    if best.floors and best.floors.above is False:
        told.append(
            "The best arm is not shown to be better than both an untrained encoder and raw pixels, so its number may "
            "say nothing about training."
        )
    second = next((row for row in table.arms if row is not best and row.probe and row.probe.mean is not None), None)
    pairs = table.rounds is not None and table.rounds.target is Target.BEST
    if second and second.probe and not (pairs or best.is_baseline or second.is_baseline):
        told.append(
            f"The best and the second ({second.name}, {short(second.probe.mean)}) are not tested against each other: "
            "each is tested against the baseline."
        )
    return told


def _few(more: int | None) -> bool:
    return more is not None and 0 < more < MOST_SEEDS


def _tested(table: Comparison, found: Tested) -> str:
    if found.p_holm is None:
        return "not tested"
    looks = " and of looks" if table.rounds else ""
    corrected = f"after correction for the number of arms{looks} (Holm)"
    return f"p = {found.p_holm:.2g} {corrected}; paired t test over {found.n} seeds"
