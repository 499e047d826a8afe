"""Whatever happens to a run, it ends with the parameters of one that was left alone, bit for bit in float64."""

import os
import random
import signal
import time
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import torch

from tests.conftest import s3_environment
from tests.integration.faults import Gateway, fill, small_disk
from tests.integration.torchruns import (
    final_state,
    small,
    state_in,
    torchrun,
    wait_for_checkpoint,
    wait_until,
    workers_of,
)
from trainer.contract import RunSpec
from trainer.contract.records import STATE, Verdict, checkpoint_name
from trainer.store.objects import DirectoryStore, open_store
from trainer.store.rundir import list_checkpoints, read_outcome, read_sessions

LENGTH = 100
KILLS = ("worker", "agent", "worker", "agent")
# By hand for longer: an object store that is away for a minute.
AWAY_SECONDS = float(os.environ.get("MCF_TEST_AWAY_SECONDS", "8"))


@pytest.fixture(scope="module")
def run(tiny_faces: Path) -> RunSpec:
    schedule = {"unit": "steps", "length": LENGTH, "warmup": 4}
    cadence = {"checkpoint_steps": 10, "keep_checkpoints": 3, "log_steps": 10, "picture_steps": 1000}
    return small(tiny_faces, precision="float64", schedule=schedule, cadence=cadence)


@pytest.fixture(scope="module")
def undisturbed(run: RunSpec, tmp_path_factory: pytest.TempPathFactory) -> dict[str, torch.Tensor]:
    folder = tmp_path_factory.mktemp("runs") / "undisturbed"
    with torchrun(run, folder) as agent:
        assert agent.wait(200) == 0, (folder / "log").read_text()[-3000:]
    return final_state(folder, LENGTH)


def assert_equal(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    assert [name for name, value in expected.items() if not torch.equal(value, found[name])] == []


@pytest.mark.slow
def test_any_process_may_be_killed_at_any_moment(
    run: RunSpec, undisturbed: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    folder, chance, made = tmp_path / "run", random.Random(20261124), 0
    store, log = DirectoryStore(str(folder)), folder / "log"
    kills = iter(KILLS)
    kind = next(kills)
    while kind and read_outcome(store) is None:  # a fast machine may be done before the last one
        with torchrun(run, folder) as agent:
            while kind and agent.poll() is None:
                sessions = len(read_sessions(store))
                # Before the first step, in the middle of one, while the state is being written: whatever it meets.
                time.sleep(chance.uniform(0.0, 2.0))
                if kind == "agent":
                    kind = next(kills, None)
                    agent.kill()
                    agent.wait()
                    made += 1
                elif workers := workers_of(agent):
                    kind = next(kills, None)
                    chance.choice(workers).kill()
                    made += 1
                    while agent.poll() is None and len(read_sessions(store)) <= sessions:
                        time.sleep(0.01)
    with torchrun(run, folder) as agent:
        assert agent.wait(200) == 0, log.read_text()[-3000:]
    assert made >= 2, "the run was over before a worker and an agent were killed; give it more steps"
    assert_equal(final_state(folder, LENGTH), undisturbed)


def test_a_checkpoint_that_was_cut_in_half_is_passed_over(
    run: RunSpec, undisturbed: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    with torchrun(run, folder) as agent:
        wait_for_checkpoint(folder, 20, agent, folder / "log")
        agent.send_signal(signal.SIGTERM)
        agent.wait(60)
    before, newest = list_checkpoints(DirectoryStore(str(folder)))[-2:]
    state = folder / checkpoint_name(newest.step) / STATE
    os.truncate(state, state.stat().st_size // 2)
    with torchrun(run, folder) as agent:
        assert agent.wait(200) == 0, (folder / "log").read_text()[-3000:]
    assert f"resumed from step {before.step}, from a checkpoint" in (folder / "log").read_text()
    assert_equal(final_state(folder, LENGTH), undisturbed)


def test_a_full_disk_costs_checkpoints_and_nothing_else(
    run: RunSpec, undisturbed: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    log = tmp_path / "run/log"
    with small_disk(tmp_path / "disk", mebibytes=64) as disk:
        with torchrun(run, log.parent, MCF_RUN_URI=str(disk / "run")) as agent:
            wait_for_checkpoint(disk / "run", 20, agent, log)
            filler = fill(disk)
            wait_until(lambda: "is not saved yet" in log.read_text(), agent, log)
            filler.unlink()
            assert agent.wait(200) == 0, log.read_text()[-3000:]
        assert "No space left on device" in log.read_text()
        assert_equal(final_state(disk / "run", LENGTH), undisturbed)


def test_an_object_store_that_is_away_for_a_while_stops_nothing(
    run: RunSpec, undisturbed: dict[str, torch.Tensor], s3_server: str, tmp_path: Path
) -> None:
    gateway = Gateway(urlsplit(os.environ["AWS_ENDPOINT_URL"]).port or 0)
    folder, store = tmp_path / "run", open_store(f"{s3_server}/run")
    with torchrun(run, folder, **{**s3_environment(gateway.url), "MCF_RUN_URI": store.uri}) as agent:
        wait_until(lambda: len(list_checkpoints(store)) >= 2, agent, folder / "log")
        gateway.close()
        workers_of(agent)[-1].kill()
        time.sleep(AWAY_SECONDS)
        assert gateway.refused > 0
        assert agent.poll() is None
        gateway.closed = False
        assert agent.wait(200) == 0, (folder / "log").read_text()[-3000:]
    outcome = read_outcome(store)
    assert outcome is not None
    assert outcome.verdict == Verdict.SUCCEEDED
    store.get_file(f"{checkpoint_name(LENGTH)}{STATE}", tmp_path / "state.pt")
    assert_equal(state_in(tmp_path / "state.pt"), undisturbed)
