"""What the node pools are, what they have free, who is there, and who waits."""

from collections.abc import Mapping

from k8s.capacity import PoolState
from k8s.pools import Pool
from service.db import Database
from service.errors import Unavailable
from service.launching.port import Launcher, LauncherAway
from service.pools import repository
from service.schemas.pools import PoolView, Queue, QueuedRun
from service.settings import Settings
from service.states import AttemptState, RunState

MOST_WAITING = 200


def views(
    db: Database, settings: Settings, launcher: Launcher, pools: Mapping[str, Pool] | None
) -> list[PoolView]:  # fmt: skip
    """In the order of the file that names them. Raises Unavailable."""
    try:
        states = launcher.pools()
    except LauncherAway as error:
        raise Unavailable(f"The free room of the pools is not known: {error}.") from error
    with db.read() as session:
        counts = repository.attempts_by_pool(session)
    return [_view(state, (pools or {})[state.name], counts, settings.currency) for state in states]


def queue(db: Database, settings: Settings, project: str | None) -> Queue:
    """Who trains and who waits; of one project, or of all."""
    in_flight: list[tuple[repository.Unended, int | None]] = []
    waiting: list[tuple[repository.Unended, int | None]] = []
    with db.read() as session:
        for item in repository.unended(session):
            if item.state is RunState.PAUSED:
                continue
            if item.holds_a_place:
                in_flight.append((item, None))
            else:
                waiting.append((item, len(waiting) + 1))
    mine = [found for found in waiting if project in (None, found[0].project)]
    return Queue(
        in_flight=[_queued(*found) for found in in_flight if project in (None, found[0].project)],
        waiting=[_queued(*found) for found in mine[:MOST_WAITING]],
        num_waiting=len(mine),
        places=settings.max_concurrent_runs,
    )


def _queued(item: repository.Unended, position: int | None) -> QueuedRun:
    return QueuedRun(
        run_id=item.run_id, experiment_id=item.experiment_id, experiment=item.experiment, arm=item.arm, seed=item.seed,
        priority=item.priority, state=item.state, progress=item.step / item.total_steps, pool=item.pool,
        position=position, waiting_reason=item.waiting_reason, created_at=item.created_at,
    )  # fmt: skip


def _view(
    state: PoolState, pool: Pool, counts: Mapping[tuple[str, AttemptState], int], currency: str
) -> PoolView:  # fmt: skip
    return PoolView(
        name=state.name, gpus_per_node=pool.gpus, price_per_gpu_hour=pool.price_per_gpu_hour,
        currency=currency if pool.price_per_gpu_hour is not None else None,
        queue=pool.queue.name if pool.queue else None, nodes=state.nodes,
        nodes_not_ready=state.nodes_not_ready, gpus=state.gpus, gpus_free=state.gpus_free, room=state.room,
        running=counts.get((state.name, AttemptState.RUNNING), 0),
        waiting=counts.get((state.name, AttemptState.SUBMITTED), 0),
    )  # fmt: skip
