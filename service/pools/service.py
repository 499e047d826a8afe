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


def views(db: Database, launcher: Launcher, pools: Mapping[str, Pool] | None) -> list[PoolView]:
    """In the order of the file that names them. Raises Unavailable."""
    try:
        states = launcher.pools()
    except LauncherAway as error:
        raise Unavailable(f"The free room of the pools is not known: {error}.") from error
    with db.read() as session:
        counts = repository.attempts_by_pool(session)
    return [_view(state, (pools or {})[state.name], counts) for state in states]


def queue(db: Database, settings: Settings, project: str | None) -> Queue:
    """Who trains and who waits; of one project, or of all."""
    in_flight: list[tuple[repository.Unended, int | None]] = []
    waiting: list[tuple[repository.Unended, int | None]] = []
    with db.read() as session:
        for item in repository.unended(session):
            # A run that is being stopped has no claim on a place any more.
            if item.run.state is RunState.PAUSED:
                continue
            if item.run.admitted or item.run.cancel_reason:
                in_flight.append((item, None))
            else:
                waiting.append((item, len(waiting) + 1))
    mine = [found for found in waiting if project in (None, found[0].experiment.project)]
    return Queue(
        in_flight=[_queued(*found) for found in in_flight if project in (None, found[0].experiment.project)],
        waiting=[_queued(*found) for found in mine[:MOST_WAITING]],
        num_waiting=len(mine),
        places=settings.max_concurrent_runs,
    )


def _queued(item: repository.Unended, position: int | None) -> QueuedRun:
    run, experiment = item.run, item.experiment
    return QueuedRun(
        run_id=run.id, experiment_id=experiment.id, experiment=experiment.name, arm=item.arm, seed=item.seed,
        priority=experiment.priority, state=run.state, progress=run.step / run.total_steps, pool=item.pool,
        position=position, waiting_reason=run.waiting_reason, created_at=run.created_at,
    )  # fmt: skip


def _view(state: PoolState, pool: Pool, counts: Mapping[tuple[str, AttemptState], int]) -> PoolView:
    return PoolView(
        name=state.name, gpus_per_node=pool.gpus, queue=pool.queue.name if pool.queue else None, nodes=state.nodes,
        nodes_not_ready=state.nodes_not_ready, gpus=state.gpus, gpus_free=state.gpus_free, room=state.room,
        running=counts.get((state.name, AttemptState.RUNNING), 0),
        waiting=counts.get((state.name, AttemptState.SUBMITTED), 0),
    )  # fmt: skip
