"""The state leaves the training loop at the price of one copy, and is safe in memory, then in the store."""

import logging
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from trainer.elastic.distributed import World
from trainer.state import hostcopy, keeper
from trainer.state.checkpoint import CheckpointStore
from trainer.state.hostcopy import HostCopy
from trainer.state.keeper import Keeper
from trainer.store.objects import DirectoryStore, StorageError

DIGEST = "a" * 64
ALONE = World(rank=0, size=1, device=torch.device("cpu"))


class Gate(DirectoryStore):
    """A directory whose uploads wait at a gate, and fail as long as `failures` says."""

    def __init__(self, uri: str) -> None:
        super().__init__(uri)
        self.opened = threading.Event()
        self.opened.set()
        self.failures = 0

    def put_file(self, name: str, path: Path) -> None:
        self.opened.wait(30)
        if self.failures:
            self.failures -= 1
            raise StorageError("503")
        super().put_file(name, path)


MADE: list[tuple[Gate, Keeper]] = []


@pytest.fixture(autouse=True)
def memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Stands for /dev/shm until the keepers of the test have ended, whose threads would write to the real one."""
    folder = tmp_path / "memory"
    folder.mkdir()
    monkeypatch.setattr(hostcopy, "MEMORY", folder)
    monkeypatch.setattr(hostcopy, "MARGIN_BYTES", 0)
    monkeypatch.setattr(keeper, "REFRESH_SECONDS", 0.0)
    monkeypatch.setattr(keeper, "MAX_SHARE", 1e9)
    yield folder
    while MADE:
        gate, made = MADE.pop()
        gate.opened.set()
        made.close(completed=False)


@pytest.fixture
def store(tmp_path: Path) -> Gate:
    return Gate(str(tmp_path / "run"))


def checkpoints(store: Gate) -> CheckpointStore:
    return CheckpointStore(store, spec_digest=DIGEST, keep=9)


def keeper_of(store: Gate, every_steps: int = 2) -> Keeper:
    made = Keeper(ALONE, HostCopy(store.uri, DIGEST), checkpoints(store), every_steps, step=0)
    MADE.append((store, made))
    return made


def state(weights: torch.Tensor, step: int) -> dict[str, Any]:
    return {"model": {"w": weights}, "step": step, "report": {"rows": [(1, {"a": 0.5})]}}


def run_steps(mine: Keeper, weights: torch.Tensor, steps: range) -> None:
    """As the loop does: weights change in place, step by step."""
    for step in steps:
        weights.fill_(step)
        if mine.due(step):
            mine.keep(step, state(weights, step))


def wait_for(condition: Any) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_a_copy_holds_the_state_of_its_step_however_the_weights_go_on(store: Gate) -> None:
    mine, weights = keeper_of(store), torch.zeros(100_000)
    run_steps(mine, weights, range(1, 2))
    weights.fill_(-1)
    wait_for(lambda: mine.host.newest())
    checkpoint, found = HostCopy(store.uri, DIGEST).newest() or pytest.fail("no copy")
    assert (checkpoint.step, found["step"], found["report"]) == (1, 1, {"rows": [(1, {"a": 0.5})]})
    assert bool((found["model"]["w"] == 1).all())
    mine.close(completed=False)
    assert HostCopy(store.uri, DIGEST).newest() is None


def test_the_copy_of_another_node_than_the_first_stays_when_the_run_is_stopped(store: Gate) -> None:
    second = World(rank=1, size=2, device=torch.device("cpu"))
    mine = Keeper(second, HostCopy(store.uri, DIGEST), checkpoints(store), 2, step=0)
    mine.keep(1, state(torch.ones(3), 1))
    mine.close(completed=False)
    checkpoint, _ = HostCopy(store.uri, DIGEST).newest() or pytest.fail("no copy")
    assert checkpoint.step == 1


def test_a_copy_belongs_to_one_run_and_one_agent(store: Gate, monkeypatch: pytest.MonkeyPatch) -> None:
    HostCopy(store.uri, DIGEST).write(state(torch.ones(3), 1), 1, 1)
    assert HostCopy(store.uri, DIGEST).newest()
    assert HostCopy(store.uri, "b" * 64).newest() is None
    assert HostCopy("elsewhere", DIGEST).newest() is None
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "x")  # now the parent is the agent
    assert HostCopy(store.uri, DIGEST).newest() is None


def test_a_damaged_copy_is_not_used(store: Gate, caplog: pytest.LogCaptureFixture) -> None:
    _, path = HostCopy(store.uri, DIGEST).write(state(torch.ones(3), 1), 1, 1)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    assert HostCopy(store.uri, DIGEST).newest() is None
    assert "damaged" in caplog.text


def test_what_a_killed_agent_left_in_memory_is_removed_and_a_living_ones_is_not(store: Gate, memory: Path) -> None:
    code = f"""
