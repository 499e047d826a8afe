"""Seeds in rounds in sentences: what was decided when, what it saved, what arms wait for, and how it was tested."""

from collections.abc import Iterable, Sequence

from service.schemas.comparison import ArmRow, Comparison, RoundsSoFar
from service.text import count, hours, percent
from trainer.contract.rounds import Spending, Target

SPENT = {Spending.LINEAR: "alpha t", Spending.OBRIEN_FLEMING: "of O'Brien and Fleming's kind"}
TESTED = "paired t test over seeds after each round, group-sequential Holm, 5 % over all looks"


def describe(table: Comparison) -> list[str]:
    """Empty where seeds do not come in rounds."""
    rounds = table.rounds
    if rounds is None:
        return []
    return [_progress(table, rounds), *_arms(table.arms), *_order(table.arms), *_uncounted(rounds), method(rounds)]


def method(rounds: RoundsSoFar) -> str:
    """As a paper would say it."""
    against = "pairs of arms" if rounds.target is Target.BEST else "differences to the baseline"
    levels = _and([f"{level:.2g}" for level in rounds.levels])
    stop = (
        f"; arms whose predictive power was below {percent(rounds.futility)} get no more seeds, which the error rate "
        "does not rely on"
        if rounds.futility
        else ""
    )
    return (
        f"Method: {against} ({rounds.comparisons}) are tested by the paired t test after "
        f"{_and(map(str, rounds.rounds))} seeds (looks taken: {rounds.looks}), group-sequential Holm at 5 % over all "
        f"looks, error spending {SPENT[rounds.spending]} (two-sided levels of the t test, for the first difference to "
        f"be shown: {levels}); p is the smallest error rate at which that look shows the difference, and intervals of "
        f"differences are repeated confidence intervals{stop}."
    )


def next_look(rounds: RoundsSoFar) -> str:
    """`the look after 8 of 12 seeds`."""
    return f"the look after {rounds.rounds[rounds.looks]} of {rounds.rounds[-1]} seeds"


def _progress(table: Comparison, rounds: RoundsSoFar) -> str:
    most, looks = rounds.most_runs, f"{rounds.looks} of {len(rounds.rounds)} looks taken"
    if rounds.is_cancelled:
        return f"Seeds came in rounds, and the experiment was cancelled: {looks}. Verdicts are those of the looks."
    if not rounds.is_over:
        return (
            f"Seeds come in rounds, and not all are trained yet: {looks}, {rounds.runs} of at most {most} runs asked "
            f"for. Arms are tested next at {next_look(rounds)}."
        )
    if rounds.runs == most:
        return f"Seeds came in rounds, and all {most} runs were asked for."
    if not rounds.runs_saved and not rounds.has_failed:
        return f"Seeds came in rounds: {rounds.runs} of at most {most} runs were trained."
    if rounds.has_failed:
        return (
            f"Seeds came in rounds, and no more were given out after {rounds.runs} of at most {most} runs, because too "
            "few had finished to test anything. Runs that are retried now are in no look: submit a new experiment, "
            "which shares those that have finished."
        )
    saved = f"which saved {count(rounds.runs_saved, 'run')}, about {hours(rounds.hours_saved)} {table.hours}"
    return f"Seeds came in rounds: {rounds.runs} of at most {most} runs were trained, {saved}."


def _arms(rows: Sequence[ArmRow]) -> list[str]:
    known = [(row.name, row.rounds) for row in rows if row.rounds]
    told = []
    if decided := [f"{name}, {found.words}" for name, found in known if found.decided_after]:
        told.append(f"Settled: {'; '.join(decided)}.")
    if stopped := [f"{name}, {found.words}" for name, found in known if found.is_given_up]:
        told.append(f"Given no more seeds, and not decided: {'; '.join(stopped)}.")
    if waits := [name for name, found in known if found.goes_on]:
        told.append(f"Still being trained: {'; '.join(waits)}.")
    return told


def _order(rows: Sequence[ArmRow]) -> list[str]:
    if len({row.probe.n for row in rows if row.probe and row.probe.n}) < 2:
        return []
    return [
        "Arms have different numbers of seeds. They are in the order of their means over the seeds that all of them "
        "have, and those that are shown to be worse come last."
    ]


def _uncounted(rounds: RoundsSoFar) -> list[str]:
    if not rounds.uncounted:
        return []
    return [
        f"{count(rounds.uncounted, 'run')} finished after the last look, as one that is retried does: counted in the "
        "means, and in no test."
    ]


def _and(items: Iterable[str]) -> str:
    *first, last = items
    return f"{', '.join(first)} and {last}" if first else last
