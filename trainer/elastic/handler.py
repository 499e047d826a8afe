"""torchrun's c10d rendezvous, which also says when a node of the group has gone.

torchrun drops a node that has sent no heartbeat for a while, and does not interrupt the workers that wait for it in a
collective, or while they start for its address (pytorch/pytorch#111646). Here it is told so as it is of a node that has
come: the group forms again without it.

Workers need each other, and not the store in which their agents meet: where that is lost they go on until there is
another one.
"""

import logging
import socket
import time
from datetime import timedelta

from torch.distributed.elastic.rendezvous import (
    RendezvousConnectionError,
    RendezvousHandler,
    RendezvousInfo,
    RendezvousParameters,
    rendezvous_handler_registry,
)
from torch.distributed.elastic.rendezvous.c10d_rendezvous_backend import create_backend
from torch.distributed.elastic.rendezvous.dynamic_rendezvous import DynamicRendezvousHandler, RendezvousTimeout

logger = logging.getLogger(__name__)

BACKEND = "mcf-c10d"
# A group that is formed anew before its first step gets nowhere: who comes so soon after it has formed waits, and nodes
# that come one by one join together.
SETTLING_SECONDS = 30.0


def unreachable(endpoint: str) -> str:
    """Why nobody can be reached at HOST:PORT; empty when somebody can.

    Asked anew each time, name and all: torch would stay with the address of a store on a node that has gone.
    """
    host, _, port = endpoint.rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=1).close()
    except OSError as error:
        return str(error)
    return ""


class Rendezvous(DynamicRendezvousHandler):
    endpoint = ""
    """HOST:PORT of the store."""
    settling = SETTLING_SECONDS
    """The rendezvous' configuration may say another one: `settling=SECONDS`."""
    _lost = False
    _met = 0
    """Nodes of the group as it was formed."""
    _met_at = 0.0

    def get_backend(self) -> str:
        return BACKEND

    def next_rendezvous(self) -> RendezvousInfo:
        self._met = 0
        info = super().next_rendezvous()
        self._met, self._met_at = info.world_size, time.monotonic()
        return info

    def num_nodes_waiting(self) -> int:
        """Nodes that wait to join; where none does, nodes that have gone. Either makes an agent form the group anew.

        Raises RendezvousConnectionError when the store has been lost and there is another one to meet in.
        """
        try:
            waiting = super().num_nodes_waiting()
        except RendezvousConnectionError as error:
            if not (why := unreachable(self.endpoint)):
                raise
            if not self._lost:
                logger.warning("the rendezvous is lost (%s, %s); the workers go on until there is another", error, why)
            self._lost = True
            return 0
        state = self._state_holder.state
        # In a closed one everybody has come to the end, and leaves.
        gone = 0 if state.closed else self._met - len(state.participants)
        if waiting and time.monotonic() - self._met_at < self.settling:
            waiting = 0
        return waiting or max(0, gone)


def create(params: RendezvousParameters) -> RendezvousHandler:
    backend, store = create_backend(params)
    limits = _given(params, "join_timeout", "last_call_timeout")
    timeout = RendezvousTimeout(
        **{name.removesuffix("_timeout"): timedelta(seconds=limit) for name, limit in limits.items()}
    )
    made = Rendezvous.from_backend(
        params.run_id, store, backend, params.min_nodes, params.max_nodes, params.local_addr, timeout,
        **_given(params, "keep_alive_interval", "keep_alive_max_attempt"),
    )  # fmt: skip
    made.endpoint = params.endpoint
    made.settling = float(params.get("settling", SETTLING_SECONDS))
    return made


def _given(params: RendezvousParameters, *names: str) -> dict[str, int]:
    return {name: value for name in names if (value := params.get_as_int(name)) is not None}


rendezvous_handler_registry.register(BACKEND, create)
