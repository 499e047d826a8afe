"""Who may start: places are given out in order of priority, and who waits is told for what. Pure."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Waiting:
    """A run without a place, as one of its experiments sees it."""

    run_id: str
    reason: str
    """What it is told it waits for so far."""
    experiment_id: str
    experiment: str
    concurrency: int
    project: str
    weights: str
    """The same for runs of the same pretraining; empty where a run has finished it."""


@dataclass(frozen=True)
class Taken:
    """Places that are in use."""

    total: int
    by_experiment: Mapping[str, int]
    by_project: Mapping[str, int]


def admit(
    waiting: Iterable[Waiting],
    taken: Taken,
    max_total: int,
    max_of_project: Mapping[str, int],
    training: Mapping[str, str],
) -> tuple[list[str], dict[str, str]]:
    """Runs that get a place, and a new waiting reason for each run whose reason has changed.

    `waiting` is in order: higher priority first, then older experiments, then trials. A run that several experiments
    want needs room in one of them, and in its project.
    `training`: weights that a run with a place trains -> that run. One run trains them, and the others wait for it.
    """
    total, trained_by = taken.total, dict(training)
    by_experiment, by_project = dict(taken.by_experiment), dict(taken.by_project)
    admitted: list[str] = []
    reasons: dict[str, str] = {}
    told_so_far: dict[str, str] = {}
    for item in waiting:
        told_so_far[item.run_id] = item.reason
        if item.run_id in admitted:
            continue
        if item.weights and (first := trained_by.get(item.weights)):
            reasons.setdefault(item.run_id, f"run {first} trains the weights that it measures")
            continue
        mine, ours = by_experiment.get(item.experiment_id, 0), by_project.get(item.project, 0)
        most = max_of_project.get(item.project, max_total)
        if mine < item.concurrency and ours < most and total < max_total:
            admitted.append(item.run_id)
            trained_by[item.weights] = item.run_id
            by_experiment[item.experiment_id], by_project[item.project] = mine + 1, ours + 1
            total += 1
        elif mine >= item.concurrency:
            reasons.setdefault(item.run_id, _experiment_full(item, mine))
        elif ours >= most and total < max_total:
            reasons.setdefault(item.run_id, f"project {item.project} has all of its {most} places in use")
        else:
            reasons.setdefault(item.run_id, f"all {max_total} places are taken (MCF_MAX_CONCURRENT_RUNS)")
    told = {
        run_id: reason for run_id, reason in reasons.items() if run_id not in admitted and reason != told_so_far[run_id]
    }
    return admitted, told


def _experiment_full(item: Waiting, mine: int) -> str:
    return f"{mine} of at most {item.concurrency} runs of {item.experiment} are in flight (its concurrency)"
