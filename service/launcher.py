"""The launcher port: attempts are submitted, watched, stopped and read through it. Here TorchX does that.

The only module of the service that knows TorchX and k8s/.
"""

import sys
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

from torchx.runner import Runner
from torchx.schedulers.api import Scheduler
from torchx.specs import AppState

from k8s.appdef import ROLE, LaunchRequest, app_for
from k8s.local import KILLED, LocalScheduler
from k8s.pools import Pool, read_pools
from service.reconciler.transitions import JobState
from service.settings import Settings
from trainer.records import SPEC
from trainer.spec import Placement

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
    tracking_run_id: str | None = None

    @property
    def name(self) -> str:
        return attempt_name(self.run_id, self.attempt)


def attempt_name(run_id: str, attempt: int) -> str:
    return f"{run_id}-{attempt}"


class Launcher(Protocol):
    def request(self, launch: Launch) -> dict[str, Any]:
        """What would be submitted."""

    def submit(self, launch: Launch) -> None:
        """Start the attempt unless it has been started before."""

    def look(self, name: str) -> tuple[JobState, str]:
        """State of an attempt and the scheduler's words for it."""

    def cancel(self, name: str) -> None:
        """Ask an attempt to stop; returns before it has."""

    def live(self) -> list[str]:
        """Names of all attempts that have not ended."""

    def lines(self, name: str, num_nodes: int, *, follow: bool = False) -> Iterator[str]:
        """What the nodes printed; while following, "" where there is nothing new yet."""


def pools_of(settings: Settings) -> Mapping[str, Pool] | None:
    """The node pools of the cluster; None where attempts are processes of this machine. Raises PoolsError."""
    return read_pools(settings.pools) if settings.scheduler != "local" and settings.pools else None


class TorchxLauncher:
    """Launcher over a TorchX Runner with our own scheduler, given to it by name and not by entry point."""

    def __init__(
        self, settings: Settings, pools: Mapping[str, Pool] | None = None, *, entrypoint: tuple[str, ...] = ()
    ) -> None:
        """`pools`: the cluster's; None = attempts are processes of this machine."""
        self._settings = settings
        self._pools = pools
        self._entrypoint = entrypoint
        self._scheduler: Scheduler
        if pools is None:
            self._scheduler = LocalScheduler("mcf", settings.attempts_dir)
        else:
            # Their client takes a second to import.
            from k8s.jobset_scheduler import JobSetScheduler
            from k8s.volcano_scheduler import VolcanoScheduler

            kind = VolcanoScheduler if settings.scheduler == "volcano" else JobSetScheduler
            self._scheduler = kind("mcf", pools, settings.namespace)
        self._runner = Runner("mcf", {SCHEDULER: lambda session_name, **_: self._scheduler})

    def request(self, launch: Launch) -> dict[str, Any]:
        return asdict(app_for(self._request(launch)))

    def submit(self, launch: Launch) -> None:
        options = {"auto_set_cuda_visible_devices": True} if self._pools is None else {}
        self._runner.run(app_for(self._request(launch)), SCHEDULER, options)

    def look(self, name: str) -> tuple[JobState, str]:
        status = self._runner.status(_handle(name))
        if status is None:
            return JobState.ABSENT, ""
        if status.state is AppState.FAILED and status.structured_error_msg == KILLED:
            return JobState.LOST, status.msg
        return STATES[status.state], status.msg

    def cancel(self, name: str) -> None:
        self._runner.cancel(_handle(name))

    def live(self) -> list[str]:
        return [app.app_id for app in self._scheduler.list() if STATES[app.state].is_live]

    def lines(self, name: str, num_nodes: int, *, follow: bool = False) -> Iterator[str]:
        if self._runner.status(_handle(name)) is None:
            return
        nodes = {
            node: iter(self._runner.log_lines(_handle(name), ROLE, node, should_tail=follow))
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

    def _request(self, launch: Launch) -> LaunchRequest:
        settings, placement = self._settings, launch.placement
        run_uri = settings.run_uri(launch.run_id)
        if self._pools is None:
            gpus = placement.processes_per_node if _num_gpus() >= placement.max_world_size else 0
            threads, python = max(1, settings.cores // placement.max_world_size), sys.executable
        else:
            pool = self._pools[placement.pool]
            gpus = placement.processes_per_node if pool.gpus else 0
            threads, python = pool.threads, pool.python
        return LaunchRequest(
            name=launch.name,
            attempt=launch.attempt,
            spec_uri=f"{run_uri}/{SPEC}",
            run_uri=run_uri,
            placement=placement,
            tracking_uri=settings.tracking_uri,
            tracking_run_id=launch.tracking_run_id,
            python=python,
            threads=threads,
            gpus_per_node=gpus,
            entrypoint=self._entrypoint,
        )


def _handle(name: str) -> str:
    return f"{SCHEDULER}://mcf/{name}"


def _num_gpus() -> int:
    folder = Path("/proc/driver/nvidia/gpus")
    return len(list(folder.iterdir())) if folder.is_dir() else 0
