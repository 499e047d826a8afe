"""The launcher port: attempts are submitted, watched, stopped and read through it. Here TorchX does that.

The only module of the service that knows TorchX and k8s/.
"""

import sys
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

from torchx.runner import Runner
from torchx.schedulers.api import Scheduler
from torchx.specs import AppState

from k8s.appdef import ROLE, LaunchRequest, app_for
from k8s.capacity import PoolState
from k8s.local import KILLED, LocalScheduler
from k8s.pools import Pool, read_pools
from service.reconciler.facts import Job, JobState
from service.settings import Settings
from trainer.contract import Placement
from trainer.contract.records import SPEC

SCHEDULER = "mcf"

STATES = {
    AppState.UNSUBMITTED: JobState.PENDING,
    AppState.SUBMITTED: JobState.PENDING,
    AppState.PENDING: JobState.PENDING,
    AppState.RUNNING: JobState.RUNNING,
    AppState.SUCCEEDED: JobState.SUCCEEDED,
    AppState.FAILED: JobState.FAILED,
    AppState.CANCELLED: JobState.CANCELLED,
    # Not known is not gone: starting another attempt now could make two.
    AppState.UNKNOWN: JobState.PENDING,
}


@dataclass(frozen=True)
class Launch:
    """One attempt of a run."""

    run_id: str
    attempt: int
    placement: Placement
    """With one pool: the one that was chosen."""
    tracking_run_id: str | None = None

    @property
    def name(self) -> str:
        return attempt_name(self.run_id, self.attempt)


def attempt_name(run_id: str, attempt: int) -> str:
    return f"{run_id}-{attempt}"


class Launcher(Protocol):
    """Raises LauncherAway from whatever asks a scheduler that does not answer."""

    def start(self, changed: Callable[[str], None]) -> None:
        """From now on tell the name of every attempt that has news, from any thread, where the scheduler can."""

    def close(self) -> None:
        """Attempts go on."""

    def request(self, launch: Launch) -> dict[str, Any]:
        """What would be submitted."""

    def has_gpus(self, placement: Placement) -> bool:
        """Whether workers would compute on GPUs."""

    def choose(self, placement: Placement) -> str:
        """Of the pools that are wanted the first that has room now, else the first."""

    def submit(self, launch: Launch) -> None:
        """Start the attempt unless it has been started before."""

    def look(self, name: str, placement: Placement) -> Job:
        """How an attempt is, by its scheduler; `placement` as its run has asked for it."""

    def cancel(self, name: str) -> None:
        """Ask an attempt to stop; returns before it has."""

    def live(self) -> list[str]:
        """Names of all attempts that have not ended."""

    def lines(self, name: str, num_nodes: int, *, follow: bool = False) -> Iterator[str]:
        """What the nodes printed; while following, "" where there is nothing new yet."""

    def tail(self, name: str, num_nodes: int, count: int) -> list[str]:
        """The last lines of each node."""

    def pools(self) -> list[PoolState]:
        """The node pools as they are now; none where attempts are processes of this machine."""


class LauncherAway(Exception):
    """The scheduler does not answer; says which."""


def pools_of(settings: Settings) -> Mapping[str, Pool] | None:
    """The node pools of the cluster; None where attempts are processes of this machine. Raises PoolsError."""
    return read_pools(settings.pools) if settings.scheduler != "local" and settings.pools else None


def launcher_for(settings: Settings, pools: Mapping[str, Pool] | None, *, entrypoint: tuple[str, ...] = ()) -> Launcher:
    """`pools`: the cluster's; None = attempts are processes of this machine."""
    if pools is None:
        return LocalLauncher(settings, entrypoint)
    from service.launching.cluster import ClusterLauncher  # its client takes a second to import

    return ClusterLauncher(settings, pools, entrypoint)


