"""What a table shows of seeds that come in rounds: differences as the looks have found them, and where each arm is."""

from service.compare.levels import levels
from service.compare.rounds import Course, InRounds
from service.compare.sequential import Outcome
from service.compare.stats import ALPHA, verdict
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
    seeds, waits = rounds.given(name), not rounds.looks or name in rounds.looks[-1].on
    against = course.dropped.get(name, course.measure)
    outcome = None if name == against else course.outcome(name, against)
    decided = None
    if outcome and outcome.shown_at is not None:
        decided = min(rounds.design.rounds[outcome.shown_at], seeds)
    loss = course.loss(name) if name in course.dropped else None
    found = ArmInRounds(
        seeds=seeds, most=rounds.design.most, goes_on=waits and not rounds.is_over, decided_after=decided,
        is_given_up=not waits and outcome is not None and decided is None and seeds < rounds.design.most,
        worse_than=course.dropped.get(name), loss=_difference(loss, course.higher_is_better) if loss else None,
        chance=outcome.chance if outcome else None, words="",
    )  # fmt: skip
    return found.model_copy(update={"words": _words(course, name, found, outcome, waits=waits)})


def so_far(rounds: InRounds, rows: list[ArmRow]) -> RoundsSoFar:
    """Of the whole experiment."""
    design = rounds.design
    pairs = len(rows) * (len(rows) - 1) // 2
    comparisons = pairs if design.target is Target.BEST else len(rows) - 1
    by_itself = rounds.is_over and not rounds.is_cancelled
    needed = [row.name for row in rows if row.is_baseline or design.target is Target.BEST]
    has_failed = by_itself and not any(map(rounds.had_finished, needed))
    # What has failed has saved nothing.
    spared = {
        row.name: design.most - row.seeds
        for row in rows
        if by_itself and not has_failed and rounds.had_finished(row.name)
    }
    shares = [count / design.most for count in design.rounds]
    return RoundsSoFar(
        rounds=list(design.rounds), first=design.first, spending=design.spending, target=design.target,
        futility=design.futility, looks=len(rounds.looks), is_over=rounds.is_over, is_cancelled=rounds.is_cancelled,
        has_failed=has_failed, comparisons=comparisons,
        levels=levels(design.rounds, shares, design.spending, ALPHA / max(1, comparisons)),
        uncounted=_uncounted(rounds, rows), runs=sum(row.seeds for row in rows), most_runs=len(rows) * design.most,
        runs_saved=sum(spared.values()),
        hours_saved=sum(spared.get(row.name, 0) * row.gpu_hours / row.seeds for row in rows if row.seeds),
    )  # fmt: skip


def _uncounted(rounds: InRounds, rows: list[ArmRow]) -> int:
    if not (rounds.is_over and rounds.looks):
        return 0
    last = rounds.looks[-1]
    return sum(
        run.state is RunState.SUCCEEDED and run.seed not in last.seeds(row.name) for row in rows for run in row.runs
    )


def _difference(outcome: Outcome, higher_is_better: bool) -> Difference:
    found = outcome.found
    return Difference(
        **vars(found.summary), p=found.p, p_holm=outcome.p, level=outcome.level, more_seeds=None,
        verdict=verdict(found, outcome.p, higher_is_better),
    )  # fmt: skip


def _words(course: Course, name: str, found: ArmInRounds, outcome: Outcome | None, *, waits: bool) -> str:
    design, of = course.rounds.design, f"{found.seeds} of {found.most} seeds"
    if found.loss and found.loss.mean is not None and found.loss.p_holm is not None:
        by = f"by {abs(found.loss.mean):.3g}, p = {found.loss.p_holm:.2g}"
        return f"dropped after {found.decided_after} of {found.most} seeds: worse than {found.worse_than} ({by})"
    if found.decided_after:
        return f"decided after {found.decided_after} of {found.most} seeds"
    if (who := course.rounds.stopped.get(name)) and not found.goes_on:
        return f"stopped after {of}: {who}"
    if waits:
        return f"{'cancelled before' if course.rounds.is_cancelled else 'waits for'} the look after {of}"
    if not course.rounds.had_finished(course.measure):
        return (
            f"stopped after {of}: no run of the {'leader' if design.target is Target.BEST else 'baseline'} has finished"
        )
    if not course.rounds.had_finished(name):
        return f"stopped after {of}: no run of it has finished"
    if found.seeds == design.most:
        return f"undecided after all {found.seeds} seeds" if outcome else f"all {found.seeds} seeds"
    if outcome is None:
        return of if design.target is Target.BASELINE else f"leads after {of}"
    if outcome.chance is not None and outcome.chance < design.futility:
        return (
            f"stopped after {of}: chance to be decided {outcome.chance:.1%}, below {percent(design.futility)}".replace(
                "%,", " %,"
            )
        )
    return f"stopped after {of}"
