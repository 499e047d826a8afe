"""Runs as they were at a step of their training, from what was measured there (docs/comparison.md)."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from service.compare.table import ArmTrials, TrialRow
from trainer.contract.records import Readings, Result

MOST_STEPS = 12
"""That an error names."""


class NoSuchStep(Exception):
    """No run was measured at the step that was asked for; the text names those at which any was."""


def as_of(arms: Sequence[ArmTrials], step: int) -> list[ArmTrials]:
    """The arms with what each run had reached by then; a run that was not measured there has no result.

    Raises NoSuchStep when none was.
    """
    found = [
        replace(arm, trials=[replace(trial, result=result_at(trial, step)) for trial in arm.trials]) for arm in arms
    ]
    if not any(trial.result for arm in found for trial in arm.trials):
        raise NoSuchStep(_possible(step, steps_of(trial for arm in arms for trial in arm.trials)))
    return found


def steps_of(trials: Iterable[TrialRow]) -> list[int]:
    """The steps that any run was measured at, its last one, too."""
    steps = set[int]()
    for trial in trials:
        steps |= {reading.step for reading in trial.readings.readings}
        if trial.result:
            steps.add(trial.result.steps)
    return sorted(steps)


def result_at(trial: TrialRow, step: int) -> Result | None:
    """None where the run was not measured at that step."""
    if trial.result and trial.result.steps == step:
        # Without what a reading does not know, so that all runs of the table are measured in the same way.
        read = [metric for metric in trial.result.sanity if not metric.name.startswith("floor/")]
        less = {"floors": None, "stages": (), "held_out_digest": "", "sanity": read}
        return trial.result.model_copy(update=less)
    reading = trial.readings.at(step)
    if reading is None:
        return None
    return Result(
        steps=step, images_seen=reading.images_seen, subset_size=0, subset_digest="", held_out_digest="",
        probe=reading.probe, floors=None, probe_note=trial.result.probe_note if trial.result else "",
        sanity=reading.sanity, losses={}, export="",
    )  # fmt: skip


def kept_readings(found: Mapping[str, Any] | None) -> Readings:
    """As the database has them."""
    return Readings.model_validate(found) if found else Readings()


def _possible(step: int, steps: Sequence[int]) -> str:
    if not steps:
        return f"No run was measured at step {step}. evaluation.every in the spec has runs measured while they train."
    named = steps if len(steps) <= MOST_STEPS else [*steps[: MOST_STEPS - 1], steps[-1]]
    words = [f"{number}" for number in named]
    if len(named) < len(steps):
        words.insert(-1, "...")
    return (
        f"No run was measured at step {step}; possible: {', '.join(words)}. Where a run has fewer readings than it was "
        "asked for, its page says why (evaluation.every.share)."
    )