import torch; from pathlib import Path
from trainer.state import hostcopy
hostcopy.MEMORY, hostcopy.MARGIN_BYTES = Path({str(memory)!r}), 0
hostcopy.HostCopy("run", "{DIGEST}").write({{"w": torch.ones(3)}}, 1, 1)
"""
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).resolve().parents[4])
    HostCopy(store.uri, DIGEST).write(state(torch.ones(3), 1), 1, 1)
    assert len(list(memory.iterdir())) == 1  # the second one swept the first
    HostCopy("another run", DIGEST)
    assert len(list(memory.iterdir())) == 1


def test_without_room_in_memory_the_copy_is_on_disk(
    store: Gate, memory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(hostcopy, "MARGIN_BYTES", 1 << 60)
    (tmp_path / "disk").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "disk"))
    HostCopy(store.uri, DIGEST).write(state(torch.ones(3), 1), 1, 1)
    assert not list(memory.iterdir())
    assert "has no room" in caplog.text
    assert HostCopy(store.uri, DIGEST).newest()


def test_training_does_not_wait_for_an_upload_and_the_next_checkpoint_waits_its_turn(store: Gate) -> None:
    mine, weights = keeper_of(store), torch.zeros(1000)
    store.opened.clear()
    for step in range(1, 10):
        wait_for(lambda: not keeper._busy(mine._writing))
        run_steps(mine, weights, range(step, step + 1))
    wait_for(lambda: (found := mine.host.newest()) and found[0].step == 9)  # copies go on
    assert not checkpoints(store).list()
    store.opened.set()
    wait_for(lambda: not keeper._busy(mine._uploading))
    assert [c.step for c in checkpoints(store).list()] == [2]
    run_steps(mine, weights, range(11, 12))  # the one that was due at 4 is made up for
    weights.fill_(12)
    mine.finish(12, state(weights, 12))
    assert [c.step for c in checkpoints(store).list()] == [2, 11, 12]
    checkpoint, found = checkpoints(store).restore_latest() or pytest.fail("no checkpoint")
    assert bool((found["model"]["w"] == checkpoint.step).all())


def test_the_end_waits_for_a_checkpoint_whose_upload_has_only_just_begun(
    store: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine, weights = keeper_of(store), torch.zeros(1000)
    write, begun = mine.host.write, threading.Event()

    def slow_write(*what: Any) -> Any:
        begun.set()
        time.sleep(0.2)
        return write(*what)

    monkeypatch.setattr(mine.host, "write", slow_write)
    put, order = store.put_file, []

    def slow_put(name: str, path: Path) -> None:
        time.sleep(0.5 if "02" in name else 0)
        put(name, path)
        order.append(name)

    monkeypatch.setattr(store, "put_file", slow_put)
    run_steps(mine, weights, range(2, 3))
    assert begun.wait(5)
    mine.finish(3, state(weights, 3))
    assert [name.split("/")[1] for name in order] == ["000000002", "000000003"], order


def test_the_last_state_is_in_memory_before_an_upload_is_waited_for(store: Gate) -> None:
    mine, weights = keeper_of(store), torch.zeros(1000)
    store.opened.clear()
    run_steps(mine, weights, range(2, 3))
    ending = threading.Thread(target=lambda: mine.finish(3, state(weights, 3)))
    ending.start()
    wait_for(lambda: (found := mine.host.newest()) and found[0].step == 3)
    assert not checkpoints(store).list()
    store.opened.set()
    ending.join()
    assert [c.step for c in checkpoints(store).list()] == [2, 3]


def test_a_store_that_fails_for_a_while_costs_no_checkpoint(store: Gate, caplog: pytest.LogCaptureFixture) -> None:
    mine, weights = keeper_of(store), torch.zeros(1000)
    store.failures = 2
    run_steps(mine, weights, range(2, 3))
    wait_for(lambda: checkpoints(store).list())
    assert caplog.text.count("is not saved yet") == 2
    store.failures = 1
    mine.finish(3, state(weights, 3))
    assert [c.step for c in checkpoints(store).list()] == [2, 3]


def test_a_state_that_cannot_be_kept_costs_a_warning_and_at_the_end_the_run(
    store: Gate, memory: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine, weights = keeper_of(store), torch.zeros(1000)
    monkeypatch.setattr(keeper, "PATIENCE_SECONDS", 0.0)
    store.failures = 99
    with caplog.at_level(logging.WARNING):
        run_steps(mine, weights, range(2, 3))
        wait_for(lambda: "no checkpoint at step 2, training goes on" in caplog.text)
    with pytest.raises(StorageError):
        mine.finish(3, state(weights, 3))


def test_a_worker_that_was_killed_while_it_uploaded_leaves_nothing_and_costs_no_checkpoint(
    store: Gate, memory: Path
) -> None:
    # Its agent lives on, and with it the folder; what it was doing is left in it.
    _, path = HostCopy(store.uri, DIGEST).write(state(torch.ones(3), 2), 2, 1)
    HostCopy(store.uri, DIGEST).kept_aside(path)
    (path.parent / "aside").write_bytes(b"half a state")
    mine, weights = keeper_of(store), torch.zeros(1000)
    assert sorted(file.suffix for file in path.parent.iterdir()) == [".json", ".pt"]
    run_steps(mine, weights, range(2, 3))
    wait_for(lambda: [c.step for c in checkpoints(store).list()] == [2])


def test_a_checkpoint_that_came_to_nothing_is_made_up_for_with_the_next_copy(
    store: Gate, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(keeper, "PATIENCE_SECONDS", 0.0)
    mine, weights = keeper_of(store, every_steps=1000), torch.zeros(1000)
    store.failures = 1
    run_steps(mine, weights, range(1000, 1001))
    wait_for(lambda: "no checkpoint at step 1000" in caplog.text)
    wait_for(lambda: not keeper._busy(mine._uploading) and not keeper._busy(mine._writing))
    mine._next_copy = time.monotonic() + 1000
    assert not mine.due(1001), "not a copy every step"
    mine._next_copy = 0
    run_steps(mine, weights, range(1002, 1003))
    wait_for(lambda: [c.step for c in checkpoints(store).list()] == [1002])
    wait_for(lambda: not keeper._busy(mine._uploading))
    assert not mine._tried
    assert not mine._checkpoint_due(1999)


def test_memory_that_fills_up_later_costs_neither_copies_nor_checkpoints(
    store: Gate, memory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "disk").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "disk"))
    mine, weights = keeper_of(store), torch.zeros(1000)
    run_steps(mine, weights, range(1, 2))
    wait_for(lambda: mine.host.newest())
    write_state = hostcopy.write_state

    def full(whole: Any, path: Path, **of: Any) -> Any:
        if path.is_relative_to(memory):
            raise StorageError("no space left")
        return write_state(whole, path, **of)

    monkeypatch.setattr(hostcopy, "write_state", full)
    run_steps(mine, weights, range(2, 3))
    wait_for(lambda: [c.step for c in checkpoints(store).list()] == [2])
    assert "takes no state any more, it is kept in" in caplog.text
    assert not list(memory.rglob("*.pt")), "what it held is worth nothing any more"
    mine.finish(3, state(weights, 3))
    assert [c.step for c in checkpoints(store).list()] == [2, 3]


def test_copying_takes_five_percent_of_the_time_at_most(store: Gate, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keeper, "MAX_SHARE", 0.05)
    mine = keeper_of(store, every_steps=10**9)
    copy = mine._staging.copy

    def slow_copy(whole: dict[str, Any]) -> Any:
        time.sleep(0.05)
        return copy(whole)

    monkeypatch.setattr(mine._staging, "copy", slow_copy)
    run_steps(mine, torch.zeros(10), range(1, 2))
    assert mine._next_copy - time.monotonic() > 0.9


def test_the_folder_is_nobody_elses(store: Gate) -> None:
    _, path = HostCopy(store.uri, DIGEST).write(state(torch.ones(3), 1), 1, 1)
    assert os.stat(path.parent).st_mode & 0o077 == 0


def test_copies_come_so_seldom_that_writing_them_takes_a_twentieth_of_the_time(
    store: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keeper, "MAX_SHARE", 0.05)
    mine = keeper_of(store, every_steps=10**9)
    write = mine.host.write

    def slow_write(*what: Any) -> Any:
        time.sleep(0.2)
        return write(*what)

    monkeypatch.setattr(mine.host, "write", slow_write)
    run_steps(mine, torch.zeros(10), range(1, 2))
    wait_for(lambda: not keeper._busy(mine._writing))
    assert mine._next_copy - time.monotonic() > 2.0
