"""What the fast probe says beside its value: an interval over images, and the nearest neighbours."""

import json
import math
from pathlib import Path

import pytest
import scipy.stats
import torch

from tests.unit.service.bench import result
from trainer.contract import RunSpec
from trainer.contract.presets import TINY
from trainer.contract.records import Metric, Result, final_metrics
from trainer.data.batches import split_of
from trainer.data.manifest import open_images
from trainer.evaluation import evaluate
from trainer.evaluation.bootstrap import interval, mean_metric
from trainer.evaluation.neighbours import nearest
from trainer.method.mcf import build


def test_the_interval_of_many_values_is_that_of_the_normal_law() -> None:
    value_N = torch.randn(400, generator=torch.Generator().manual_seed(1)).double() * 3 + 10
    low, high = interval(value_N)
    half = 1.96 * float(value_N.std()) / math.sqrt(400)
    assert low == pytest.approx(float(value_N.mean()) - half, abs=0.1 * half)
    assert high == pytest.approx(float(value_N.mean()) + half, abs=0.1 * half)


def test_the_interval_of_shares_is_that_of_the_binomial_law() -> None:
    # Means of resamples of k hits in n are binomial shares: the percentiles are known.
    value_N = torch.tensor([1.0] * 30 + [0.0] * 70)
    law = scipy.stats.binom(100, 0.3)
    low, high = interval(value_N, resamples=20_000)
    assert low == pytest.approx(law.ppf(0.025) / 100, abs=0.0101)
    assert high == pytest.approx(law.ppf(0.975) / 100, abs=0.0101)
    narrow = interval(value_N, level=0.5)
    assert low < narrow[0] < narrow[1] < high


def test_the_interval_is_a_function_of_values_and_seed() -> None:
    value_N = torch.rand(40, generator=torch.Generator().manual_seed(2))
    assert interval(value_N) == interval(value_N.clone())
    assert interval(value_N) != interval(value_N, seed=1)
    assert interval(torch.tensor([7.0])) == (7.0, 7.0)
    # Not drawn in one piece, and not in whole pieces either.
    assert interval(value_N, resamples=251) != interval(value_N, resamples=250)
    with pytest.raises(ValueError, match="no images"):
        interval(torch.zeros(0))


def test_a_metric_is_logged_with_the_ends_it_has() -> None:
    bare = Metric(name="a", value=1.0, unit="%", higher_is_better=True)
    assert bare.logged == {"a": 1.0}
    found = mean_metric(torch.tensor([0.0, 4.0]), name="a", unit="%", higher_is_better=False)
    assert found.logged == {"a": 2.0, "a/low": 0.0, "a/high": 4.0}


def test_the_ends_of_the_probe_s_interval_are_among_the_final_metrics() -> None:
    probe = mean_metric(torch.tensor([11.0, 13.0, 15.0]), name="probe/a", unit="%", higher_is_better=False)
    found = result(None, probe=probe)
    assert {"probe/a", "probe/a/low", "probe/a/high"} <= final_metrics(found).keys()


def test_a_result_of_a_version_without_intervals_is_read() -> None:
    text = result(None).model_dump_json(exclude={"probe": {"low", "high"}})
    assert '"low"' not in json.dumps(json.loads(text)["probe"])
    found = Result.model_validate_json(text)
    assert found.probe
    assert (found.probe.low, found.probe.high) == (None, None)


def test_neighbours_are_by_angle_and_never_a_copy() -> None:
    feature_NF = torch.tensor([[1.0, 0.0], [9.0, 1.0], [1.0, 1.4], [0.0, 1.0], [1.0, 0.0]])
    assert nearest(feature_NF, ["a", "b", "c", "d", "a"]).tolist() == [1, 0, 3, 2, 1]
    assert nearest(feature_NF, ["a", "b", "c", "d", "e"]).tolist() == [4, 0, 3, 2, 0]
    with pytest.raises(ValueError, match="1 different images"):
        nearest(feature_NF, ["a"] * 5)


def test_neighbours_are_those_of_the_cosines_written_out() -> None:
    feature_NF = torch.randn(20, 9000, generator=torch.Generator().manual_seed(3))
    for i, found in enumerate(nearest(feature_NF, [str(i) for i in range(20)]).tolist()):
        others = [j for j in range(20) if j != i]
        cosines = [torch.cosine_similarity(feature_NF[i].double(), feature_NF[j].double(), dim=0) for j in others]
        assert found == others[max(range(19), key=lambda place, cosines=cosines: float(cosines[place]))]


@pytest.fixture
def run(tiny_faces: Path, tmp_path: Path) -> RunSpec:
    """Faces in two shapes, by turns: the right eye is drawn at one place or at another."""
    faces = {}
    for number, file in enumerate(sorted(tiny_faces.iterdir())):
        points = [[10.0, 10.0]] * 42 + [[50.0 + 10 * (number % 2), 10.0]] * 26
        faces[file.name] = {"points68": points}
    (tmp_path / "landmarks.json").write_text(json.dumps(faces))
    evaluation = {"held_out": 8, "landmarks": str(tmp_path / "landmarks.json")}
    return RunSpec.model_validate(
        {**TINY, "data": {"uri": str(tiny_faces)}, "teacher": {"source": "none"}, "evaluation": evaluation}
    )


def test_neighbours_of_the_same_shape_have_no_error_and_of_the_other_shape_a_known_one(run: RunSpec) -> None:
    task = evaluate.probe_task(run)
    assert task is not None
    wide_N = task.target_NT[:, -2] > task.target_NT[:, -2].mean()
    told = task.measure_neighbours(torch.stack([wide_N, ~wide_N], dim=1).double(), "sanity/a")
    assert told is not None
    assert (told.name, told.unit, told.value) == ("sanity/a", "% of eye distance", 0.0)
    # Features that are orthogonal but for the one neighbour each has, of the other shape.
    order = torch.cat([wide_N.nonzero().flatten(), (~wide_N).nonzero().flatten()])
    feature_NF = torch.zeros(len(order), len(order) // 2).double()
    feature_NF[order, torch.arange(len(order)) % (len(order) // 2)] = 1
    crossed = task.measure_neighbours(feature_NF, "sanity/a")
    assert crossed is not None
    # 26 of 68 points are off by 10 pixels; the eyes are 40 pixels apart in one half and 50 in the other.
    assert crossed.value == pytest.approx(100 * 26 / 68 * (10 / 40 + 10 / 50) / 2)


def test_an_evaluation_with_landmarks_logs_interval_and_neighbours_with_floors(run: RunSpec) -> None:
    split = split_of(run)
    found = evaluate.evaluate(run, build(run), split, open_images(run.data, split.manifest), torch.device("cpu"))
    logged = final_metrics(found)
    name = "probe/landmark_nme"
    assert logged[f"{name}/low"] < logged[name] < logged[f"{name}/high"]
    assert {name for name in logged if "neighbour" in name} == {
        "sanity/neighbour_nme", "floor/neighbour_pixels", "floor/neighbour_random_encoder",
    }  # fmt: skip
    # This model has not been trained, so it is its own floor.
    assert logged["sanity/neighbour_nme"] == logged["floor/neighbour_random_encoder"]
    assert logged["floor/neighbour_pixels"] != logged["floor/neighbour_random_encoder"]
