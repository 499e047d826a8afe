"""Adding arms and seeds to an experiment, on SQLite and on PostgreSQL."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from sqlalchemy import select

from service.compare.service import comparison_of
from service.errors import InvalidSpec, NotExtendable
from service.experiments import actions
from service.experiments import service as experiments
from service.experiments.extend import Extension, extend
from service.tables import Arm, Run
from tests.unit.service.bench import Bench
from trainer.weights.sources import FILES_ONLY


def train(bench: Bench) -> None:
    def done() -> bool:
        for name in bench.cluster.live():
            bench.cluster.succeed(name)
        return all(run.settled for run in bench.runs())

    bench.go_until(done)


def add(bench: Bench, experiment: str, **more: Any) -> None:
    extend(bench.db, experiment, Extension(**more), FILES_ONLY, None)


def test_only_what_is_added_is_trained_and_the_comparison_has_all(bench: Bench, spec: dict[str, Any]) -> None:
    [factor] = spec["factors"]
    old, new = spec["factors"][factor], [0.9]
    experiment = bench.submit(spec)
    train(bench)
    first = dict(bench.cluster.submissions)
    add(bench, experiment, seeds=3)
    add(bench, experiment, factors={factor: new})
    train(bench)
    # Two arms x two seeds were there; one more seed for both, then one more arm of three seeds.
    assert len(bench.cluster.submissions) == len(first) + 2 + 3
    assert set(bench.cluster.submissions.values()) == {1}
    detail = experiments.show(bench.db, bench.settings, experiment)
    assert [arm.levels[factor] for arm in detail.arms] == [json.dumps(level) for level in [*old, *new]]
    assert [arm.is_baseline for arm in detail.arms] == [True, False, False]
    assert all([trial.seed for trial in arm.trials] == [0, 1, 2] for arm in detail.arms)
    assert (detail.spec["seeds"], detail.state) == (3, "succeeded")
    with bench.db.read() as session:
        compared = comparison_of(session, experiment, None)
    assert compared.complete
    assert [len(arm.runs) for arm in compared.arms] == [3, 3, 3]


def test_asking_again_adds_nothing(bench: Bench, spec: dict[str, Any]) -> None:
    experiment = bench.submit(spec)
    for _ in range(2):
        add(bench, experiment, seeds=[7], gpu_hours=50)
    detail = experiments.show(bench.db, bench.settings, experiment)
    assert (detail.num_runs, detail.spec["seeds"], detail.gpu_hours_cap) == (6, [0, 1, 7], 50)


def test_what_cannot_be_added_is_refused_whole(bench: Bench, spec: dict[str, Any]) -> None:
    [factor] = spec["factors"]
    experiment = bench.submit(spec)
    before = experiments.show(bench.db, bench.settings, experiment)
    with pytest.raises(InvalidSpec, match=f"input_size.*a factor of the experiment: {factor}"):
        add(bench, experiment, seeds=5, factors={"input_size": [64]})
    with pytest.raises(InvalidSpec, match=factor):
        add(bench, experiment, seeds=5, factors={factor: [7.5]})
    assert experiments.show(bench.db, bench.settings, experiment) == before
    actions.cancel(bench.db, experiment)
    with pytest.raises(NotExtendable, match="was cancelled"):
        add(bench, experiment, seeds=5)


def test_arms_that_saw_other_data_are_not_put_beside_the_old_ones(
    bench: Bench, spec: dict[str, Any], tmp_path: Path
) -> None:
    faces = tmp_path / "own"
    shutil.copytree(spec["base"]["data"]["uri"], faces)
    spec["base"]["data"]["uri"] = str(faces)
    experiment = bench.submit(spec)
    Image.new("RGB", (40, 40), "red").save(faces / "one-more.png")
    with pytest.raises(NotExtendable, match="4 of 4 runs would be different today"):
        add(bench, experiment, seeds=3)
    assert experiments.show(bench.db, bench.settings, experiment).num_runs == 4


def labels(tmp_path: Path, faces: Path, name: str = "labels.csv") -> str:
    rows = [f"{file.name},{number % 2}" for number, file in enumerate(sorted(faces.glob("*.png")))]
    (tmp_path / name).write_text("\n".join(["file,label", *rows]))
    return str(tmp_path / name)


def test_what_is_measured_more_of_finished_runs_trains_nothing_again(
    bench: Bench, spec: dict[str, Any], tiny_faces: Path, tmp_path: Path
) -> None:
    experiment = bench.submit(spec)
    train(bench)
    trained = {run.pretraining: run.id for run in bench.runs()}
    for _ in range(2):
        add(bench, experiment, evaluation={"labels": labels(tmp_path, tiny_faces)})
    train(bench)
    new = [run for run in bench.runs() if run.id not in trained.values()]
    assert len(new) == len(trained) == 4
    assert all(run.weights_of == trained[run.pretraining] for run in new)
    detail = experiments.show(bench.db, bench.settings, experiment)
    assert {trial.run_id for arm in detail.arms for trial in arm.trials} == {run.id for run in new}
    assert detail.spec["base"]["evaluation"]["labels"]
    # A third time, with one thing more: what has been measured most is where it starts.
    add(bench, experiment, evaluation={"mask_ratio": 0.5})
    train(bench)
    before = {*trained.values(), *(run.id for run in new)}
    assert {run.weights_of for run in bench.runs() if run.id not in before} == {run.id for run in new}


def test_more_is_measured_of_ended_runs_and_of_the_same_images(
    bench: Bench, spec: dict[str, Any], tiny_faces: Path, tmp_path: Path
) -> None:
    experiment = bench.submit(spec)
    before = experiments.show(bench.db, bench.settings, experiment)
    with pytest.raises(NotExtendable, match=r"4 of 4 runs of .* have not ended \(such as r"):
        add(bench, experiment, evaluation={"labels": labels(tmp_path, tiny_faces)})
    with pytest.raises(InvalidSpec, match=r"evaluation.held_out: asked for 4; possible: the same images"):
        add(bench, experiment, evaluation={"held_out": 4})
    with pytest.raises(InvalidSpec, match="label"):
        add(bench, experiment, evaluation={"lables": "x"})
    assert experiments.show(bench.db, bench.settings, experiment) == before


def test_of_runs_with_the_same_weights_one_trains_and_the_others_measure(
    bench: Bench, spec: dict[str, Any], tiny_faces: Path, tmp_path: Path
) -> None:
    folds = {"evaluation.folds": [2, 3, 4]}
    spec["base"]["evaluation"] = {"labels": labels(tmp_path, tiny_faces)}
    bench.submit(spec | {"factors": folds, "seeds": 1})
    bench.go(3)
    [name] = bench.cluster.live()
    first = name.rpartition("-")[0]
    waiting = [run.waiting_reason for run in bench.runs() if run.id != first]
    assert waiting == [f"run {first} trains the weights that it measures"] * 2
    # Stopped for good on its way: the next one goes on from where it was.
    bench.cluster.train(name, 6)
    bench.go(1)
    bench.cluster.fail(name)
    bench.go(6)
    [name] = bench.cluster.live()
    second = name.rpartition("-")[0]
    assert {run.id: run.weights_of for run in bench.runs()}[second] == first
    bench.cluster.succeed(name)
    bench.go(6)
    [name] = bench.cluster.live()
    assert {run.id: run.weights_of for run in bench.runs()}[name.rpartition("-")[0]] == second


def test_a_private_experiment_takes_no_weights_and_gives_none(bench: Bench, spec: dict[str, Any]) -> None:
    bench.submit(spec)
    bench.submit(spec | {"share": False, "name": "private"})
    train(bench)
    assert len(bench.runs()) == 8
    assert {run.weights_of for run in bench.runs()} == {None}
    assert len({run.digest for run in bench.runs()}) == 4


def test_runs_that_begin_with_the_same_digits_are_told_apart(bench: Bench, spec: dict[str, Any]) -> None:
    first = bench.submit(spec)
    with bench.db.write() as session:
        for run in session.scalars(select(Run)):
            run.digest = run.digest[:12] + "0" * 52
    second = bench.submit(spec)
    ids = [
        {trial.run_id for arm in experiments.show(bench.db, bench.settings, id).arms for trial in arm.trials}
        for id in (first, second)
    ]
    assert not ids[0] & ids[1]
    assert {id[:13] for id in ids[0]} == {id[:13] for id in ids[1]}


def test_arms_that_were_called_otherwise_once_are_still_the_same(bench: Bench, spec: dict[str, Any]) -> None:
    experiment = bench.submit(spec)
    with bench.db.write() as session:
        for arm in session.scalars(select(Arm)):
            arm.name = f"ratio {arm.position}"
    add(bench, experiment, seeds=3)
    detail = experiments.show(bench.db, bench.settings, experiment)
    assert ([arm.name for arm in detail.arms], detail.num_runs) == (["ratio 0", "ratio 1"], 6)
