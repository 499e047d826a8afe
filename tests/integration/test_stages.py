"""Stages of evaluation with real processes, on real faces: whatever happens on the way, the numbers are the same."""

import json
import os
import shutil
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from tests.benchmarks import colour_a_mask, draw_lapa, upload
from tests.forks import Forked, forks
from tests.integration.torchruns import ENV, TORCHRUN, small, torchrun, wait_until, workers_of
from trainer.contract import RunSpec
from trainer.contract.records import Result, Verdict, final_metrics
from trainer.store.objects import DirectoryStore
from trainer.store.rundir import list_checkpoints, read_outcome, read_result, read_sessions
from trainer.weights.encoders import find_encoder
from trainer.weights.mlflow_files import MlflowFiles
from trainer.weights.sources import weights_file

FACES, HELD_OUT, EPOCHS = 60, 12, 3
HEAD = {
    "benchmark": "faces68", "epochs": EPOCHS, "batch": 16, "slice": 2, "input_size": 32, "crop_size": 64,
    "channels": 16, "average_decay": 0.9, "selection": "best_on_test",
}  # fmt: skip


@pytest.fixture(scope="module")
def few(faces: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """images/ and landmarks.json of 60 real faces."""
    folder = tmp_path_factory.mktemp("few")
    everything = json.loads((faces / "landmarks.json").read_text())
    known = dict([(name, face) for name, face in everything.items() if face["landmarks_ok"]][:FACES])
    (folder / "images").mkdir()
    for name in known:
        shutil.copy(faces / "images" / name, folder / "images" / name)
    (folder / "landmarks.json").write_text(json.dumps(known))
    return folder


def spec(few: Path) -> RunSpec:
    evaluation = {"held_out": HELD_OUT, "alignment": {**HEAD, "uri": str(few / "landmarks.json")}}
    return small(
        few / "images", encoder={"width": 48, "depth": 4, "heads": 3, "patch": 8}, evaluation=evaluation,
        schedule={"unit": "steps", "length": 3, "warmup": 1},
    )  # fmt: skip


@contextmanager
def trainer(run: RunSpec, folder: Path, **env: str) -> Iterator[Forked]:
    """The run without torchrun, as a world of one, with its output in folder/log."""
    folder.mkdir(exist_ok=True)
    (folder / "given.json").write_text(run.model_dump_json())
    env = {**os.environ, **ENV, "MCF_RUN_URI": str(folder), **env}
    with (folder / "log").open("ab") as log:
        process = forks.start("trainer.main", "--spec", str(folder / "given.json"), output=log, env=env)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def wait_for_state(folder: Path, process: Forked, beyond: int = 0) -> int:
    """Until the stage has saved a state beyond that position; returns where that is."""
    store = DirectoryStore(str(folder / "stages/alignment"))
    wait_until(lambda: any(kept.step > beyond for kept in list_checkpoints(store)), process, folder / "log", 240)
    return list_checkpoints(store)[-1].step


def result_in(folder: Path) -> Result:
    store = DirectoryStore(str(folder))
    outcome, result = read_outcome(store), read_result(store)
    assert outcome
    assert outcome.verdict is Verdict.SUCCEEDED
    assert result
    return result


@pytest.fixture(scope="module")
def undisturbed(few: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "undisturbed"
    with trainer(spec(few), folder) as process:
        assert process.wait(240) == 0, (folder / "log").read_text()[-3000:]
    return folder


def test_a_stage_leaves_its_numbers_in_the_result_and_says_how_their_epoch_was_chosen(undisturbed: Path) -> None:
    result = result_in(undisturbed)
    [stage] = result.stages
    assert (stage.stage, stage.benchmark, stage.selection, stage.epochs) == (
        "alignment", "faces68", "best_on_test", EPOCHS,
    )  # fmt: skip
    assert f"{FACES - HELD_OUT} of {FACES - HELD_OUT} training faces" in stage.note
    assert {metric.name for metric in stage.metrics} == {
        f"alignment/best_on_test/nme_{unit}" for unit in ("inter_ocular", "inter_pupil", "diag")
    }
    assert all(metric.unit.endswith("best on test") and 0 < metric.value < 100 for metric in stage.metrics)
    assert {metric.name for metric in stage.metrics} <= final_metrics(result).keys()
    assert "alignment/best_on_test/nme_diag" in (undisturbed / "export/README.md").read_text()
    # Its state has gone, its place has not.
    assert [file.name for file in (undisturbed / "stages/alignment").iterdir() if file.is_file()] == ["result.json"]
    assert not list_checkpoints(DirectoryStore(str(undisturbed / "stages/alignment")))


def test_a_stage_that_is_killed_goes_on_bit_for_bit_and_mlflow_has_every_epoch_once(
    few: Path, undisturbed: Path, tmp_path: Path, mlflow_server: str
) -> None:
    client = MlflowClient(mlflow_server)
    logged = client.create_run(client.create_experiment("stages")).info.run_id
    env = {"MLFLOW_TRACKING_URI": mlflow_server, "MLFLOW_RUN_ID": logged}
    folder = tmp_path / "run"
    with trainer(spec(few), folder, **env) as process:
        wait_for_state(folder, process)
        process.send_signal(signal.SIGKILL)
        process.wait()
    [session] = read_sessions(DirectoryStore(str(folder)))
    assert (session.step, session.stage.partition(",")[0]) == (3, "alignment")
    with trainer(spec(few), folder, **env) as process:
        assert process.wait(240) == 0, (folder / "log").read_text()[-3000:]
    assert "alignment goes on in epoch" in (folder / "log").read_text()
    assert result_in(folder).stages == result_in(undisturbed).stages
    curve = client.get_metric_history(logged, "alignment/nme_inter_ocular")
    assert [point.step for point in curve] == list(range(1, EPOCHS + 1))
    [best] = client.get_metric_history(logged, "alignment/best_on_test/nme_inter_ocular")
    assert best.value == min(point.value for point in curve)
    # Its encoder by every name.
    client.create_registered_model("stages")
    root = client.get_run(logged).info.artifact_uri
    version = client.create_model_version("stages", f"{root}/export", logged).version
    client.set_registered_model_alias("stages", "best", version)
    library = MlflowFiles(mlflow_server)
    assert weights_file("models:/stages@best", library) == f"{folder}/export/model.safetensors"
    names = [str(folder), f"{folder}/export", "models:/stages@best", "models:/stages/1", f"runs:/{logged}"]
    assert len({find_encoder(name, library).digest for name in names}) == 1


def test_a_run_with_a_wrong_benchmark_on_a_store_fails_before_its_first_step(
    few: Path, s3_server: str, tmp_path: Path
) -> None:
    lapa = draw_lapa(tmp_path / "LaPa")
    colour_a_mask(lapa)
    upload(lapa, s3_server)
    wrong = spec(few).model_dump() | {
        "evaluation": {"held_out": HELD_OUT, "parsing": {**HEAD, "benchmark": "lapa", "uri": s3_server}}
    }
    with trainer(RunSpec.model_validate(wrong), tmp_path / "run") as process:
        assert process.wait(240) == 1, (tmp_path / "run/log").read_text()[-3000:]
    outcome = read_outcome(DirectoryStore(str(tmp_path / "run")))
    assert outcome
    assert (outcome.kind, outcome.step) == ("DataError", 0)
    assert f"mask {s3_server}/val/labels/a.png is in colours" in outcome.reason


def test_a_face_that_cannot_be_decoded_fails_its_run_before_the_first_step(few: Path, tmp_path: Path) -> None:
    broken = tmp_path / "few"
    shutil.copytree(few, broken)
    image = sorted((broken / "images").iterdir())[0]
    image.write_bytes(image.read_bytes()[:200])
    with trainer(spec(broken), tmp_path / "run") as process:
        assert process.wait(240) == 1, (tmp_path / "run/log").read_text()[-3000:]
    outcome = read_outcome(DirectoryStore(str(tmp_path / "run")))
    assert outcome
    assert (outcome.kind, outcome.step) == ("DataError", 0)
    assert f"annotated image {image.name!r} cannot be decoded" in outcome.reason


def test_ranks_that_are_killed_stopped_and_fewer_afterwards_find_the_same_numbers(
    few: Path, undisturbed: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    # A slice is of two faces: the third rank waits.
    with torchrun(spec(few), folder, workers=3, module=TORCHRUN) as agent:
        wait_for_state(folder, agent)
        # In order of their ranks; the second one is the last that works.
        workers_of(agent)[1].kill()
        wait_until(lambda: "alignment goes on in epoch" in (folder / "log").read_text(), agent, folder / "log")
        agent.send_signal(signal.SIGTERM)
        assert agent.wait(120) != 0
    assert "stopped on request in epoch" in (folder / "log").read_text()
    assert read_outcome(DirectoryStore(str(folder))) is None
    with torchrun(spec(few), folder) as agent:
        assert agent.wait(240) == 0, (folder / "log").read_text()[-3000:]
    assert [session.world_size for session in read_sessions(DirectoryStore(str(folder)))] == [3, 3, 2]
    alone, together = (result_in(where).stages[0].metrics for where in (undisturbed, folder))
    # By rounding: of three steps of pretraining, and of the fit's.
    assert [metric.value for metric in together] == pytest.approx([metric.value for metric in alone], rel=0.02)


def test_of_the_same_weights_only_what_is_new_is_measured(few: Path, undisturbed: Path, tmp_path: Path) -> None:
    other = spec(few)
    evaluation = {**other.evaluation.model_dump(), "mask_ratio": 0.5}
    more = RunSpec.model_validate({**other.model_dump(), "evaluation": evaluation})
    with trainer(more, tmp_path / "more", MCF_WEIGHTS_URI=str(undisturbed)) as process:
        assert process.wait(240) == 0, (tmp_path / "more/log").read_text()[-3000:]
    [session] = read_sessions(DirectoryStore(str(tmp_path / "more")))
    assert (session.first_step, session.step) == (3, 3)
    before, after = result_in(undisturbed), result_in(tmp_path / "more")
    assert after.stages == before.stages
    assert not (tmp_path / "more/stages/alignment/checkpoints").exists()
    assert after.sanity != before.sanity
    assert after.losses == before.losses


def test_mcf_evaluate_says_of_the_run_s_encoder_what_the_stage_said(
    few: Path, undisturbed: Path, tmp_path: Path
) -> None:
    fields = [f"--set={name}={HEAD[name]}" for name in ("batch", "slice", "input_size", "crop_size", "channels")]
    command = [
        "service.cli.main:app", "evaluate", str(undisturbed), "--benchmark", "faces68", "--data",
        str(few / "images"), "--landmarks", str(few / "landmarks.json"), "--held-out", str(HELD_OUT), "--epochs",
        str(EPOCHS), "--selection", "best_on_test", "--set=average_decay=0.9", *fields, "--out", str(tmp_path / "out"),
        "--json",
    ]  # fmt: skip

    def found(*more: str) -> Any:
        done = forks.run(*command, *more, env={**os.environ, **ENV}, cwd=tmp_path)
        assert done.returncode == 0, done.stderr[-3000:]
        return json.loads(done.stdout)

    expected = json.loads(result_in(undisturbed).stages[0].model_dump_json())
    for _ in range(2):  # the second time from what the first has kept
        assert found() == expected
    together = found("--processes=2", f"--out={tmp_path / 'two'}")
    assert [metric.pop("value") for metric in together["metrics"]] == pytest.approx(
        [metric.pop("value") for metric in expected["metrics"]], rel=1e-2
    )
    assert together == expected
    refused = forks.run(*command, "--processes=3", cwd=tmp_path)
    assert "--processes: asked for 3; possible: at most 2, the faces of a slice" in refused.stderr