class TorchxLauncher(ABC):
    """What is the same wherever attempts run: a TorchX Runner with our own scheduler, given to it by name."""

    def __init__(self, settings: Settings, scheduler: Scheduler, entrypoint: tuple[str, ...]) -> None:
        self._settings, self._entrypoint = settings, entrypoint
        self._scheduler: Any = scheduler
        self._runner = Runner("mcf", {SCHEDULER: lambda session_name, **_: scheduler})

    def close(self) -> None:
        self._scheduler.close()

    def request(self, launch: Launch) -> dict[str, Any]:
        return asdict(app_for(self._request(launch)))

    def has_gpus(self, placement: Placement) -> bool:
        return _num_gpus() > 0

    def choose(self, placement: Placement) -> str:
        return placement.pools[0]

    def cancel(self, name: str) -> None:
        self._runner.cancel(handle(name))

    def live(self) -> list[str]:
        return [app.app_id for app in self._scheduler.list() if STATES[app.state].is_live]

    def lines(self, name: str, num_nodes: int, *, follow: bool = False) -> Iterator[str]:
        nodes = {
            node: iter(self._runner.log_lines(handle(name), ROLE, node, should_tail=follow))
            for node in range(num_nodes)
        }
        while nodes:
            for node, lines in list(nodes.items()):
                prefix = f"[node {node}] " if num_nodes > 1 else ""
                while line := next(lines, None):
                    yield prefix + line
                if line is None:
                    del nodes[node]
            yield ""

    def pools(self) -> list[PoolState]:
        return []

    @abstractmethod
    def _request(self, launch: Launch) -> LaunchRequest:
        """The attempt, with what depends on where it goes."""

    def _launch_request(self, launch: Launch, **where: Any) -> LaunchRequest:
        """`where`: what of it depends on the machines."""
        run_uri = self._settings.run_uri(launch.run_id)
        return LaunchRequest(
            name=launch.name,
            attempt=launch.attempt,
            spec_uri=f"{run_uri}/{SPEC}",
            run_uri=run_uri,
            placement=launch.placement,
            tracking_uri=self._settings.tracking_uri,
            tracking_run_id=launch.tracking_run_id,
            entrypoint=self._entrypoint,
            **where,
        )


class LocalLauncher(TorchxLauncher):
    """Attempts are processes of this machine."""

    def __init__(self, settings: Settings, entrypoint: tuple[str, ...] = ()) -> None:
        super().__init__(settings, LocalScheduler("mcf", settings.attempts_dir), entrypoint)

    def start(self, changed: Callable[[str], None]) -> None:
        """Nobody tells of a process that ends; it is seen at the next look."""

    def submit(self, launch: Launch) -> None:
        self._runner.run(app_for(self._request(launch)), SCHEDULER, {"auto_set_cuda_visible_devices": True})

    def look(self, name: str, placement: Placement) -> Job:
        status = self._runner.status(handle(name))
        if status is None:
            return Job()
        if status.state is AppState.FAILED and status.structured_error_msg == KILLED:
            return Job(JobState.LOST, status.msg)
        return Job(STATES[status.state], status.msg)

    def lines(self, name: str, num_nodes: int, *, follow: bool = False) -> Iterator[str]:
        if self._runner.status(handle(name)) is not None:
            yield from super().lines(name, num_nodes, follow=follow)

    def tail(self, name: str, num_nodes: int, count: int) -> list[str]:
        return list(deque(filter(str.strip, self.lines(name, num_nodes)), count * num_nodes))

    def _request(self, launch: Launch) -> LaunchRequest:
        placement = launch.placement
        gpus = placement.processes_per_node if _num_gpus() >= placement.max_world_size else 0
        threads = max(1, self._settings.cores // placement.max_world_size)
        return self._launch_request(launch, gpus_per_node=gpus, threads=threads, python=sys.executable)


def handle(name: str) -> str:
    return f"{SCHEDULER}://mcf/{name}"


def _num_gpus() -> int:
    folder = Path("/proc/driver/nvidia/gpus")
    return len(list(folder.iterdir())) if folder.is_dir() else 0
