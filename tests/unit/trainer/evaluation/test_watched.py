"""Readings: what ranks share of them, how many fit into the declared share, and when a run has stalled."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.unit.trainer.teamwork import together
from trainer.contract import RunSpec
from trainer.contract.presets import TINY
from trainer.contract.records import READINGS, Metric, Reading, Readings, Speed
from trainer.data.batches import split_of
from trainer.data.manifest import open_images
from trainer.evaluation import evaluate, ridge
from trainer.evaluation.evaluate import NotFinite, Reader
from trainer.evaluation.neighbours import nearest
from trainer.evaluation.team import ALONE, Dealt, Team
from trainer.method.mcf import build
from trainer.store.objects import DirectoryStore
from trainer.store.rundir import read_readings
from trainer.watch import Watch, stalled, thinned

CPU = torch.device("cpu")


@pytest.fixture
def run(tiny_faces: Path, tmp_path: Path) -> RunSpec:
    faces = {
        file.name: {"points68": [[float(i + number % 5), float(2 * i % 50)] for i in range(68)]}
        for number, file in enumerate(sorted(tiny_faces.iterdir()))
    }
    (tmp_path / "landmarks.json").write_text(json.dumps(faces))
    evaluation = {"held_out": 9, "landmarks": str(tmp_path / "landmarks.json"), "every": 10}
    return RunSpec.model_validate(
        {**TINY, "data": {"uri": str(tiny_faces)}, "teacher": {"source": "none"}, "evaluation": evaluation}
    )


def readers(run: RunSpec) -> Callable[[Team], Reader]:
    split = split_of(run)
    images = open_images(run.data, split.manifest)
    return lambda team: Reader(run, split, images, team, CPU)


@pytest.mark.parametrize("size", [1, 2, 3])
def test_a_reading_is_the_final_evaluation_however_many_ranks_share_it(
    run: RunSpec, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Dealt, "batch", 4)  # so that there is something to deal
    split, model = split_of(run), build(run)
    final = evaluate.evaluate(run, model, split, open_images(run.data, split.manifest), CPU)
    make = readers(run)
    for found in together(size, lambda team: make(team).read(model)):
        assert not isinstance(found, NotFinite)
        probe, sanity = found
        assert probe
        assert final.probe
        assert probe.value == pytest.approx(final.probe.value, rel=1e-9)
        assert (probe.low, probe.high) == pytest.approx((final.probe.low, final.probe.high), rel=1e-9)
        expected = {metric.name: metric.value for metric in final.sanity if metric.name.startswith("sanity/")}
        assert {metric.name: metric.value for metric in sanity} == pytest.approx(expected, rel=1e-6)


def test_ranks_hold_whole_batches_and_nobody_holds_an_image_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Dealt, "batch", 8)
    for count in 1, 7, 8, 100:
        for size in 1, 2, 3, 8:
            held = together(size, lambda team, count=count: Dealt(count, team).mine)
            assert [place for mine in held for place in mine] == list(range(count))
            assert all(mine.start % 8 == 0 for mine in held if mine)


def test_ridge_and_neighbours_are_shared_also_with_a_rank_that_has_no_image() -> None:
    rng = torch.Generator().manual_seed(0)
    feature_NF = torch.randn(100, 9000, generator=rng)
    target_NT, fold_N = torch.randn(100, 4, generator=rng).double(), torch.arange(100) % 5
    names = [str(i) for i in range(100)]
    alone = ridge.out_of_fold(feature_NF, target_NT, fold_N)

    def shared(team: Team) -> tuple[torch.Tensor, torch.Tensor]:
        dealt = Dealt(100, team)
        mine = feature_NF[dealt.mine.start : dealt.mine.stop]
        return ridge.out_of_fold(mine, target_NT, fold_N, dealt), nearest(mine, names, dealt)

    for guess_NT, neighbour_N in together(3, shared):
        torch.testing.assert_close(guess_NT, alone, rtol=1e-9, atol=1e-9)
        assert neighbour_N.equal(nearest(feature_NF, names))


def test_a_model_that_is_not_finite_is_not_measured_and_the_run_is_told_to_diverge(run: RunSpec) -> None:
    model = build(run)
    with torch.no_grad():
        model.encoder.cls_token[:] = torch.inf
    assert readers(run)(ALONE).read(model) == NotFinite("weights")


def test_readings_are_thinned_by_powers_of_two_to_what_the_budget_holds() -> None:
    assert thinned(1, 16, cost=1, budget=16) == 1
    assert thinned(1, 16, cost=1, budget=15) == 2
    assert thinned(1, 16, cost=1, budget=3) == 8
    assert thinned(9, 16, cost=1, budget=3) == 4
    assert thinned(1, 16, cost=1, budget=0.5) is None
    assert thinned(1, 16, cost=0, budget=0) == 1


class Told:
    """A report that remembers, with steps of one second."""

    def __init__(self, store: DirectoryStore) -> None:
        self.stalled, self.readings, self.store = "", list[int](), store
        self.journal = self
        self.speed = self
        self.seconds_a_step, self.reading_seconds, self.so_far = 1.0, 0.0, Speed()

    def reading(self, reading: Reading) -> None:
        self.readings.append(reading.step)

    def keep(self, readings: Readings) -> None:
        self.store.put(READINGS, readings.model_dump_json().encode())


class Slow:
    """Reads nothing, and takes its time, the first time so many times as long."""

    def __init__(self, seconds: float, first: float = 1.0) -> None:
        self.seconds, self.now, self.value, self.factor = seconds, 0.0, 10.0, first

    def read(self, model: Any) -> Any:
        self.now, self.factor = self.now + self.seconds * self.factor, 1.0
        return metric(self.value), []


def metric(value: float, name: str = "probe/landmark_nme", higher: bool = False) -> Metric:
    return Metric(name=name, value=value, unit="%", higher_is_better=higher)


def watched(run: RunSpec, folder: Path, slow: Slow, **every: Any) -> tuple[Watch, Told]:
    evaluation = run.evaluation.model_copy(update={"every": run.evaluation.every.model_copy(update=every)})  # type: ignore[union-attr]
    store = DirectoryStore(str(folder))
    told = Told(store)
    spec: Any = run.model_copy(update={"evaluation": evaluation})
    report: Any = told
    reader: Any = slow
    return Watch(spec, reader, 1000, store, None, report, clock=lambda: slow.now), told


def train(watch: Watch, model: Any = None, first: int = 0) -> None:
    if not first:
        watch.read(0, model)
    for step in range(first + 1, 1001):
        if watch.due(step):
            watch.read(step, model)


def test_readings_stay_within_the_declared_share_are_evenly_spaced_and_what_is_left_out_is_said(
    run: RunSpec, tmp_path: Path
) -> None:
    watch, told = watched(run, tmp_path, slow := Slow(2.0))
    train(watch)
    # 30 s of 1000 are 15 readings. What one takes is known after the second.
    assert told.readings == [0, 10, *range(80, 1000, 80)]
    assert told.reading_seconds == slow.now <= 30
    kept = read_readings(DirectoryStore(str(tmp_path)))
    assert [reading.step for reading in kept.readings] == told.readings
    assert "a reading takes 2 s; so that all take at most 3 % of the run's time" in kept.note
    assert "one every 80 steps, and not every 10" in kept.note


def test_readings_that_fit_are_all_made_and_nothing_is_said(run: RunSpec, tmp_path: Path) -> None:
    watch, told = watched(run, tmp_path, Slow(0.2))
    train(watch)
    assert told.readings == list(range(0, 1000, 10))
    assert read_readings(DirectoryStore(str(tmp_path))).note == ""


def test_a_first_reading_that_takes_long_does_not_cost_the_others(run: RunSpec, tmp_path: Path) -> None:
    watch, told = watched(run, tmp_path, slow := Slow(0.2, first=80), steps=50)
    train(watch)
    assert told.readings == list(range(0, 1000, 50))
    assert slow.now <= 30


def test_one_reading_too_expensive_is_the_only_one_and_that_is_said(run: RunSpec, tmp_path: Path) -> None:
    watch, told = watched(run, tmp_path, Slow(31.0))
    train(watch)
    assert told.readings == [0]
    assert "from step 10 on nothing is read" in read_readings(DirectoryStore(str(tmp_path))).note


def test_a_step_that_is_taken_again_is_not_measured_again_but_told_again(run: RunSpec, tmp_path: Path) -> None:
    train(watched(run, tmp_path, Slow(0.2))[0])
    again, told = watched(run, tmp_path, slow := Slow(0.2))
    train(again, first=500)
    assert slow.now == 0
    assert told.readings == list(range(510, 1000, 10))


def test_a_run_that_is_no_better_than_before_its_first_step_is_told_to_have_stalled(
    run: RunSpec, tmp_path: Path
) -> None:
    watch, told = watched(run, tmp_path, slow := Slow(0.2), stalled_after=0.4)
    watch.read(0, None)  # type: ignore[arg-type]
    watch.read(390, None)  # type: ignore[arg-type]
    assert told.stalled == ""
    watch.read(400, None)  # type: ignore[arg-type]
    assert told.stalled == (
        "it has stalled: after step 400 of 1000 probe/landmark_nme is 10 %, no better than the 10 % before the first "
        "step (lower is better)"
    )
    slow.value = 9.0
    watch.read(410, None)  # type: ignore[arg-type]
    assert told.stalled == ""


def test_whether_a_run_has_stalled_is_asked_of_the_metric_that_ranks() -> None:
    def reading(step: int, probe: float | None, retrieval: float) -> Reading:
        sanity = [metric(retrieval, "sanity/retrieval_top1", higher=True)]
        found = None if probe is None else metric(probe)
        return Reading(step=step, images_seen=step, probe=found, sanity=sanity, seconds=0)

    assert "probe/landmark_nme" in stalled(reading(0, 10, 40), reading(9, 11, 80), 5, 10)
    assert stalled(reading(0, None, 40), reading(9, None, 80), 5, 10) == ""
    assert "sanity/retrieval_top1" in stalled(reading(0, None, 40), reading(9, None, 30), 5, 10)
    assert "sanity/retrieval_top1" in stalled(reading(0, 10, 40), reading(9, 9, 30), 5, 10, "sanity/retrieval_top1")
    assert stalled(None, reading(9, None, 30), 5, 10) == ""


def test_readings_are_kept_in_step_order_and_a_step_once() -> None:
    made = Readings()
    for step, seconds in (20, 1.0), (10, 2.0), (20, 3.0):
        made = made.with_reading(Reading(step=step, images_seen=step, probe=None, sanity=[], seconds=seconds))
    assert [(reading.step, reading.seconds) for reading in made.readings] == [(10, 2.0), (20, 3.0)]
