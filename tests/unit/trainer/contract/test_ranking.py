"""The names that a spec may rank by are those that the stages give their numbers."""

from pathlib import Path

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from trainer.contract import RunSpec
from trainer.contract.ranking import STAGE_METRICS, is_rankable, rankable, short
from trainer.contract.request import STAGE_OF
from trainer.evaluation.readers.record import Record
from trainer.evaluation.stages.benchmarks import BENCHMARKS
from trainer.evaluation.stages.tasks import AlignmentTask


@pytest.mark.parametrize("name", BENCHMARKS)
def test_every_metric_of_a_benchmark_is_known_by_its_name(name: str) -> None:
    task = BENCHMARKS[name].task
    score = task.score()
    if isinstance(task, AlignmentTask):
        points = np.random.default_rng(0).uniform(0, 90, (task.num_maps, 2))
        record = Record(
            image=Path("face.png"), split="test", subsets=frozenset(task.subsets), box=(0, 0, 90, 90),
            points_P2=points,
        )  # fmt: skip
        score.add(record, torch.from_numpy(points))
    else:
        score.add(Record(image=Path("face.png"), split="test"), 5 * torch.eye(task.num_maps, dtype=torch.int64))
    assert set(score.metrics()) == set(STAGE_METRICS[name])
    asked = {"benchmark": name, "uri": "/data/there", "selection": "best_on_validation"}
    metric = f"{STAGE_OF[name]}/{task.primary}"
    base = {"data": {"uri": "/data/faces"}, "teacher": "none"}
    run = RunSpec.model_validate({**base, "evaluation": {STAGE_OF[name]: asked, "rank_by": metric}})
    assert metric in rankable(run.evaluation)
    for selection, known in ("best_on_validation", True), ("last", False):
        whole = f"{STAGE_OF[name]}/{selection}/{task.primary}"
        assert (is_rankable(run.evaluation, whole), short(whole)) == (known, metric)
    with pytest.raises(ValidationError, match=r"evaluation\.rank_by"):
        RunSpec.model_validate({**base, "evaluation": {"rank_by": metric}})
