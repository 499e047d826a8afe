"""Notices a node that has silently gone: cut off from the network, frozen, without power.

A process that dies closes its connections, and the others hear of it at once. A node that goes silently leaves them
waiting in a collective until that gives up, which must take long enough for a slow store, a slow disk, or at start-up
the listing of a data set; torchrun does not interrupt them (pytorch/pytorch#111646). So every node counts up a number
in the store of the process group, and who sees another's stand still ends itself: its agent then meets those that are
left.
"""

import logging
import os
import threading
import time
from datetime import timedelta
from typing import NoReturn

import torch.distributed as dist

logger = logging.getLogger(__name__)

BEAT_SECONDS = 2.0
# A node may be busy with something else for a while, such as swapping or being moved to another host.
LOST_SECONDS = float(os.environ.get("MCF_LOST_NODE_SECONDS", "15"))
LEFT = "left"


class PeerWatch:
    """A thread of every rank; the first of each node beats for it."""

    def __init__(self, round_id: str, *, beats: bool) -> None:
        """`round_id`: the same on every rank, and not used before; `beats`: whether this rank speaks for its node."""
        self._prefix, self._beats = f"mcf/{round_id}", beats
        self._node, nodes = int(os.environ["GROUP_RANK"]), int(os.environ["GROUP_WORLD_SIZE"])
        self._others = [node for node in range(nodes) if node != self._node]
        self._store = store_of_the_group(BEAT_SECONDS)
        self._stopping = threading.Event()
        self._answers = 0
        """Questions that have been answered or given up."""
        self._thread = threading.Thread(target=self._run, name="peers", daemon=True)
        self._thread.start()
        threading.Thread(target=self._guard, name="peers-guard", daemon=True).start()

    def stop(self, *, orderly: bool) -> None:
        """This node leaves; in good order it need not be missed."""
        self._stopping.set()
        # It may be asking a store that is no more.
        self._thread.join(3 * BEAT_SECONDS)
        if orderly and self._beats and not self._thread.is_alive():
            self._write(LEFT)

    def _guard(self) -> None:
        """The store is on the first node: when that goes silently, a question to it is never answered, nor given up.

        Counted in beats and not by the clock: a process that was frozen itself has missed nothing.
        """
        answers, still = 0, 0
        while not self._stopping.wait(BEAT_SECONDS):
            still = still + 1 if answers == self._answers else 0
            answers = self._answers
            if still * BEAT_SECONDS > LOST_SECONDS:
                _leave_without(0, still * BEAT_SECONDS)

    def _run(self) -> None:
        heard = dict.fromkeys(self._others, ("", time.monotonic()))
        beat = 0
        while not self._stopping.wait(BEAT_SECONDS):
            beat += 1
            self._answers += 1
            if self._beats:
                self._write(str(beat))
            now = time.monotonic()
            for node in self._others:
                last, since = heard[node]
                said = self._read(node)
                self._answers += 1
                if said not in ("", last):
                    heard[node] = said, now
                elif last != LEFT and now - since > LOST_SECONDS and not self._stopping.is_set():
                    _leave_without(node, now - since)

    def _write(self, text: str) -> None:
        try:
            self._store.set(f"{self._prefix}/{self._node}", text)
        except (RuntimeError, dist.DistError):
            # The store is on the first node: where that has gone, nobody is heard any more.
            logger.debug("the store of the process group does not answer")

    def _read(self, node: int) -> str:
        """What the node said last; empty while it has said nothing, or cannot be heard."""
        key = f"{self._prefix}/{node}"
        try:
            return str(self._store.get(key).decode()) if self._store.check([key]) else ""
        except (RuntimeError, dist.DistError):
            return ""


def store_of_the_group(patience_seconds: float) -> "dist.TCPStore":  # type: ignore[name-defined]
    """A connection of its own to the store: what waits for a key holds up everybody else on the same one."""
    return dist.TCPStore(  # type: ignore[attr-defined]
        os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), is_master=False, wait_for_workers=False,
        timeout=timedelta(seconds=patience_seconds),
    )  # fmt: skip


def leave(why: str) -> NoReturn:
    """End this process, from a thread of it."""
    logger.error(why)
    logging.shutdown()
    # Not by an exception: this thread is not the one that waits, and that one cannot be interrupted.
    os._exit(1)


def _leave_without(node: int, seconds: float) -> NoReturn:
    leave(f"node {node} has not been heard of for {seconds:.0f} s: going on without it")
