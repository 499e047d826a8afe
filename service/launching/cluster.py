"""Attempts on a Kubernetes cluster, on its node pools."""

import functools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from typing import ParamSpec, TypeVar

from k8s.appdef import LaunchRequest, app_for
from k8s.capacity import PoolState, state_of_pool
from k8s.cluster import ClusterAway
from k8s.extras import MOVE_AFTER
from k8s.jobset_scheduler import JobSetScheduler
from k8s.logs import tail_of
from k8s.pools import Pool
from k8s.scheduler import ClusterScheduler
from k8s.volcano_scheduler import VolcanoScheduler
from service.launching.base import SCHEDULER, STATES, TorchxLauncher
from service.launching.port import Job, JobState, Launch, LauncherAway
from service.settings import Settings
from trainer.contract import Placement

SCHEDULERS: dict[str, type[ClusterScheduler]] = {"jobset": JobSetScheduler, "volcano": VolcanoScheduler}

Asked = ParamSpec("Asked")
Answer = TypeVar("Answer")


def _told(method: Callable[Asked, Answer]) -> Callable[Asked, Answer]:
    """With the launcher's word for a cluster that is away."""

    @functools.wraps(method)
    def wrapped(*args: Asked.args, **kwargs: Asked.kwargs) -> Answer:
        try:
            return method(*args, **kwargs)
        except ClusterAway as error:
            raise LauncherAway(str(error)) from error

    return wrapped


class ClusterLauncher(TorchxLauncher):
    def __init__(self, settings: Settings, pools: Mapping[str, Pool], entrypoint: tuple[str, ...] = ()) -> None:
        self.scheduler = SCHEDULERS[settings.scheduler]("mcf", pools, settings.namespace)
        super().__init__(settings, self.scheduler, entrypoint)
        self._pools = pools

    def start(self, changed: Callable[[str], None]) -> None:
        self.scheduler.start(changed)

    def has_gpus(self, placement: Placement) -> bool:
        return any(self._pools[name].gpus for name in placement.pools if name in self._pools)

    @_told
    def choose(self, placement: Placement) -> str:
        # A pool that the service is not set up with any more is refused when the attempt is sent, in words.
        known = [name for name in placement.pools if name in self._pools]
        roomy = (name for name in known if self._has_room(name, placement))
        return placement.pools[0] if len(known) < 2 else next(roomy, known[0])

    @_told
    def submit(self, launch: Launch) -> None:
        [pool] = launch.placement.pools
        self._runner.run(app_for(self._request(launch, pool)), SCHEDULER, {})

    @_told
    def look(self, launch: Launch) -> Job:
        name, placement = launch.name, launch.placement
        seen = self.scheduler.observe(name)
        self.scheduler.tend(name, seen, lambda pool: app_for(self._request(launch, pool)))
        if seen is None:
            return Job()
        # A queue decides by quota and not by nodes: it is left to do so.
        room_in = self._other_with_room(name, placement) if seen.pending and len(placement.pools) > 1 else ""
        state = STATES[seen.state]
        waits = self.scheduler.nodes_wait(name) if state is JobState.RUNNING else ""
        return Job(state, seen.message, seen.restarts, len(seen.out_of_memory), room_in, waits)

    @_told
    def cancel(self, name: str) -> None:
        self._scheduler.cancel(name)

    @_told
    def live(self) -> list[str]:
        return super().live()

    def lines(self, name: str, num_nodes: int, *, follow: bool = False) -> Iterator[str]:
        try:
            yield from super().lines(name, num_nodes, follow=follow)
        except ClusterAway as error:
            yield f"({error})\n"

    @_told
    def tail(self, name: str, num_nodes: int, count: int) -> list[str]:
        return tail_of(self.scheduler.cluster, name, count)

    @_told
    def pools(self) -> list[PoolState]:
        return [state_of_pool(name, pool, self.scheduler.nodes(pool)) for name, pool in self._pools.items()]

    def _has_room(self, pool: str, placement: Placement) -> bool:
        return self.scheduler.room(pool, placement.processes_per_node) >= placement.min_nodes

    def _other_with_room(self, name: str, placement: Placement) -> str:
        """Another wanted pool that could start the attempt now, once it has waited long enough where it is."""
        sent = self.scheduler.sent(name)
        if sent is None or self._pools[sent.pool].queue or datetime.now(UTC) - sent.at < MOVE_AFTER:
            return ""
        others = [pool for pool in placement.pools if pool != sent.pool and pool in self._pools]
        return next((pool for pool in others if self._has_room(pool, placement)), "")

    def _request(self, launch: Launch, name: str = "") -> LaunchRequest:
        """As a node of this pool runs it; "" = the first that the run may go to."""
        name = name or launch.placement.pools[0]
        pool = self._pools.get(name)
        gpus = launch.placement.processes_per_node if pool and pool.gpus else 0
        return self._launch_request(
            replace(launch, placement=launch.placement.model_copy(update={"pool": name})), gpus_per_node=gpus,
            threads=pool.threads if pool else 1, python=pool.python if pool else "python",
            agent="trainer.elastic.agent",
        )  # fmt: skip
