"""What the node pools are, what they have free, and who is there."""

from collections.abc import Mapping

from k8s.capacity import PoolState
from k8s.pools import Pool
from service.db import Database
from service.errors import Unavailable
from service.launcher import Launcher, LauncherAway
from service.pools import repository
from service.pools.schemas import PoolView
from service.tables import AttemptState


def views(db: Database, launcher: Launcher, pools: Mapping[str, Pool] | None) -> list[PoolView]:
    """In the order of the file that names them. Raises Unavailable."""
    try:
        states = launcher.pools()
    except LauncherAway as error:
        raise Unavailable(f"What the pools have free cannot be said: {error}.") from error
    with db.read() as session:
        counts = repository.attempts_by_pool(session)
    return [_view(state, (pools or {})[state.name], counts) for state in states]


def _view(state: PoolState, pool: Pool, counts: Mapping[tuple[str, AttemptState], int]) -> PoolView:
    return PoolView(
        name=state.name, gpus_per_node=pool.gpus, queue=pool.queue.name if pool.queue else None, nodes=state.nodes,
        nodes_not_ready=state.nodes_not_ready, gpus=state.gpus, gpus_free=state.gpus_free, room=state.room,
        running=counts.get((state.name, AttemptState.RUNNING), 0),
        waiting=counts.get((state.name, AttemptState.SUBMITTED), 0),
    )  # fmt: skip
