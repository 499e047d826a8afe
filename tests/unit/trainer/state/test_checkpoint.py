"""A checkpoint is complete or absent, and the newest sound one is found again."""

import fcntl
import logging
import os
import resource
import tempfile
from pathlib import Path

import pytest
import torch

from trainer.contract import records
from trainer.contract.records import Checkpoint
from trainer.state.checkpoint import CheckpointStore, OtherRun, write_state
from trainer.store.objects import DirectoryStore, StorageError

DIGEST = "a" * 64


class Flaky(DirectoryStore):
    """A directory that fails on names ending in `broken`."""

    broken = "nothing"

    def put(self, name: str, data: bytes) -> None:
        self._fail(name)
        super().put(name, data)

    def put_file(self, name: str, path: Path) -> None:
        self._fail(name)
        super().put_file(name, path)

    def _fail(self, name: str) -> None:
        if name.endswith(self.broken):
            raise StorageError(f"no room for {name}")


@pytest.fixture
def store(tmp_path: Path) -> Flaky:
    return Flaky(str(tmp_path))


def checkpoints(store: Flaky, keep: int = 2) -> CheckpointStore:
    """As a new process finds them."""
    return CheckpointStore(store, spec_digest=DIGEST, keep=keep)


def state(step: int) -> dict[str, object]:
    return {"model": {"w": torch.full((3,), float(step))}, "step": step, "log": {"rows": [(1, 2, {"a": 1.0})]}}


def save(saving: CheckpointStore, step: int, state: dict[str, object], world_size: int) -> Checkpoint:
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch, "state.pt")
        checkpoint = write_state(state, path, step=step, spec_digest=DIGEST, world_size=world_size)
        saving.upload(checkpoint, path)
    return checkpoint


def damage(store: Flaky, step: int) -> None:
    path = store.root / records.checkpoint_name(step) / records.STATE
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def test_the_newest_state_comes_back_and_only_the_newest_are_kept(store: Flaky) -> None:
    saving = checkpoints(store)
    for step in 20, 40, 60:
        save(saving, step, state(step), world_size=2)
    restored = checkpoints(store).restore_latest()
    assert restored is not None
    checkpoint, found = restored
    assert (checkpoint.step, checkpoint.world_size, found["log"]) == (60, 2, state(60)["log"])
    torch.testing.assert_close(found["model"]["w"], torch.full((3,), 60.0))
    assert [c.step for c in saving.list()] == [40, 60]
    assert sorted(path.name for path in (store.root / "checkpoints").iterdir()) == ["000000040", "000000060"]


def test_a_damaged_newest_checkpoint_falls_back_to_the_one_before(
    store: Flaky, caplog: pytest.LogCaptureFixture
) -> None:
    saving = checkpoints(store)
    for step in 20, 40:
        save(saving, step, state(step), world_size=1)
    damage(store, 40)
    resumed = checkpoints(store)
    restored = resumed.restore_latest()
    assert restored is not None
    assert restored[0].step == 20
    assert "step 40 is damaged" in caplog.text
    save(resumed, 40, state(40), world_size=1)
    restored = checkpoints(store).restore_latest()
    assert restored is not None
    assert restored[0].step == 40


@pytest.mark.parametrize("broken", [records.STATE, records.COMMITTED])
def test_a_save_that_dies_is_no_checkpoint_and_leaves_nothing_for_long(store: Flaky, broken: str) -> None:
    saving = checkpoints(store)
    save(saving, 20, state(20), world_size=1)
    store.broken = broken
    with pytest.raises(StorageError, match="no room"):
        save(saving, 40, state(40), world_size=1)
    restored = checkpoints(store).restore_latest()
    assert restored is not None
    assert restored[0].step == 20
    store.broken = "nothing"
    (store.root / "checkpoints" / "000000040" / ".aside-killed").parent.mkdir(exist_ok=True)
    (store.root / "checkpoints" / "000000040" / ".aside-killed").write_bytes(b"half")
    save(checkpoints(store), 60, state(60), world_size=1)
    left = sorted(path.parent.name for path in store.root.rglob("*") if path.is_file())
    assert left == ["000000020", "000000020", "000000060", "000000060"]


def test_a_sound_checkpoint_is_not_taken_apart_to_be_written_again(store: Flaky) -> None:
    save(checkpoints(store), 20, state(20), world_size=1)
    resumed = checkpoints(store)
    resumed.restore_latest()
    store.broken = records.COMMITTED
    save(resumed, 20, state(20), world_size=1)
    assert [c.step for c in resumed.list()] == [20]


def test_a_checkpoint_of_another_spec_is_refused(store: Flaky) -> None:
    save(checkpoints(store), 20, state(20), world_size=1)
    with pytest.raises(OtherRun, match="give it a run directory of its own"):
        CheckpointStore(store, spec_digest="b" * 64, keep=2).restore_latest()


def test_code_in_a_state_is_not_run(store: Flaky) -> None:
    class Evil:
        def __reduce__(self) -> tuple[object, ...]:
            return (logging.warning, ("run",))

    save(checkpoints(store), 20, {"model": Evil()}, world_size=1)
    with pytest.raises(Exception, match="Weights only load failed"):
        checkpoints(store).restore_latest()


def test_a_disk_without_room_is_a_storage_error(tmp_path: Path) -> None:
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limit[1]))
    try:
        with pytest.raises(StorageError, match="could not be written"):
            write_state({"w": torch.zeros(10_000)}, tmp_path / "state", step=20, spec_digest=DIGEST, world_size=1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)


def test_scratch_space_of_a_killed_process_is_swept_and_that_of_a_living_one_is_not(
    store: Flaky, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    living, dead = tmp_path / "mcf-checkpoint-living", tmp_path / "mcf-checkpoint-dead"
    for folder in living, dead:
        folder.mkdir()
        (folder / "state.pt").write_bytes(b"half")
        os.utime(folder, (0, 0))
    handle = os.open(living, os.O_RDONLY)
    fcntl.flock(handle, fcntl.LOCK_EX)
    checkpoints(store).restore_latest()
    os.close(handle)
    assert living.exists()
    assert not dead.exists()
