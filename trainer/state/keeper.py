"""Keeps the state of a run safe without making the training loop wait for a disk or a network.

The loop waits for one copy of the tensors. Then a thread writes it to this machine's memory (hostcopy.py), and when a
checkpoint is due another one uploads that file to the run's directory (checkpoint.py).
"""

import logging
import os
import sys
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from trainer.contract.records import Checkpoint
from trainer.elastic.distributed import World
from trainer.elastic.trees import with_tensors, without_tensors
from trainer.state.checkpoint import CheckpointStore
from trainer.state.hostcopy import HostCopy
from trainer.store.objects import StorageError, insist

logger = logging.getLogger(__name__)

# The copy in memory is refreshed so often at most ...
REFRESH_SECONDS = 2.0
# ... and so seldom that what it takes from training is at most this share of the time.
MAX_SHARE = 0.05
# How long an upload is tried again while training goes on, and how long at the end of a run.
PATIENCE_SECONDS = 600.0


class Keeper:
    """One rank's part. The first rank of a node keeps the copy in memory, rank 0 also uploads checkpoints."""

    def __init__(self, world: World, host: HostCopy, checkpoints: CheckpointStore, every_steps: int, step: int) -> None:
        """`step`: of the last state that is safe, 0 at the beginning of a run."""
        self.world, self.host, self.checkpoints, self.every_steps = world, host, checkpoints, every_steps
        self.stall_seconds = 0.0
        """What the loop waited for the last copy."""
        self._safe = step
        """Step of the last checkpoint."""
        self._tried = False
        """Whether a checkpoint after that one was asked for. If it comes to nothing, the next copy is tried."""
        self._next_copy = time.monotonic() + REFRESH_SECONDS
        self._staging = Staging()
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="state-writer", initializer=_step_back)
        self._uploader = ThreadPoolExecutor(1, thread_name_prefix="checkpoint-upload", initializer=_step_back)
        self._writing: Future[None] | None = None
        self._uploading: Future[None] | None = None
        self._leaving = threading.Event()

    def due(self, step: int) -> bool:
        """Whether rank 0 wants the state after `step` kept; a checkpoint waits until the one before is uploaded."""
        if not self.world.is_first or _busy(self._writing):
            return False
        return (self._checkpoint_due(step) and not self._tried) or time.monotonic() >= self._next_copy

    def keep(self, step: int, state: dict[str, Any]) -> None:
        """Copy the state and see to the rest in the background. Every rank calls this at the same steps."""
        if not self.world.is_first_of_node or _busy(self._writing):
            return
        started = time.monotonic()
        staged = self._staging.copy(state)
        self.stall_seconds = time.monotonic() - started
        self._wait_for_next(self.stall_seconds)
        upload = self.world.is_first and self._checkpoint_due(step)
        self._tried = self._tried or upload
        self._writing = self._writer.submit(self._write, step, staged, upload)

    def finish(self, step: int, state: dict[str, Any]) -> None:
        """Rank 0: see this state into the run's directory, and wait for it. Raises StorageError."""
        self._leaving.set()
        if self._writing:
            self._writing.result()
        # In memory first: whoever waits for this process to end may lose patience while it uploads.
        checkpoint, path = self.host.write(self._staging.copy(state).on_cpu(), step, self.world.size)
        # Looked at only after the last copy has been written, which may have begun it.
        if self._uploading:
            self._uploading.result()
        self._insist(checkpoint, path, PATIENCE_SECONDS)

    def close(self, *, completed: bool) -> None:
        """Nothing is copied any more. A copy in memory goes once its state is safe, else it stays with its agent.

        Every rank calls this after rank 0 has called `finish`.
        """
        self._leaving.set()
        self._writer.shutdown()
        self._uploader.shutdown()
        if completed:
            self.world.collect(None)  # until rank 0 is here, and with it the last state in the store
        # Not so when the run was stopped: who waits for rank 0 may have less time than that.
        if self.world.is_first or (completed and self.world.is_first_of_node):
            self.host.remove()

    def _checkpoint_due(self, step: int) -> bool:
        return step // self.every_steps > self._safe // self.every_steps and not _busy(self._uploading)

    def _wait_for_next(self, taken_seconds: float) -> None:
        self._next_copy = time.monotonic() + max(REFRESH_SECONDS, taken_seconds / MAX_SHARE)

    def _write(self, step: int, staged: "Staged", upload: bool) -> None:
        started = time.monotonic()
        try:
            checkpoint, path = self.host.write(staged.on_cpu(), step, self.world.size)
            # The writer takes a core from training, or slows the thread that feeds a GPU (docs/performance.md).
            self._wait_for_next(self.stall_seconds + time.monotonic() - started)
            if upload:
                # A name of its own: the next copy replaces this one while it is still being uploaded.
                self._uploading = self._uploader.submit(self._upload, checkpoint, self.host.kept_aside(path))
        except (StorageError, OSError) as error:
            logger.warning("the state of step %d was not kept, training goes on: %s", step, error)

    def _upload(self, checkpoint: Checkpoint, path: Path) -> None:
        try:
            self._insist(checkpoint, path, PATIENCE_SECONDS, self._leaving)
            self._safe, self._tried = checkpoint.step, False
        except StorageError as error:
            logger.warning("no checkpoint at step %d, training goes on: %s", checkpoint.step, error)
        finally:
            path.unlink()

    def _insist(
        self, checkpoint: Checkpoint, path: Path, seconds: float, unless: threading.Event | None = None
    ) -> None:
        """Upload, again and again for so long; gives up after a failure once `unless` is set."""
        insist(
            lambda: self.checkpoints.upload(checkpoint, path), f"checkpoint {checkpoint.step}", seconds,
            unless=lambda: unless is not None and unless.is_set(),
        )  # fmt: skip


