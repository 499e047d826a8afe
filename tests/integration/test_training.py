"""A run from its first step to its outcome, with real processes: what it leaves behind, and how it fails."""

import json
import os
import re
import shutil
import signal
from datetime import timedelta
from pathlib import Path
from subprocess import CompletedProcess

import psutil
import pytest
import torch

from tests.conftest import free_port
from tests.forks import forks
from tests.integration.torchruns import (
    AGENT,
    ENV,
    STEPS,
    TORCHRUN,
    final_state,
    small,
    torchrun,
    wait_for_checkpoint,
    wait_until,
    workers_of,
)
from trainer.contract import RunSpec
from trainer.contract.records import OUT_OF_MEMORY, Verdict
from trainer.data.batches import split_of
from trainer.store.objects import DirectoryStore
from trainer.store.rundir import list_checkpoints, read_memory_note, read_outcome, read_result, read_sessions


@pytest.fixture(scope="module")
def undisturbed(tiny_faces: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "undisturbed"
    with torchrun(small(tiny_faces), folder) as agent:
        assert agent.wait(120) == 0, (folder / "log").read_text()[-3000:]
    return folder


def train_alone(run: RunSpec, folder: Path, program: str = "trainer.main", **env: str) -> "CompletedProcess[str]":
    """The run without torchrun, as a world of one."""
    folder.mkdir(exist_ok=True)
    (folder / "given.json").write_text(run.model_dump_json())
    env = {**os.environ, **ENV, "MCF_RUN_URI": str(folder), **env}
    return forks.run(program, "--spec", str(folder / "given.json"), env=env)


def test_a_run_leaves_checkpoints_a_session_a_result_an_export_and_an_outcome(undisturbed: Path) -> None:
    store = DirectoryStore(str(undisturbed))
    outcome, result = read_outcome(store), read_result(store)
    assert outcome is not None
    assert outcome.verdict == Verdict.SUCCEEDED
    assert result is not None
    assert (result.steps, result.images_seen, result.subset_size) == (STEPS, STEPS * 64, 40)
    assert set(result.losses) == {"total", "perceptual", "contrastive"}
    saved = [checkpoint.step for checkpoint in list_checkpoints(store)]
    # One that is due while another is on its way is taken a step or more later.
    assert saved[-1] == STEPS
    assert 2 <= len(saved) <= 7
    (session,) = read_sessions(store)
    assert (session.world_size, session.step, session.stage) == (2, STEPS, "done")
    assert (session.speed.images, session.speed.peak_share) == ((STEPS - 1) * 64, None)
    assert 0 < session.speed.waiting_seconds < session.speed.seconds < session.process_seconds / 2
    assert (undisturbed / "export/model.safetensors").exists()
    assert RunSpec.model_validate_json((undisturbed / "spec.json").read_text()).digest


@pytest.mark.parametrize("module", [AGENT, TORCHRUN])
def test_a_run_whose_workers_are_killed_before_any_step_ends_and_says_so(
    tiny_faces: Path, tmp_path: Path, module: str
) -> None:
    # As the kernel does where memory runs out: the agent lives on, and would start them again twenty times.
    store, killed = DirectoryStore(str(tmp_path / "run")), set[int]()
    with torchrun(small(tiny_faces), tmp_path / "run", workers=1, module=module, hosts=module == TORCHRUN) as agent:
        while len(killed) < 4:
            wait_until(lambda: bool({e.pid for e in workers_of(agent)} - killed), agent, tmp_path / "run/log")
            for worker in workers_of(agent):
                worker.kill()
                killed.add(worker.pid)
        agent.wait(60)
    outcome = read_outcome(store)
    assert outcome
    assert (outcome.verdict, outcome.kind, outcome.step) == (Verdict.FAILED, "OutOfMemory", 0)
    assert "killed 4 times before they took a step" in outcome.reason


def test_kept_pixels_change_no_weight_and_no_result(tiny_faces: Path, tmp_path: Path) -> None:
    larger = small(tiny_faces, evaluation={"held_out": 8, "every": 10})
    subset = small(tiny_faces, data={"uri": str(tiny_faces), "subset_size": 30})
    cache, found = str(tmp_path / "cache"), {}
    for name, run, gib in (
        ("subset", subset, "1"), ("larger", larger, "1"), ("again", larger, "1"), ("without", larger, "0"),
    ):  # fmt: skip
        done = train_alone(run, tmp_path / name, MCF_CACHE_DIR=cache, MCF_PIXEL_CACHE_GIB=gib)
        assert done.returncode == 0, done.stderr[-3000:]
        found[name] = re.findall(r"(\d+ of \d+) images were decoded on this node before", done.stderr)
    # The subset trained on, and held-out images: to draw them, and to measure them.
    assert found["subset"][0] == "0 of 30"
    assert found["larger"][0] == "30 of 40"
    assert (found["again"][0], found["again"][-1], found["without"]) == ("40 of 40", "8 of 8", [])
    expected = final_state(tmp_path / "without", STEPS)
    results = [read_result(DirectoryStore(str(tmp_path / name))) for name in ("without", "larger", "again")]
    for name in "larger", "again":
        state = final_state(tmp_path / name, STEPS)
        assert expected.keys() == state.keys()
        assert all(torch.equal(value, state[key]) for key, value in expected.items())
    first, *others = (result.model_dump(exclude={"export"}) for result in results if result)
    assert others == [first, first]


def test_a_finished_run_is_not_trained_again(tiny_faces: Path, undisturbed: Path) -> None:
    assert train_alone(small(tiny_faces), undisturbed).returncode == 0
    assert len(read_sessions(DirectoryStore(str(undisturbed)))) == 1


def test_a_run_that_is_killed_then_stopped_then_started_again_ends_as_if_nothing_had_been(
    tiny_faces: Path, undisturbed: Path, tmp_path: Path
) -> None:
    folder, store = tmp_path / "run", DirectoryStore(str(tmp_path / "run"))
    # As on one machine: torchrun's own agent, which holds the store.
    node = {"module": TORCHRUN, "hosts": True}
    with torchrun(small(tiny_faces), folder, **node) as agent:
        wait_for_checkpoint(folder, 6, agent)
        # The agent starts a new set of workers, which goes on from the newest checkpoint.
        workers_of(agent)[-1].kill()
        wait_for_checkpoint(folder, 12, agent)
        agent.send_signal(signal.SIGTERM)
        assert agent.wait(60) != 0
    assert "stopped on request after step" in (folder / "log").read_text()
    assert read_outcome(store) is None
    stopped_at = list_checkpoints(store)[-1].step
    assert 12 <= stopped_at < STEPS
    with torchrun(small(tiny_faces), folder, **node) as agent:
        assert agent.wait(120) == 0, (folder / "log").read_text()[-3000:]

    first, second, third = read_sessions(store)
    assert [first.first_step, third.first_step] == [0, stopped_at]
    assert 6 <= second.first_step < 12
    expected, found = final_state(undisturbed, STEPS), final_state(folder, STEPS)
    assert expected.keys() == found.keys()
    assert all(torch.equal(value, found[name]) for name, value in expected.items())
    results = [read_result(DirectoryStore(str(where))) for where in (folder, undisturbed)]
    mine, theirs = (result.model_dump(exclude={"export"}) for result in results if result)
    assert mine == theirs


def test_ranks_wait_for_what_rank_0_does_before_the_first_step_as_long_as_starting_up_may_take(
    tiny_faces: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "slow"
    patience = {"MCF_COLLECTIVE_TIMEOUT_SECONDS": "8", "MCF_STARTUP_TIMEOUT_SECONDS": "120"}
    with torchrun(small(tiny_faces), folder, program="tests.integration.slow_start", **patience) as agent:
        assert agent.wait(120) == 0, (folder / "log").read_text()[-3000:]
    assert len(read_sessions(DirectoryStore(str(folder)))) == 1


def test_no_worker_ends_before_the_run_has(tiny_faces: Path, tmp_path: Path) -> None:
    # On a cluster a node that ends well ends the attempt. Here rank 0 has to wait, for an MLflow that is away.
    folder = tmp_path / "together"
    store = DirectoryStore(str(folder))
    away = {"MLFLOW_TRACKING_URI": f"http://127.0.0.1:{free_port()}", "MLFLOW_RUN_ID": "0" * 32}
    with torchrun(small(tiny_faces), folder, module=TORCHRUN, **away) as agent:
        wait_until(lambda: [each.stage for each in read_sessions(store)] == ["evaluating"], agent, folder / "log")
        workers = workers_of(agent)
        assert len(workers) == 2
        # It does for MLFLOW_PATIENCE_SECONDS.
        assert psutil.wait_procs(workers, timeout=3)[0] == []
        assert read_outcome(store) is None


# ---------------------------------------------------------------- errors of the run itself


@pytest.mark.parametrize("module", [TORCHRUN, AGENT])
def test_a_loss_that_is_not_finite_fails_the_run_for_good_and_keeps_the_last_checkpoint(
    tiny_faces: Path, tmp_path: Path, module: str
) -> None:
    schedule = {"unit": "steps", "length": 9, "warmup": 4}
    run = small(tiny_faces, optimizer={"base_lr": 1e38}, schedule=schedule, cadence={"checkpoint_steps": 1})
    folder = tmp_path / "nan"
    with torchrun(run, folder, module=module) as agent:
        assert agent.wait(120) != 0
    # The agent has been told to end, and has not started workers that would meet the same error.
    assert "has failed already" not in (folder / "log").read_text()
    outcome = read_outcome(DirectoryStore(str(folder)))
    assert outcome is not None
    assert (outcome.verdict, outcome.kind) == (Verdict.FAILED, "NonFiniteLoss")
    # Its checkpoint may still have been on its way.
    [step] = map(int, re.findall(r"^step (\d+): losses", outcome.reason))
    assert outcome.step <= step
    first = step * 64
    assert f"Images at positions {first} to {first + 15}" in outcome.reason
    assert len(read_sessions(DirectoryStore(str(folder)))) == 1


def test_a_run_fails_for_want_of_memory_the_second_time_and_not_the_first(tiny_faces: Path, tmp_path: Path) -> None:
    store = DirectoryStore(str(tmp_path / "run"))
    # The activations of such a slice alone are larger than that.
    batch = {"slice": 8192, "contrastive_group": 8192, "global_batch": 8192}
    run = small(tiny_faces, batch=batch, input_size=64)
    assert train_alone(run, tmp_path / "run", "tests.integration.starved").returncode == 1
    assert read_outcome(store) is None
    note = read_memory_note(store)
    assert note is not None
    store.put(OUT_OF_MEMORY, note.model_copy(update={"at": note.at - timedelta(hours=1)}).model_dump_json().encode())
    assert train_alone(run, tmp_path / "run", "tests.integration.starved").returncode == 1
    outcome = read_outcome(store)
    assert outcome is not None
    assert (outcome.verdict, outcome.kind) == (Verdict.FAILED, "OutOfMemory")
    assert "lower batch.slice" in outcome.reason


def test_an_error_of_python_s_fails_the_run_the_second_time_and_not_the_first(tiny_faces: Path, tmp_path: Path) -> None:
    store = DirectoryStore(str(tmp_path / "run"))
    first = train_alone(small(tiny_faces), tmp_path / "run", "tests.integration.faulty")
    assert first.returncode == 1
    assert "ValueError: the numbers do not add up" in first.stderr
    assert read_outcome(store) is None
    assert train_alone(small(tiny_faces), tmp_path / "run", "tests.integration.faulty").returncode == 1
    outcome = read_outcome(store)
    assert outcome is not None
    assert (outcome.verdict, outcome.kind, outcome.step) == (Verdict.FAILED, "ValueError", STEPS)
    assert re.search(r"^ValueError in .*: the numbers do not add up\n", outcome.reason)
    assert "return answer" not in outcome.reason
    assert outcome.reason.endswith("ValueError: the numbers do not add up")


def test_a_spec_that_this_version_cannot_read_fails_the_run_at_once(tiny_faces: Path, tmp_path: Path) -> None:
    spec = tmp_path / "given.json"
    spec.write_text(small(tiny_faces).model_dump_json().replace('"mask_ratio"', '"mask_ration"'))
    env = {**os.environ, **ENV, "MCF_RUN_URI": str(tmp_path / "run")}
    assert forks.run("trainer.main", "--spec", str(spec), env=env).returncode == 1
    outcome = read_outcome(DirectoryStore(str(tmp_path / "run")))
    assert outcome is not None
    assert (outcome.kind, outcome.step) == ("ValidationError", 0)
    assert "mask_ration" in outcome.reason


def test_a_missing_teacher_fails_the_run_without_a_step(tiny_faces: Path, tmp_path: Path) -> None:
    run = small(tiny_faces, teacher={"source": str(tmp_path / "gone.pt")})
    assert train_alone(run, tmp_path / "run").returncode == 1
    outcome = read_outcome(DirectoryStore(str(tmp_path / "run")))
    assert outcome is not None
    assert (outcome.kind, outcome.step) == ("TeacherError", 0)
    assert "gone.pt" in outcome.reason


def test_an_annotated_image_that_cannot_be_decoded_fails_the_run_before_its_first_step(
    tiny_faces: Path, tmp_path: Path
) -> None:
    images = tmp_path / "images"
    shutil.copytree(tiny_faces, images)
    (images / "face000.png").write_bytes(b"no image")
    (tmp_path / "labels.csv").write_text("file,label\n" + "".join(f"face{i:03d}.png,{i % 2}\n" for i in range(48)))
    evaluation = {"held_out": 8, "images": str(images), "labels": str(tmp_path / "labels.csv")}
    run = small(tiny_faces, evaluation=evaluation)
    assert train_alone(run, tmp_path / "run").returncode == 1
    outcome = read_outcome(DirectoryStore(str(tmp_path / "run")))
    assert outcome is not None
    assert (outcome.kind, outcome.step) == ("DataError", 0)
    assert "annotated image 'face000.png' cannot be decoded" in outcome.reason


@pytest.mark.skipif(torch.cuda.is_available(), reason="of a machine without a GPU")
def test_the_gpus_decoder_fails_a_run_at_once_where_there_is_no_gpu(tiny_faces: Path, tmp_path: Path) -> None:
    run = small(tiny_faces, data={"uri": str(tiny_faces), "decoder": "nvjpeg"})
    assert train_alone(run, tmp_path / "run").returncode == 1
    outcome = read_outcome(DirectoryStore(str(tmp_path / "run")))
    assert outcome is not None
    assert (outcome.kind, outcome.step) == ("DataError", 0)
    assert "data.decoder: asked for nvjpeg; possible: cpu on this machine, which has no GPU" in outcome.reason


def test_a_run_trains_without_torchrun_and_says_which_settings_do_not_apply(tiny_faces: Path, tmp_path: Path) -> None:
    run = small(
        tiny_faces, precision="bf16", teacher={"source": "none", "weight": 3.0},
        schedule={"unit": "epochs", "length": 5, "warmup": 1},
    )  # fmt: skip
    done = train_alone(run, tmp_path / "run")
    assert done.returncode == 0, done.stderr
    assert "precision bf16 is not applied" in done.stderr
    assert "teacher.weight is not applied" in done.stderr
    result = read_result(DirectoryStore(str(tmp_path / "run")))
    assert result is not None
    assert result.steps == 5 * 40 // 64
    assert set(result.losses) == {"total", "pixel", "contrastive"}


def test_a_run_may_hide_blocks_from_one_branch_and_random_patches_from_the_other(
    tiny_faces: Path, undisturbed: Path, tmp_path: Path
) -> None:
    contrastive = {**small(tiny_faces).contrastive.model_dump(), "target_mask": {"kind": "random", "ratio": 0.5}}
    run = small(tiny_faces, mask="block", contrastive=contrastive)
    done = train_alone(run, tmp_path / "run")
    assert done.returncode == 0, done.stderr[-3000:]
    result = read_result(DirectoryStore(str(tmp_path / "run")))
    assert result
    assert result.losses["total"] > 0
    expected, found = final_state(undisturbed, STEPS), final_state(tmp_path / "run", STEPS)
    assert any(not torch.equal(value, found[name]) for name, value in expected.items())


def test_a_run_may_hide_parts_of_the_face_and_says_how_many_have_no_landmarks(faces: Path, tmp_path: Path) -> None:
    landmarks = faces / "landmarks.json"
    mask = {"kind": "parts", "landmarks": str(landmarks), "first": ["eyes", "nose", "mouth"]}
    run = small(faces / "images", mask=mask, schedule={"unit": "steps", "length": 6, "warmup": 1})
    done = train_alone(run, tmp_path / "run")
    assert done.returncode == 0, done.stderr[-3000:]
    usable = {key for key, face in json.loads(landmarks.read_text()).items() if face["landmarks_ok"]}
    without = sum(key not in usable for key in set(split_of(run).train.keys()))
    result = read_result(DirectoryStore(str(tmp_path / "run")))
    assert result
    assert result.without_landmarks == without > 0
    assert f"{without} of 297 images have no landmarks: their masks cannot go by them" in done.stderr


def test_landmarks_that_have_changed_fail_the_run_before_its_first_step(tiny_faces: Path, tmp_path: Path) -> None:
    (tmp_path / "landmarks.json").write_text("{}")
    mask = {"kind": "parts", "landmarks": str(tmp_path / "landmarks.json"), "first": ["eyes"], "sha256": "0" * 64}
    assert train_alone(small(tiny_faces, mask=mask), tmp_path / "run").returncode == 1
    outcome = read_outcome(DirectoryStore(str(tmp_path / "run")))
    assert outcome
    assert (outcome.verdict, outcome.kind, outcome.step) == (Verdict.FAILED, "DataError", 0)
    assert "has changed since the run was submitted" in outcome.reason


@pytest.mark.slow
def test_networks_may_be_compiled_and_features_kept_and_the_losses_stay(
    tiny_faces: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR", raising=False)  # torch sets it where it has compiled before
    if shutil.which("c++") is None:
        pytest.skip("needs a C++ compiler, with which torch.compile builds its kernels on a CPU")
    run = small(
        tiny_faces, schedule={"unit": "steps", "length": 3, "warmup": 1}, precision="float64",
        encoder={"width": 48, "depth": 1, "heads": 3, "patch": 8},
        teacher={"source": "random", "arch": "as-encoder", "taps": [0]},
    )  # fmt: skip
    losses, compiling = [], []
    quick = {"MCF_COMPILE": "1", "MCF_TEACHER_CACHE_GIB": "1", "MCF_CACHE_DIR": str(tmp_path / "cache")}
    few = {"MCF_TEACHER_CACHE_GIB": "1", "MCF_CELLS_A_PASS": "3", "MCF_CACHE_DIR": str(tmp_path / "cache")}
    for name, env in ("plain", {"MCF_CELLS_A_PASS": "1"}), ("quick", quick), ("again", quick), ("few", few):
        done = train_alone(run, tmp_path / name, **env)
        assert done.returncode == 0, done.stderr
        store = DirectoryStore(str(tmp_path / name))
        result = read_result(store)
        assert result is not None
        losses.append(result.losses)
        compiling.append(read_sessions(store)[0].speed.compile_seconds)
    # Up to rounding: code from the cache may add up in another order than code that was compiled just now.
    assert all(found == pytest.approx(losses[0], rel=1e-9) for found in losses[1:])
    # The second time the compiled code is in the cache.
    assert compiling[0] == 0 < compiling[2] < compiling[1]
    assert any((tmp_path / "cache" / "compiled").iterdir())


def test_a_machine_that_cannot_compile_trains_without_and_says_so(tiny_faces: Path, tmp_path: Path) -> None:
    run = small(tiny_faces, schedule={"unit": "steps", "length": 2, "warmup": 1})
    done = train_alone(run, tmp_path / "run", MCF_COMPILE="1", PATH="/nowhere", MCF_CACHE_DIR=str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert "the networks cannot be compiled here" in done.stderr
    assert read_result(DirectoryStore(str(tmp_path / "run")))
