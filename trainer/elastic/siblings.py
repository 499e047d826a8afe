"""Notices a worker of the same node that has gone without a word: killed, or ended by an error of its own.

A collective that waits for the missing worker may not notice until it times out. The agent asks the other workers to
stop, but a worker inside a collective does not see the signal, so the agent waits: 30 s after a worker was killed, and
the pool's grace when the agent itself was told to stop. No step can be taken without the missing worker, so a worker
that ends itself loses nothing.
"""

import threading
from collections.abc import Mapping
from contextlib import suppress

import psutil
import torch.distributed as dist

from trainer.elastic.peers import BEAT_SECONDS, leave, store_of_the_group

LOOK_SECONDS = 1.0
# The main thread may have met the same fault, and has more to say about it.
PATIENCE_SECONDS = 3.0


class SiblingWatch:
    """A thread of every worker of a node that has several."""

    def __init__(self, round_id: str, rank: int, others: Mapping[int, int]) -> None:
        """`round_id`: the same on every rank, and not used before; `others`: rank -> process id, on this node."""
        self._prefix, self._rank = f"mcf/{round_id}/left", rank
        self._store = store_of_the_group(BEAT_SECONDS)
        self._stopping = threading.Event()
        self._processes: dict[int, psutil.Process | None] = {}
        for other, pid in others.items():
            self._processes[other] = None
            with suppress(psutil.NoSuchProcess):
                self._processes[other] = psutil.Process(pid)
        threading.Thread(target=self._run, name="siblings", daemon=True).start()

    def stop(self, *, orderly: bool) -> None:
        """This worker leaves; in good order the others need not leave with it."""
        self._stopping.set()
        if orderly:
            with suppress(RuntimeError, dist.DistError):
                self._store.set(f"{self._prefix}/{self._rank}", "")

    def _run(self) -> None:
        while not self._stopping.wait(LOOK_SECONDS):
            gone = [rank for rank, process in self._processes.items() if not _lives(process)]
            missing = [str(rank) for rank in gone if not self._has_left(rank)]
            if missing and not self._stopping.wait(PATIENCE_SECONDS):
                leave(f"rank {', '.join(missing)} of this node has gone: without it no step can be taken")

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