class Staging:
    """Memory for one copy of a state, kept from copy to copy: fresh pages cost more than what is written to them."""

    def __init__(self) -> None:
        self._tensors: list[Tensor] = []
        self._on_host: list[Tensor] = []

    def copy(self, state: dict[str, Any]) -> "Staged":
        """Copy every tensor on the device it is on."""
        tensors: list[Tensor] = []
        skeleton = without_tensors(state, tensors)
        if [(t.shape, t.dtype, t.device) for t in tensors] != [(t.shape, t.dtype, t.device) for t in self._tensors]:
            self._tensors = [torch.empty_like(tensor) for tensor in tensors]
            self._on_host = []
        with torch.no_grad():
            torch._foreach_copy_(self._tensors, tensors)
        return Staged(skeleton, self._tensors, self._on_host)


class Staged:
    """A state that nobody changes until the next copy."""

    def __init__(self, skeleton: Any, tensors: list[Tensor], on_host: list[Tensor]) -> None:
        """`on_host`: memory that a GPU copies to beside training, kept from copy to copy; empty before the first."""
        self._skeleton, self._tensors, self._on_host = skeleton, tensors, on_host
        self._copied = torch.cuda.Event() if any(tensor.is_cuda for tensor in tensors) else None
        if self._copied:
            self._copied.record()

    def on_cpu(self) -> dict[str, Any]:
        """The state with its tensors on the CPU; from a GPU they come on a stream of their own, beside training."""
        tensors = self._tensors
        if self._copied:
            if not self._on_host:
                # Pinned: other memory goes through a small buffer of the driver's, and a core is busy with it.
                self._on_host += [torch.empty_like(each, device="cpu", pin_memory=True) for each in tensors]
            stream = torch.cuda.Stream()
            with torch.cuda.stream(stream):
                self._copied.wait()
                for host, tensor in zip(self._on_host, tensors, strict=True):
                    host.copy_(tensor, non_blocking=True)
            stream.synchronize()
            tensors = self._on_host
        state: dict[str, Any] = with_tensors(self._skeleton, tensors)
        return state


def _step_back() -> None:
    """This thread takes no time from the one that trains. Linux counts priority by thread, others by process."""
    if sys.platform == "linux":
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 10)


def _busy(future: "Future[None] | None") -> bool:
    return future is not None and not future.done()
