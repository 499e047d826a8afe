"""Encoders of an experiment as a registered model of MLflow: one version an arm, found by the arm's alias.

mlflow:models:/mcf-know-a-face-again/@contrastive-weight-1     as a teacher, or to start from
"""

import re
from collections.abc import Iterator, Sequence

from service.schemas.comparison import Comparison
from service.states import DEFAULT_PROJECT, RunState
from service.tables import Arm, Experiment, Run
from service.tracking import Tracker
from trainer.contract.records import EXPORT

BEST = "best"


def model_name(experiment: Experiment) -> str:
    project = "" if experiment.project == DEFAULT_PROJECT else f"{experiment.project}-"
    return f"mcf-{project}{experiment.name}"


def alias_of(arm: str) -> str:
    """MLflow takes letters, digits, `_` and `-`."""
    return re.sub(r"[^\w-]+", "-", arm)[:255]


def register(
    tracker: Tracker, experiment: Experiment, comparison: Comparison, run: Run, arm: Arm, seed: int
) -> None:  # fmt: skip
    """An arm's encoder. Raises TrackingAway; doing it again makes no second version."""
    best = next((row.name for row in comparison.arms if row.rank == 1), None)
    aliases = [alias_of(arm.name), *([BEST] if arm.name == best else [])]
    assert run.tracking_run_id
    tracker.register(
        model_name(experiment), run.tracking_run_id, EXPORT.rstrip("/"), aliases=aliases,
        tags={
            "mcf.experiment_id": experiment.id, "mcf.arm": arm.name, "mcf.seed": str(seed), "mcf.run_id": run.id,
            "mcf.spec_digest": run.digest,
        },
    )  # fmt: skip


def first_seeds(rows: Sequence[tuple[Run, Arm, int]]) -> Iterator[tuple[Run, Arm, int]]:
    """Of each arm the first seed that has trained: the one that does best would be a better model than the arm is."""
    done: set[int] = set()
    for run, arm, seed in sorted(rows, key=lambda row: (row[1].position, row[2])):
        if run.state is RunState.SUCCEEDED and run.tracking_run_id and arm.id not in done:
            done.add(arm.id)
            yield run, arm, seed
