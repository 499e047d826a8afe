"""Work of the first ranks, for which the others wait in no collective, so that it may take days.

A collective gives up after minutes, and who waits in one cannot leave when asked to. So the others ask the store of
the process group again and again. That a node has gone is noticed as ever (trainer/elastic/peers.py).
"""

import sys
import time
import uuid
from collections.abc import Callable
from typing import TypeVar

from trainer.elastic.distributed import World
from trainer.elastic.peers import store_of_the_group
from trainer.elastic.stop import INTERRUPTED

Answer = TypeVar("Answer")

POLL_SECONDS = 0.5
# The node of the store may be busy with this very work.
STORE_SECONDS = 300.0
DONE, LEFT = "done", "left"


def on_first(world: World, count: int, work: Callable[[World], Answer]) -> Answer | None:
    """What `work` gives on the first `count` ranks, as a world of their own; None on the others, once it is done.

    Every rank calls this. Where `work` raises on rank 0, the others exit as interrupted: without it there is nothing
    to wait for.
    """
    workers = world.patient(count)
    if count == world.size:
        assert workers
        return work(workers)
    key = f"mcf/first/{world.share(uuid.uuid4().hex)}"
    store = store_of_the_group(STORE_SECONDS)
    answer, said = None, LEFT
    if workers:
        try:
            answer = work(workers)
            said = DONE
        finally:
            if world.is_first:
                store.set(key, said)
    else:
        try:
            while not store.check([key]):
                time.sleep(POLL_SECONDS)
        except SystemExit:
            store.set(f"{key}/{LEFT}", str(world.rank))
            raise
        if store.get(key).decode() != DONE:
            sys.exit(INTERRUPTED)
    if store.check([f"{key}/{LEFT}"]):
        # Somebody was asked to leave: those that are left form another group, in which the work is done already.
        sys.exit(INTERRUPTED)
    # The store may be in rank 0's process: it stays until all have heard.
    world.collect(None)
    return answer
