"""Notices a worker of the same node that has gone without a word: killed, or ended by an error of its own.

A collective that waits for it may not hear of that until it gives up. torchrun asks the others to stop, which they do
not hear in there, and waits for as long as they may take to save a checkpoint. Without the missing one no step can be
taken, so nothing is lost with a worker that ends itself: its agent then starts all of them again.
"""

import logging
import os
import threading
from collections.abc import Mapping
from contextlib import suppress

import psutil
import torch.distributed as dist

from trainer.peers import store_of_the_group

logger = logging.getLogger(__name__)

LOOK_SECONDS = 1.0
# The main thread may have met the same fault, and has more to say about it.
PATIENCE_SECONDS = 3.0


class SiblingWatch:
    """A thread of every worker of a node that has several."""

    def __init__(self, round_id: str, rank: int, others: Mapping[int, int]) -> None:
        """`round_id`: the same on every rank, and not used before; `others`: rank -> process id, on this node."""
        self._prefix, self._rank = f"mcf/{round_id}/left", rank
        self._store = store_of_the_group()
        self._stopping = threading.Event()
        self._processes: dict[int, psutil.Process | None] = {}
        for other, pid in others.items():
            self._processes[other] = None
            with suppress(psutil.NoSuchProcess):
                self._processes[other] = psutil.Process(pid)
        threading.Thread(target=self._run, name="siblings", daemon=True).start()

    def stop(self, *, said: bool) -> None:
        """This worker leaves. `said`: in good order, so that the others need not leave as well."""
        self._stopping.set()
        if said:
            with suppress(RuntimeError, dist.DistError):
                self._store.set(f"{self._prefix}/{self._rank}", "")

    def _run(self) -> None:
        while not self._stopping.wait(LOOK_SECONDS):
            missing = [rank for rank, process in self._processes.items() if not _lives(process)]
            if any(not self._has_left(rank) for rank in missing) and not self._stopping.wait(PATIENCE_SECONDS):
                logger.error("rank %s of this node has gone: ending, to be started again with it", missing)
                logging.shutdown()
                # Not by an exception: this thread is not the one that waits, and that one cannot be interrupted.
                os._exit(1)

    def _has_left(self, rank: int) -> bool:
        try:
            return bool(self._store.check([f"{self._prefix}/{rank}"]))
        except (RuntimeError, dist.DistError):
            # The store may have been in that very process.
            return False


def _lives(process: psutil.Process | None) -> bool:
    with suppress(psutil.NoSuchProcess):
        return process is not None and process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    return False
