"""Checkpoints of a run: complete or absent, newest sound one first.

A state is written to a local file, digested, uploaded under a name of its own, and exists only once its
marker (records.Checkpoint) stands beside it. Whatever dies in between leaves a state without a marker,
which nobody reads and the next save removes.
"""

import fcntl
import hashlib
import logging
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from trainer.contract import records
from trainer.contract.records import Checkpoint
from trainer.store import rundir
from trainer.store.objects import ObjectMissing, StorageError, Store

logger = logging.getLogger(__name__)

SCRATCH = "mcf-checkpoint-"


class OtherRun(Exception):
    """The run directory holds checkpoints of another spec."""


class CheckpointStore:
    """The checkpoints in one run's directory. One process, rank 0, writes; anybody may list."""

    def __init__(
        self, store: Store, *, spec_digest: str, keep: int, is_same: Callable[[], bool] = lambda: False
    ) -> None:
        """`spec_digest`: of what decides the state. `is_same`: whether a state whose marker says another one is
        of the same all the same: a release before had other digests."""
        self.store = store
        self.spec_digest = spec_digest
        self.keep = keep
        self._is_same = is_same
        self._known_good: dict[int, Checkpoint] = {}
        self._known_damaged: set[int] = set()

    def list(self) -> "list[Checkpoint]":
        """Complete checkpoints, oldest first, whether their state is sound or not. Raises StorageError."""
        return rundir.list_checkpoints(self.store)

    def upload(self, checkpoint: Checkpoint, path: Path) -> None:
        """Add a state that `write_state` has written to `path`, and drop all but the newest `keep`.

        A step this process has saved or restored is not written again: training is deterministic, so it would be the
        same state, and a sound checkpoint is never taken apart to be replaced.

        Raises StorageError when the state could not be written; checkpoints from before are then still there.
        """
        step = checkpoint.step
        if step in self._known_good:
            return
        folder = records.checkpoint_name(step)
        # A damaged checkpoint of this step stops being one before its state is replaced.
        self.store.delete([folder + records.COMMITTED])
        self.store.put_file(folder + records.STATE, path)
        self.store.put(folder + records.COMMITTED, checkpoint.model_dump_json(indent=1).encode())
        self._known_damaged.discard(step)
        self._known_good[step] = checkpoint
        self._prune()

    def save(self, state: dict[str, Any], *, step: int, world_size: int) -> None:
        """`upload` of a state that is in no file yet. Raises StorageError."""
        with _scratch() as path:
            self.upload(write_state(state, path, step=step, spec_digest=self.spec_digest, world_size=world_size), path)

    def adopt(self, checkpoint: Checkpoint) -> None:
        """That state is safe in another run's directory: it need not be written here as well."""
        self._known_good[checkpoint.step] = checkpoint

    def discard(self) -> None:
        """Remove all of them: what they were for has ended. Raises StorageError."""
        names = [entry.name for entry in self.store.list(records.CHECKPOINTS)]
        self.store.delete(sorted(names, key=lambda name: not name.endswith(records.COMMITTED)))

    def restore_latest(
        self, map_location: Any = "cpu", newer_than: int = -1
    ) -> tuple[Checkpoint, dict[str, Any]] | None:
        """The newest checkpoint whose state is what its marker says, and that state.

        None when there is none of a step after `newer_than`. Raises OtherRun when a checkpoint belongs to another
        spec, StorageError when the store cannot be read.
        """
        with _scratch() as path:
            for checkpoint in reversed(self.list()):
                if checkpoint.step <= newer_than:
                    return None
                if checkpoint.spec_digest != self.spec_digest and not self._is_same():
                    raise OtherRun(
                        f"{self.store.uri} holds a checkpoint of spec {checkpoint.spec_digest[:12]}, this run is "
                        f"{self.spec_digest[:12]}; give it a run directory of its own (MCF_RUN_URI)"
                    )
                if damage := self._fetch(checkpoint, path):
                    self._known_damaged.add(checkpoint.step)
                    logger.warning(
                        "checkpoint of step %d is damaged, using the one before: %s", checkpoint.step, damage
                    )
                    continue
                self._known_good[checkpoint.step] = checkpoint
                return checkpoint, read_state(path, map_location)
        return None

    def _fetch(self, checkpoint: Checkpoint, path: Path) -> str:
        """Copy a state to `path`; says what is wrong with it, nothing when it is sound."""
        name = records.checkpoint_name(checkpoint.step) + records.STATE
        try:
            self.store.get_file(name, path)
        except ObjectMissing as error:
            return str(error)
        found = _sha256(path)
        return "" if found == checkpoint.sha256 else f"{name} has sha256 {found}, its marker says {checkpoint.sha256}"

    def _prune(self) -> None:
        """Remove old and damaged checkpoints, and states that an aborted save left without a marker."""
        try:
            sound = [c.step for c in self.list() if c.step not in self._known_damaged]
            kept = {records.checkpoint_name(step) for step in sound[-self.keep :]}
            stale = [e.name for e in self.store.list(records.CHECKPOINTS) if not e.name.startswith(tuple(kept))]
            # Markers first: a checkpoint that is half removed is none.
            self.store.delete(sorted(stale, key=lambda name: not name.endswith(records.COMMITTED)))
            self.store.discard_unfinished(records.CHECKPOINTS)
        except StorageError as error:
            # Costs space and nothing else; the next save tries again.
            logger.warning("old checkpoints could not be removed: %s", error)


@contextmanager
def _scratch() -> Iterator[Path]:
    """Where one state is put together locally; a disk that fails is a StorageError like any other."""
    _sweep()
    try:
        with tempfile.TemporaryDirectory(prefix=SCRATCH) as folder, _locked(folder):
            yield Path(folder, records.STATE)
    except OSError as error:
        raise StorageError(f"local scratch space for a checkpoint: {error}") from error


def _sweep() -> None:
    """Remove what killed processes left in the scratch space: gigabytes, and nobody else would."""
    for folder in Path(tempfile.gettempdir()).glob(f"{SCRATCH}*"):
        with suppress(OSError):  # in use, another user's, or gone
            # A folder is locked a moment after it is made.
            if time.time() - folder.stat().st_mtime > 60:
                with _locked(folder):
                    shutil.rmtree(folder)


@contextmanager
def _locked(folder: str | Path) -> Iterator[None]:
    """Hold the folder for the life of this process at most. Raises OSError when another one holds it."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(handle)


def write_state(
    state: dict[str, Any], path: Path, *, step: int, spec_digest: str, world_size: int
) -> Checkpoint:  # fmt: skip
    """Write a state to a local file; returns what its marker will say. Raises StorageError when the disk is full."""
    # The digest below does what torch's own checksum would do, and that one holds the interpreter for seconds.
    torch.serialization.set_crc32_options(False)
    try:
        torch.save(state, path)
    except RuntimeError as error:  # torch's word for a full disk
        raise StorageError(f"the state could not be written to {path}: {error}") from error
    return Checkpoint(
        step=step, sha256=_sha256(path), bytes=path.stat().st_size, spec_digest=spec_digest, world_size=world_size,
        saved_at=datetime.now(UTC),
    )  # fmt: skip


def is_sound(checkpoint: Checkpoint, path: Path) -> bool:
    """Whether a local file is what its marker says."""
    return path.is_file() and _sha256(path) == checkpoint.sha256


def read_state(path: Path, map_location: Any = "cpu") -> dict[str, Any]:
    """The state in a local file, mapped and not read where it stays on the CPU; no code in it is run."""
    state: dict[str, Any] = torch.load(path, map_location=map_location, weights_only=True, mmap=map_location == "cpu")
    return state


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
