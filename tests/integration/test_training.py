"""Training with real processes: the same result on any number of workers, and whatever happens on the way."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import pytest
import torch

from tests.conftest import free_port
from tests.integration.torchruns import (
    ENV,
    ROOT,
    STEPS,
    final_state,
    newest_copy,
    rendezvous,
    small,
    torchrun,
    wait_for_checkpoint,
    wait_until,
    workers_of,
    world_sizes,
)  # fmt: skip
from trainer.contract import RunSpec
from trainer.contract.records import OUT_OF_MEMORY, Verdict
from trainer.store.objects import DirectoryStore
from trainer.store.rundir import list_checkpoints, read_memory_note, read_outcome, read_result, read_sessions

# ---------------------------------------------------------------- the same result at every world size


# Two groups of four slices: eight cells, so eight workers are two teams, and three share unequally.
GRID = {"slice": 8, "contrastive_group": 32, "global_batch": 64}
KEY_LENGTH = 64
WORLDS = [[(size, 99)] for size in (1, 2, 3, 4, 8)]
CHANGING = [(3, 7), (1, 12), (4, 99)]
# One step leaves a tenth of the gradient in the optimizer's first moment. AdamW amplifies rounding from there on.
TOLERANCE = {1: 1e-9, 20: 1e-6}
KINDS: dict[str, tuple[dict[str, Any], list[int], list[list[tuple[int, int]]]]] = {
    "target moves per group": ({"ema": {"momentum": 0.9, "per": "group"}}, [1, 20], [*WORLDS, CHANGING]),
    "target moves per step": ({"ema": {"momentum": 0.9, "per": "step"}}, [20], [WORLDS[0], WORLDS[4], CHANGING]),
    "no contrast, no teacher": (
        {"contrastive": {"weight": 0}, "teacher": "none", "mask_ratio": 0.5}, [20], [WORLDS[0], CHANGING],
    ),
}  # fmt: skip
CASES = [(kind, length) for kind, (_, lengths, _) in KINDS.items() for length in lengths]


class Trained(NamedTuple):
    """What one list of worlds came to."""

    state: dict[str, torch.Tensor]
    losses: list[dict[str, float]]
    collectives: list[list[tuple[str, int]]]
    """Of every rank of the last world: what it sent in the last step, and how many numbers."""


@pytest.fixture(scope="module")
def on_worlds(tiny_faces: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, int], list[Trained]]:
    """Every kind of run on every list of (world size, step to stop after), by real processes, in float64."""
    folder = tmp_path_factory.mktemp("worlds")
    jobs = []
    for kind, length in CASES:
        schedule = {"unit": "steps", "length": length, "warmup": min(2, length)}
        run = small(tiny_faces, precision="float64", batch=GRID, schedule=schedule, **KINDS[kind][0])
        for number, stretches in enumerate(KINDS[kind][2]):
            where = f"{folder}/{kind} {length}/{number}"
            jobs.append({"run": run.model_dump(), "folder": where, "stretches": stretches})
    (folder / "jobs.json").write_text(json.dumps(jobs))
    command = [sys.executable, "-m", "tests.integration.worlds", str(folder / "jobs.json")]
    subprocess.run(command, env={**os.environ, **ENV}, cwd=ROOT, check=True, timeout=290)
    return {
        (kind, length): [
            what_came_of(folder / f"{kind} {length}/{number}", length, stretches[-1][0])
            for number, stretches in enumerate(KINDS[kind][2])
        ]
        for kind, length in CASES
    }


def what_came_of(folder: Path, length: int, last_world: int) -> Trained:
    sent = [folder / f"collectives-{last_world}-{rank}.json" for rank in range(last_world)]
    return Trained(
        state=final_state(folder, length),
        losses=[json.loads(line) for line in (folder / "losses").open()],
        collectives=[[tuple(each) for each in json.loads(path.read_text())] for path in sent if path.exists()],
    )


@pytest.mark.parametrize(("kind", "length"), CASES)
def test_one_to_eight_workers_take_the_same_steps_also_when_their_number_changes(
    on_worlds: dict[tuple[str, int], list[Trained]], kind: str, length: int
) -> None:
    alone, *others = on_worlds[kind, length]
    tolerance = TOLERANCE[length]
    assert alone.state["/model/encoder.norm.weight"].dtype == torch.float64
    assert len(alone.losses) == length
    for other in others:
        assert other.state.keys() == alone.state.keys()
        for name, value in alone.state.items():
            assert torch.allclose(value, other.state[name], rtol=tolerance, atol=tolerance), name
        for line, expected in zip(other.losses, alone.losses, strict=True):
            assert line == pytest.approx(expected, rel=tolerance)


@pytest.mark.parametrize(("size", "shares"), [(1, []), (2, [2, 2]), (3, [2, 2]), (4, [1, 1]), (8, [1])])
def test_a_step_sends_its_gradient_once_its_keys_inside_the_team_and_a_handful_of_numbers(
    on_worlds: dict[tuple[str, int], list[Trained]], size: int, shares: list[int]
) -> None:
    trained = on_worlds["target moves per group", 20][[size for [(size, _)] in WORLDS].index(size)]
    gradient = sum(value.numel() for name, value in trained.state.items() if name.endswith("/exp_avg"))
    assert len(trained.collectives) == size
    for sent in trained.collectives:
        reduced = [numbers for name, numbers in sent if name == "all_reduce"]
        # Losses, gradient norm and what ranks want of each other.
        assert min(reduced) <= 8
        assert sum(reduced) - min(reduced) == gradient
        # One gather a group this rank's team has, of the slices that any of the team has most of.
        keys = GRID["slice"] * KEY_LENGTH
        assert [numbers for name, numbers in sent if name == "all_gather"] == [share * keys for share in shares]


def test_a_branch_that_is_switched_off_leaves_no_weights(
    on_worlds: dict[tuple[str, int], list[Trained]],
) -> None:
    names = on_worlds["no contrast, no teacher", 20][0].state
    assert not any(part in name for name in names for part in ("projector", "predictor", "target", "teacher"))


# ---------------------------------------------------------------- torchrun


@pytest.fixture(scope="module")
def undisturbed(tiny_faces: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "undisturbed"
    with torchrun(small(tiny_faces), folder) as agent:
        assert agent.wait(120) == 0, (folder / "log").read_text()[-3000:]
    return folder


def train_alone(
    run: RunSpec, folder: Path, program: list[str] | None = None, **env: str
) -> "subprocess.CompletedProcess[str]":
    """The run without torchrun, as a world of one."""
    folder.mkdir(exist_ok=True)
    (folder / "given.json").write_text(run.model_dump_json())
    command = [*(program or [sys.executable, "-m", "trainer.main"]), "--spec", str(folder / "given.json")]
    env = {**os.environ, **ENV, "MCF_RUN_URI": str(folder), **env}
    return subprocess.run(command, env=env, cwd=ROOT, timeout=240, capture_output=True, text=True)


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
    assert (undisturbed / "export/model.safetensors").exists()
    assert RunSpec.model_validate_json((undisturbed / "spec.json").read_text()).digest


def test_a_finished_run_is_not_trained_again(tiny_faces: Path, undisturbed: Path) -> None:
    assert train_alone(small(tiny_faces), undisturbed).returncode == 0
    assert len(read_sessions(DirectoryStore(str(undisturbed)))) == 1


def test_a_run_that_is_killed_then_stopped_then_started_again_ends_as_if_nothing_had_been(
    tiny_faces: Path, undisturbed: Path, tmp_path: Path
) -> None:
    folder, store = tmp_path / "run", DirectoryStore(str(tmp_path / "run"))
    with torchrun(small(tiny_faces), folder) as agent:
        wait_for_checkpoint(folder, 6, agent)
        # The agent starts a new set of workers, which goes on from the newest checkpoint.
        os.kill(psutil.Process(agent.pid).children()[-1].pid, signal.SIGKILL)
        wait_for_checkpoint(folder, 12, agent)
        agent.send_signal(signal.SIGTERM)
        assert agent.wait(60) != 0
    assert "stopped on request after step" in (folder / "log").read_text()
    assert read_outcome(store) is None
    stopped_at = list_checkpoints(store)[-1].step
    assert 12 <= stopped_at < STEPS
    with torchrun(small(tiny_faces), folder) as agent:
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


def test_a_node_may_join_and_leave_and_training_goes_on_from_what_a_survivor_has_in_memory(
    tiny_faces: Path, tmp_path: Path
) -> None:
    schedule = {"unit": "steps", "length": 100_000, "warmup": 4}
    run = small(tiny_faces, schedule=schedule, cadence={"checkpoint_steps": 100_000})
    folder = tmp_path / "elastic"
    endpoint = f"127.0.0.1:{free_port()}"
    with torchrun(run, folder, workers=1, nodes="1:2", endpoint=endpoint) as first:
        wait_until(lambda: newest_copy(folder, run) > 0, first, folder / "log")
        with torchrun(run, folder, workers=1, nodes="1:2", endpoint=endpoint) as second:
            wait_until(lambda: world_sizes(folder) == [1, 2], first, folder / "log")
            joined_at = read_sessions(DirectoryStore(str(folder)))[-1].first_step
            wait_until(lambda: newest_copy(folder, run) > joined_at, first, folder / "log")
            second.kill()
        wait_until(lambda: world_sizes(folder) == [1, 2, 1], first, folder / "log")
        saved = [checkpoint.step for checkpoint in list_checkpoints(DirectoryStore(str(folder)))]
    firsts = [session.first_step for session in read_sessions(DirectoryStore(str(folder)))]
    assert 0 < firsts[1] < firsts[2]
    assert max(saved) < firsts[2], "it went on from what the survivor had in memory"


@pytest.mark.parametrize("rank", ["0", "1"])
def test_a_node_that_silently_goes_is_noticed_and_training_goes_on_without_it(
    tiny_faces: Path, tmp_path: Path, rank: str
) -> None:
    # Frozen, it keeps its connections: to the others it looks like one that computes for ever. The first one also holds
    # the store of the group, which then answers nobody.
    schedule = {"unit": "steps", "length": 100_000, "warmup": 4}
    run = small(tiny_faces, schedule=schedule, cadence={"checkpoint_steps": 100_000})
    folder, patience = tmp_path / "silent", {"MCF_LOST_NODE_SECONDS": "6", "MCF_COLLECTIVE_TIMEOUT_SECONDS": "300"}
    port = free_port()
    node = {"workers": 1, "nodes": "1:2", "endpoint": f"127.0.0.1:{port}", "hosts": False, **patience}
    with rendezvous(port), torchrun(run, folder, **node) as one:
        wait_until(lambda: newest_copy(folder, run) > 0, one, folder / "log")
        with torchrun(run, folder, **node) as other:
            wait_until(lambda: world_sizes(folder) == [1, 2], one, folder / "log")
            lost, left = (one, other) if group_rank(one) == rank else (other, one)
            for process in [*psutil.Process(lost.pid).children(recursive=True), psutil.Process(lost.pid)]:
                process.suspend()
            frozen = time.monotonic()
            wait_until(lambda: world_sizes(folder) == [1, 2, 1], left, folder / "log")
            assert time.monotonic() - frozen < 60  # alone, the collective would wait for 300 s
            assert f"node {rank} has not been heard of for" in (folder / "log").read_text()


def test_nodes_that_lose_their_rendezvous_meet_again_at_the_next_one(tiny_faces: Path, tmp_path: Path) -> None:
    schedule = {"unit": "steps", "length": 100_000, "warmup": 4}
    run = small(tiny_faces, schedule=schedule, cadence={"checkpoint_steps": 100_000})
    folder, port = tmp_path / "met-again", free_port()
    node = {
        "workers": 1, "nodes": "2:2", "endpoint": f"127.0.0.1:{port}", "hosts": False,
        "module": "trainer.elastic.agent",
    }  # fmt: skip
    with contextlib.ExitStack() as nodes:
        with rendezvous(port):
            one, other = (nodes.enter_context(torchrun(run, folder, **node)) for _ in range(2))
            wait_until(lambda: newest_copy(folder, run) > 0, one, folder / "log")
        # Nobody trains with its help: they go on until there is another one, however long that takes.
        wait_until(lambda: "the rendezvous is lost" in (folder / "log").read_text(), one, folder / "log")
        alone = newest_copy(folder, run)
        wait_until(lambda: newest_copy(folder, run) > alone, one, folder / "log")
        assert world_sizes(folder) == [2]
        # Both stay: a container that ends waits longer and longer before it starts again.
        with rendezvous(port):
            wait_until(lambda: world_sizes(folder) == [2, 2], one, folder / "log")
            reached = newest_copy(folder, run)
            wait_until(lambda: newest_copy(folder, run) > reached, one, folder / "log")
            assert other.poll() is None
    firsts = [session.first_step for session in read_sessions(DirectoryStore(str(folder)))]
    assert firsts[1] > 0


def test_a_node_that_silently_goes_while_workers_start_is_noticed_too(tiny_faces: Path, tmp_path: Path) -> None:
    # The workers have no word from each other yet: on a cluster the agents notice.
    schedule = {"unit": "steps", "length": 100_000, "warmup": 4}
    run = small(tiny_faces, schedule=schedule, cadence={"checkpoint_steps": 100_000})
    folder, port = tmp_path / "early", free_port()
    node = {
        "workers": 1, "nodes": "1:2", "endpoint": f"127.0.0.1:{port}", "hosts": False,
        "module": "trainer.elastic.agent",
        "MCF_COLLECTIVE_TIMEOUT_SECONDS": "300",
    }  # fmt: skip
    with rendezvous(port), torchrun(run, folder, **node) as one:
        wait_until(lambda: newest_copy(folder, run) > 0, one, folder / "log")
        with torchrun(run, folder, **node) as other:
            lost = psutil.Process(other.pid)
            wait_until(lambda: bool(workers_of(other)), other, folder / "log")
            for process in [lost, *lost.children(recursive=True)]:
                with contextlib.suppress(psutil.NoSuchProcess):  # libraries start others for a moment while they load
                    process.suspend()
            wait_until(lambda: world_sizes(folder) == [1, 1], one, folder / "log")
            # Torch waits for the one that has gone where no handler runs, and an agent for its worker for 30 s.
            assert "Unable to shutdown" not in (folder / "log").read_text()
            reached = newest_copy(folder, run)
            wait_until(lambda: newest_copy(folder, run) > reached, one, folder / "log")


def test_an_agents_workers_are_forked_from_a_process_that_has_loaded_what_they_need(
    tiny_faces: Path, tmp_path: Path
) -> None:
    folder, port = tmp_path / "forked", free_port()
    node = {"workers": 2, "endpoint": f"127.0.0.1:{port}", "hosts": False, "module": "trainer.elastic.agent"}
    with rendezvous(port), torchrun(small(tiny_faces), folder, **node) as agent:
        wait_until(lambda: len(workers_of(agent)) == 2, agent, folder / "log")
        [loaded] = {worker.parent() for worker in workers_of(agent)}
        assert loaded
        assert loaded.pid != agent.pid
        # What trainer.main imports, and not torch alone.
        assert any("pydantic_core" in each.path for each in loaded.memory_maps())
        # A fork has no thread but one: what the others hold would never be let go.
        assert loaded.num_threads() == 1
        assert agent.wait(120) == 0, (folder / "log").read_text()[-3000:]


def test_no_worker_ends_before_the_run_has(tiny_faces: Path, tmp_path: Path) -> None:
    # On a cluster a node that ends well ends the attempt. Here rank 0 has to wait, for an MLflow that is away.
    folder = tmp_path / "together"
    store = DirectoryStore(str(folder))
    away = {"MLFLOW_TRACKING_URI": f"http://127.0.0.1:{free_port()}", "MLFLOW_RUN_ID": "0" * 32}
    with torchrun(small(tiny_faces), folder, **away) as agent:
        wait_until(lambda: [each.stage for each in read_sessions(store)] == ["evaluating"], agent, folder / "log")
        [other] = [worker for worker in workers_of(agent) if worker.environ()["RANK"] == "1"]
        with pytest.raises(psutil.TimeoutExpired):
            other.wait(10)
        assert read_outcome(store) is None


def group_rank(agent: "subprocess.Popen[bytes]") -> str:
    """Which node of its group an agent is now."""
    [worker] = workers_of(agent)
    return worker.environ()["GROUP_RANK"]


# ---------------------------------------------------------------- errors of the run itself


@pytest.mark.parametrize("module", ["torch.distributed.run", "trainer.elastic.agent"])
def test_a_loss_that_is_not_finite_fails_the_run_for_good_and_keeps_the_last_checkpoint(
    tiny_faces: Path, tmp_path: Path, module: str
) -> None:
    schedule = {"unit": "steps", "length": 9, "warmup": 4}
    run = small(tiny_faces, optimizer={"base_lr": 1e38}, schedule=schedule, cadence={"checkpoint_steps": 1})
    folder, port = tmp_path / "nan", free_port()
    node = {"endpoint": f"127.0.0.1:{port}", "hosts": False, "module": module}
    with rendezvous(port), torchrun(run, folder, **node) as agent:
        assert agent.wait(120) != 0
    # The agent has been told to end, and has not started workers that would meet the same error.
    assert "has failed already" not in (folder / "log").read_text()
    outcome = read_outcome(DirectoryStore(str(folder)))
    assert outcome is not None
    assert (outcome.verdict, outcome.kind) == (Verdict.FAILED, "NonFiniteLoss")
    assert f"step {outcome.step}: losses" in outcome.reason
    first = outcome.step * 64
    assert f"Images at positions {first} to {first + 15}" in outcome.reason
    assert len(read_sessions(DirectoryStore(str(folder)))) == 1


def test_a_run_fails_for_want_of_memory_the_second_time_and_not_the_first(tiny_faces: Path, tmp_path: Path) -> None:
    store = DirectoryStore(str(tmp_path / "run"))
    limit = "import resource, runpy; resource.setrlimit(resource.RLIMIT_DATA, (3 << 30,) * 2); "
    starve = [sys.executable, "-c", limit + "runpy.run_module('trainer.main', run_name='__main__')"]
    # The activations of such a slice alone are larger than that.
    batch = {"slice": 8192, "contrastive_group": 8192, "global_batch": 8192}
    run = small(tiny_faces, batch=batch, input_size=64)
    assert train_alone(run, tmp_path / "run", starve).returncode == 1
    assert read_outcome(store) is None
    note = read_memory_note(store)
    assert note is not None
    store.put(OUT_OF_MEMORY, note.model_copy(update={"at": note.at - timedelta(hours=1)}).model_dump_json().encode())
    assert train_alone(run, tmp_path / "run", starve).returncode == 1
    outcome = read_outcome(store)
    assert outcome is not None
    assert (outcome.verdict, outcome.kind) == (Verdict.FAILED, "OutOfMemory")
    assert "lower batch.slice" in outcome.reason


def test_a_missing_teacher_fails_the_run_without_a_step(tiny_faces: Path, tmp_path: Path) -> None:
    run = small(tiny_faces, teacher={"source": str(tmp_path / "gone.pt")})
    assert train_alone(run, tmp_path / "run").returncode == 1
    outcome = read_outcome(DirectoryStore(str(tmp_path / "run")))
    assert outcome is not None
    assert (outcome.kind, outcome.step) == ("TeacherError", 0)
    assert "gone.pt" in outcome.reason


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


def test_networks_may_be_compiled_and_features_kept_and_the_losses_stay(tiny_faces: Path, tmp_path: Path) -> None:
    if shutil.which("c++") is None:
        pytest.skip("needs a C++ compiler, with which torch.compile builds its kernels on a CPU")
    run = small(
        tiny_faces, schedule={"unit": "steps", "length": 3, "warmup": 1}, precision="float64",
        encoder={"width": 48, "depth": 1, "heads": 3, "patch": 8},
        teacher={"source": "random", "arch": "as-encoder", "taps": [0]},
    )  # fmt: skip
    losses = []
    for name, env in ("plain", {}), ("quick", {"MCF_COMPILE": "1", "MCF_TEACHER_CACHE_GIB": "1"}):
        done = train_alone(run, tmp_path / name, **env)
        assert done.returncode == 0, done.stderr
        result = read_result(DirectoryStore(str(tmp_path / name)))
        assert result is not None
        losses.append(result.losses)
    assert losses[1] == pytest.approx(losses[0], rel=1e-9)
