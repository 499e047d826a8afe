"""A node's agent on Kubernetes: torchrun, which goes on when its rendezvous is lost: python -m trainer.agent OPTIONS

The options are torchrun's. By itself torchrun ends with the store that its agents meet in; the container would start
again after kubelet's back-off (10, 20, 40 s) and load torch once more. Here the agent, whose workers have stopped as
they do before any change of nodes, waits for the next store. Whatever else ends torchrun ends this as well.
"""

import logging
import signal
import sys
import time
from collections.abc import Callable
from types import FrameType

from torch.distributed import DistNetworkError, DistStoreError
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.rendezvous.api import RendezvousConnectionError
from torch.distributed.run import main as torchrun

logger = logging.getLogger("trainer.agent")

LOST = (RendezvousConnectionError, DistNetworkError, DistStoreError)
# A store that does not come for so many tries is the scheduler's matter: it sees a container that ends.
PATIENCE = 5
PAUSE_SECONDS = 1.0
# An agent that has lived for so long had found the others.
SETTLED_SECONDS = 90.0


def meet(run: Callable[[], object], *, pause: float = PAUSE_SECONDS, settled: float = SETTLED_SECONDS) -> None:
    """Run an agent to its end, again whenever it has lost its rendezvous.

    Raises what the agent raises: with PATIENCE losses in a row, each within `settled` seconds, the last of them.
    """
    losses = 0
    while True:
        began = time.monotonic()
        try:
            run()
            return
        except LOST as error:
            losses = 1 if time.monotonic() - began > settled else losses + 1
            if losses >= PATIENCE:
                raise
            logger.warning("the rendezvous is lost (%s); the nodes meet again at the next one", error)
            time.sleep(pause)


def _stop(signum: int, frame: FrameType | None) -> None:
    raise SignalException(f"signal {signum}", sigval=signal.Signals(signum))


def main() -> int:
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    # As process 1 of a container it gets no default handler; the agent sets the same one, but only once it runs.
    signal.signal(signal.SIGTERM, _stop)
    meet(torchrun)
    return 0


if __name__ == "__main__":
    sys.exit(main())
