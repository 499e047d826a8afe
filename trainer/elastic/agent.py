"""A node's agent on Kubernetes: torchrun that outlives a lost rendezvous.

python -m trainer.elastic.agent OPTIONS

The options are torchrun's, but for the store's HOST:PORT, which is in PET_RDZV_ENDPOINT. By itself torchrun ends with
the store that its agents meet in; the container would start again after kubelet's back-off (10, 20, 40 s) and load
torch once more. Here the agent meets the others in the next store; until there is one its workers go on, and those that
have lost each other meanwhile wait. Whatever else ends torchrun ends this as well.

Its workers are forked from a process that has loaded torch already (trainer/elastic/forked.py).
"""

import logging
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from types import FrameType

import psutil
from torch.distributed import DistNetworkError, DistStoreError
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.rendezvous.api import RendezvousConnectionError
from torch.distributed.run import parse_args

from trainer.elastic.forked import launch, load
from trainer.elastic.handler import BACKEND, unreachable

logger = logging.getLogger("trainer.elastic.agent")

LOST = (RendezvousConnectionError, DistNetworkError, DistStoreError)
PAUSE_SECONDS = 1.0
# A store that does not come for so long is the scheduler's matter: it sees a container that ends.
PATIENCE_SECONDS = 240.0
# An agent that has lived for so long had found the others.
SETTLED_SECONDS = 60.0
# A store on a node that has lost its network says nothing, not even that it has gone, and torch would wait for ever.
SILENT_SECONDS = 10


def meet(
    find: Callable[[], object], run: Callable[[], object], *, patience: float = PATIENCE_SECONDS,
    settled: float = SETTLED_SECONDS, pause: float = PAUSE_SECONDS,
) -> None:  # fmt: skip
    """Find the rendezvous and run an agent to its end, again whenever it has lost it.

    Raises what finding raises, and what the agent raises; a loss only when none has lived for `settled` seconds since
    `patience` seconds ago.
    """
    lost_at: float | None = None
    while True:
        # Its patience is its own: who has long looked in vain has not lived.
        find()
        began = time.monotonic()
        try:
            run()
            return
        except LOST as error:
            now = time.monotonic()
            if lost_at is None or now - began > settled:
                lost_at = now
            if now - lost_at > patience:
                raise
            logger.warning("the rendezvous is lost (%s); the nodes meet again at the next one", error)
            time.sleep(pause)


def find_store(endpoint: str, *, patience: float = PATIENCE_SECONDS) -> None:
    """Return when somebody answers there; raises RendezvousConnectionError when nobody has for `patience` seconds."""
    deadline = time.monotonic() + patience
    while why := unreachable(endpoint):
        if time.monotonic() > deadline:
            raise RendezvousConnectionError(f"nobody answers at {endpoint}: {why}")
        time.sleep(0.5)


def bound_silence() -> None:
    """Let the kernel give up this process's connections whose other end says nothing for SILENT_SECONDS."""
    for connection in psutil.Process().net_connections("tcp"):
        if connection.raddr and connection.fd >= 0:
            # Closed meanwhile, by the thread that it belongs to.
            with suppress(OSError), socket.fromfd(connection.fd, connection.family, connection.type) as same:
                same.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, SILENT_SECONDS * 1000)
                same.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
                same.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, SILENT_SECONDS // 2)
                same.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 2)


def _watch() -> None:
    while True:
        bound_silence()
        time.sleep(1)


def _stop(signum: int, frame: FrameType | None) -> None:
    raise SignalException(f"signal {signum}", sigval=signal.Signals(signum))


def main() -> int:
    # torchrun's options read their defaults here.
    os.environ["PET_RDZV_BACKEND"] = BACKEND
    # Nor is an answer waited for longer that a store owes which still has its connection.
    told = os.environ.get("PET_RDZV_CONF")
    os.environ["PET_RDZV_CONF"] = ",".join(filter(None, [told, f"read_timeout={SILENT_SECONDS}"]))
    endpoint = os.environ["PET_RDZV_ENDPOINT"]
    options = parse_args(None)
    # Before there is a thread, or anything else that workers are not to have.
    load(options.training_script)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    # As process 1 of a container it gets no default handler; the agent sets the same one, but only once it runs.
    signal.signal(signal.SIGTERM, _stop)
    threading.Thread(target=_watch, name="silence", daemon=True).start()
    meet(lambda: find_store(endpoint), lambda: launch(options))
    return 0


if __name__ == "__main__":
    sys.exit(main())
