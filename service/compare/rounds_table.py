"""What a table shows of seeds that come in rounds: differences as the looks have found them, and where each arm is."""

from service.compare.levels import levels
from service.compare.rounds import Course, InRounds
from service.compare.sequential import Outcome
from service.compare.stats import ALPHA, MIN_PAIRS, verdict
from service.schemas.comparison import ArmInRounds, ArmRow, Difference, RoundsSoFar
from service.states import RunState
from service.text import percent
from trainer.contract.rounds import Target


def differences(course: Course) -> dict[str, Difference]:
    """Of every arm to the baseline, with repeated confidence intervals, and p over all looks and arms."""
    return {
        name: _difference(course.outcome(name, course.baseline), course.higher_is_better)
        for name in course.arms
        if name != course.baseline
    }


def of_arm(course: Course, name: str) -> ArmInRounds:
    """Where an arm is: decided, given up, or waiting for the next look."""
    rounds = course.rounds
    design, looks = rounds.design, rounds.looks
    # An arm is in every round until the first look that does not let it go on.
    closed = next((number for number, look in enumerate(looks, 1) if name not in look.on), None)
    seeds = design.rounds[(closed or len(looks) + 1) - 1]
    against = course.dropped.get(name, course.measure)
    outcome = None if name == against else course.outcome(name, against)
    decided = design.rounds[outcome.shown_at] if outcome and outcome.shown_at is not None else None
    return ArmInRounds(
        seeds=seeds, most=design.most, goes_on=closed is None and not rounds.is_over, decided_after=decided,
        worse_than=course.dropped.get(name), chance=outcome.chance if outcome else None,
        words=_words(course, name, seeds, outcome, waits=closed is None),
    )  # fmt: skip


def so_far(rounds: InRounds, comparisons: int, rows: list[ArmRow]) -> RoundsSoFar:
    """Of the whole experiment. `comparisons`: differences that are tested."""
    design = rounds.design
    runs, most = sum(row.seeds for row in rows), len(rows) * design.most
    saved = sum((design.most - row.seeds) * row.gpu_hours / row.seeds for row in rows if row.seeds)
    shares = [count / design.most for count in design.rounds]
    return RoundsSoFar(
        rounds=list(design.rounds), first=design.first, spending=design.spending, target=design.target,
        futility=design.futility, looks=len(rounds.looks), is_over=rounds.is_over, is_cancelled=rounds.is_cancelled,
        comparisons=comparisons,
        levels=levels(design.rounds, shares, design.spending, ALPHA / max(1, comparisons)),
        uncounted=_uncounted(rounds, rows), runs=runs, most_runs=most,
        hours_saved=saved if rounds.is_over and not rounds.is_cancelled else None,
    )  # fmt: skip


def _uncounted(rounds: InRounds, rows: list[ArmRow]) -> int:
    if not rounds.looks:
        return 0
    last = rounds.looks[-1]
    return sum(
        run.state is RunState.SUCCEEDED and run.seed not in last.seeds(row.name)
        for row in rows if row.name not in last.on for run in row.runs
    )  # fmt: skip


def _difference(outcome: Outcome, higher_is_better: bool) -> Difference:
    found = outcome.found
    return Difference(
        **vars(found.summary), p=found.p, p_holm=outcome.p, level=outcome.level, more_seeds=None,
        verdict=verdict(found, outcome.p, higher_is_better),
    )  # fmt: skip


def _words(course: Course, name: str, seeds: int, outcome: Outcome | None, *, waits: bool) -> str:
    design = course.rounds.design
    of = f"{seeds} of {design.most} seeds"
    if outcome and outcome.shown_at is not None:
        to = f", worse than {course.dropped[name]}" if name in course.dropped else ""
        return f"decided after {design.rounds[outcome.shown_at]} of {design.most} seeds{to}"
    if waits:
        return f"{'cancelled before' if course.rounds.is_cancelled else 'waits for'} the look after {of}"
    if seeds == design.most:
        return f"undecided after all {seeds} seeds" if outcome else f"all {seeds} seeds"
    if outcome is None:
        return of if design.target is Target.BASELINE else f"leads after {of}"
    if outcome.found.summary.n < MIN_PAIRS:
        return f"stopped after {of}: too few of its runs have finished"
    if outcome.chance is not None and outcome.chance < design.futility:
        return f"stopped after {of}: chance to be decided {percent(outcome.chance)}"
    return f"stopped after {of}"
