"""The store in which the agents of an attempt meet: python -m trainer.elastic.rendezvous PORT

On Kubernetes it is a small pod of its own, so that no worker is special: with the store inside one of the agents, its
loss would end all. It never ends well: a Job takes that for its work done, and makes no other pod.
"""

import argparse
import logging
import signal
import sys
from typing import NoReturn

from torch.distributed import TCPStore  # type: ignore[attr-defined]

logger = logging.getLogger("trainer.elastic.rendezvous")


def main() -> NoReturn:
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    parser = argparse.ArgumentParser(
        prog="trainer.elastic.rendezvous", description="Hold the store that agents meet in."
    )
    parser.add_argument("port", type=int)
    port = parser.parse_args().port
    # As process 1 of a container it gets no default handler for SIGTERM.
    signal.signal(signal.SIGTERM, lambda signum, frame: sys.exit(128 + signum))
    store = TCPStore("0.0.0.0", port, is_master=True, wait_for_workers=False)
    logger.info("agents can meet at port %d", store.port)
    while True:
        signal.pause()


if __name__ == "__main__":
    main()
