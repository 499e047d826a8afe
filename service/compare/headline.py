"""What a person wants to know first, in words: which arm is best, whether that is real, what is not said by it."""

from dataclasses import dataclass

from service.compare.columns import interval
from service.compare.stats import MIN_PAIRS, MOST_SEEDS
from service.schemas.comparison import ArmRow, Comparison, RankingMetric
from service.text import count, short


@dataclass(frozen=True)
class Headline:
    best: ArmRow | None
    """The arm with the best mean so far; None while no arm has one."""
    reached: str
    """What that arm has reached, and which direction is better; empty without one."""
    cost: str
    """What it and all arms have taken; empty without one."""
    answer: str
    """Whether its difference to the others is real, in a word or three."""
    why: str
    cautions: list[str]
    """What would be read into it otherwise."""


def headline(table: Comparison) -> Headline:
    """In the words of the comparison: nothing is tested here that is not tested there."""
    best = next((row for row in table.arms if row.rank == 1), None)
    if table.metric is None or best is None:
        return Headline(None, "", "", "Not known yet", _why_no_arm(table), [])
    answer, why = _for_the_baseline(table, best) if best.is_baseline else _against_the_baseline(table, best)
    total = sum(row.gpu_hours for row in table.arms)
    cost = f"{short(best.gpu_hours)} {table.hours}, all arms {short(total)}"
    return Headline(best, _reached(table.metric, best), cost, answer, why, _cautions(table, best))


def _reached(metric: RankingMetric, best: ArmRow) -> str:
    probe = best.probe
    assert probe  # it has a rank
    between = f" ({interval(probe)}, 95 %)" if probe.low is not None else ""
    direction = "higher" if metric.higher_is_better else "lower"
    mean = f"{metric.name} {short(probe.mean)} {metric.unit}".rstrip()
    return f"{mean}{between}, mean of {count(probe.n, 'seed')}; {direction} is better"


def _why_no_arm(table: Comparison) -> str:
    finished = any(run.value is not None or run.state == "succeeded" for row in table.arms for run in row.runs)
    return "No arm is ranked; below is why." if finished else "No run has finished yet."


def _against_the_baseline(table: Comparison, best: ArmRow) -> tuple[str, str]:
    found = best.difference
    if found is None or found.mean is None or found.n < MIN_PAIRS:
        return "Too early to say", (
            f"It has {count(found.n if found else 0, 'seed')} in common with the baseline ({table.baseline}); "
            f"{MIN_PAIRS} are needed."
        )
    by = f"{abs(found.mean):.3g} {table.metric.unit if table.metric else ''}".strip()
    if found.verdict == "better":
        return "Yes", f"Better than the baseline ({table.baseline}) by {by}, {_p(found.p_holm)}."
    if found.verdict == "no difference shown":
        more = found.more_seeds
        needed = (
            f" About {count(more, 'more seed')} would settle a difference of this size." if more and _few(more) else ""
        )
        return "Not shown", f"Ahead of the baseline ({table.baseline}) by {by}, {_p(found.p_holm)}.{needed}"
    return "No verdict", f"Ahead of the baseline ({table.baseline}) by {by}: {found.verdict.partition(':')[0]}."


def _for_the_baseline(table: Comparison, best: ArmRow) -> tuple[str, str]:
    others = [row for row in table.arms if row.difference]
    if not others:
        return "Nothing to compare", "There is one arm."
    worse = sum(row.difference.verdict == "worse" for row in others if row.difference)
    if worse == len(others):
        return "Yes", "It is the baseline, and every other arm is shown to be worse."
    if all(row.difference.n < MIN_PAIRS for row in others if row.difference):
        return "Too early to say", f"It is the baseline, and no arm has {MIN_PAIRS} seeds in common with it."
    if worse == 0:
        return "Not shown", "It is the baseline, and no other arm is shown to be worse."
    return "In part", f"It is the baseline, and {worse} of the {len(others)} other arms are shown to be worse."


def _cautions(table: Comparison, best: ArmRow) -> list[str]:
    told = []
    missing, total = sum(len(row.missing) for row in table.arms), sum(row.seeds for row in table.arms)
    if missing:
        told.append(f"So far: {missing} of {total} runs are missing.")
    if best.floors and best.floors.above is False:
        told.append("Not shown to be above the floors: the probe may not tell trained encoders apart at all.")
    second = next((row for row in table.arms if row is not best and row.probe and row.probe.mean is not None), None)
    if second and second.probe and not best.is_baseline and not second.is_baseline:
        told.append(f"Tested against the baseline, not against the second ({second.name}, {short(second.probe.mean)}).")
    return told


def _few(more: int | None) -> bool:
    return more is not None and 0 < more < MOST_SEEDS


def _p(p_holm: float | None) -> str:
    return "untested" if p_holm is None else f"p = {p_holm:.2g} after Holm's correction"
