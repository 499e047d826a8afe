"""The newest state of a run in this machine's memory: for the workers that go on after one of them was lost.

One folder per torchrun agent, which outlives its workers, in /dev/shm (on the local disk where that has no room):
`<step>.pt` and, written last, `<step>.json`, its marker. For a small encoder it is seconds old, where a checkpoint may
be hours old.
"""

import logging
import os
import shutil
import tempfile
from contextlib import suppress
from hashlib import sha256
from pathlib import Path
from typing import Any

import psutil
from pydantic import ValidationError

from trainer.contract.records import Checkpoint
from trainer.elastic.stop import agent_pid
from trainer.state.checkpoint import is_sound, read_state, write_state
from trainer.store.objects import StorageError

logger = logging.getLogger(__name__)

MEMORY = Path("/dev/shm")
PREFIX = "mcf-state-"
# Of the names of files that a process is about to replace or to remove.
ASIDE = "aside"
# Left free in memory for others, such as NCCL and the workers that load images.
MARGIN_BYTES = 256 << 20


class HostCopy:
    """This node's copy of one run's state. Used by the node's first rank alone."""

    def __init__(self, run_uri: str, spec_digest: str) -> None:
        self.spec_digest = spec_digest
        self._name = f"{_agent()}-{sha256(f'{run_uri} {spec_digest}'.encode()).hexdigest()[:12]}"
        self._base: Path | None = None
        for base in _bases():
            _sweep(base)
            # A worker that is killed leaves what it was writing, or uploading: gigabytes of memory.
            for left in (base / self._name).glob(f"{ASIDE}*"):
                left.unlink(missing_ok=True)

    def newest(self) -> tuple[Checkpoint, dict[str, Any]] | None:
        """The newest copy that is what its marker says, mapped into memory; None when there is none."""
        markers = [marker for base in _bases() for marker in (base / self._name).glob("*.json")]
        for marker in sorted(markers, key=lambda path: path.name, reverse=True):
            state = marker.with_suffix(".pt")
            # A copy that is being replaced may go while it is looked at.
            with suppress(ValidationError, FileNotFoundError):
                checkpoint = Checkpoint.model_validate_json(marker.read_bytes())
                if is_sound(checkpoint, state):
                    return checkpoint, read_state(state)
            if not state.exists():
                continue
            logger.warning("the copy of the state in %s is damaged and is not used", state)
        return None

    def write(self, state: dict[str, Any], step: int, world_size: int) -> tuple[Checkpoint, Path]:
        """Replace the copy. Raises StorageError when there is no room; the copy from before then stays."""
        folder = self._folder(state)
        try:
            written = self._written(folder, state, step, world_size)
        except (OSError, StorageError) as error:
            disk = _bases()[-1]
            if self._base == disk:
                raise StorageError(f"the state could not be kept in {folder}: {error}") from error
            # Others have filled the memory since it was chosen.
            logger.warning("%s takes no state any more, it is kept in %s: %s", self._base, disk, error)
            self._base = disk
            return self.write(state, step, world_size)
        for old in (old for base in _bases() for old in (base / self._name).glob("0*")):
            if old.stem != written[1].stem:
                old.unlink()
        return written

    def _written(self, folder: Path, state: dict[str, Any], step: int, world_size: int) -> tuple[Checkpoint, Path]:
        aside, path = folder / ASIDE, folder / f"{step:09d}.pt"
        try:
            folder.mkdir(mode=0o700, exist_ok=True)
            checkpoint = write_state(state, aside, step=step, spec_digest=self.spec_digest, world_size=world_size)
            aside.replace(path)
            aside.write_text(checkpoint.model_dump_json())
            aside.replace(path.with_suffix(".json"))
        finally:
            aside.unlink(missing_ok=True)
        return checkpoint, path

    def kept_aside(self, path: Path) -> Path:
        """A second name of a copy, which stays when the next one replaces it; whoever asks removes it."""
        aside = path.with_name(f"{ASIDE}-{path.name}")
        os.link(path, aside)
        return aside

    def remove(self) -> None:
        """Nobody will go on from it."""
        for base in _bases():
            shutil.rmtree(base / self._name, ignore_errors=True)

    def _folder(self, state: dict[str, Any]) -> Path:
        if self._base is None:
            # The old copy stays until the new one is complete, and a third may be on its way to the store.
            needed = 3 * _num_bytes(state) + MARGIN_BYTES
            *memory, disk = _bases()
            self._base = next((base for base in memory if shutil.disk_usage(base).free >= needed), disk)
            if memory and self._base is disk:
                logger.warning("%s has no room for %.1f GiB, the state is kept in %s", MEMORY, needed / 2**30, disk)
        return self._base / self._name


def _num_bytes(tree: Any) -> int:
    if isinstance(tree, dict):
        return sum(map(_num_bytes, tree.values()))
    return getattr(tree, "nbytes", 0)


def _bases() -> list[Path]:
    """Where copies may be, best first."""
    disk = Path(tempfile.gettempdir())
    return [MEMORY, disk] if os.access(MEMORY, os.W_OK) else [disk]


def _agent() -> str:
    """Name of whoever outlives this process when its group re-forms: the torchrun agent, else the process itself."""
    process = psutil.Process(agent_pid())
    return f"{PREFIX}{os.getuid()}-{_namespace()}-{process.pid}-{process.create_time():.2f}"


def _namespace() -> int:
    # Containers may share /dev/shm and not their process numbers.
    return os.stat("/proc/self/ns/pid").st_ino


def _sweep(base: Path) -> None:
    """Remove copies whose agent is gone: gigabytes of memory, and nobody else would."""
    for folder in base.glob(f"{PREFIX}{os.getuid()}-{_namespace()}-*"):
        pid, started = folder.name.split("-")[4:6]
        with suppress(psutil.NoSuchProcess):
            if f"{psutil.Process(int(pid)).create_time():.2f}" == started:
                continue
        shutil.rmtree(folder, ignore_errors=True)
