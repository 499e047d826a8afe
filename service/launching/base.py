"""What is the same wherever attempts run: TorchX submits, watches and stops them with a scheduler of ours."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torchx.runner import Runner
from torchx.schedulers.api import Scheduler
from torchx.specs import AppState

from k8s.appdef import ROLE, LaunchRequest, app_for
from k8s.capacity import PoolState
from service.launching.port import JobState, Launch
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


class TorchxLauncher(ABC):
    """A TorchX Runner with our own scheduler, given to it by name."""

    def __init__(self, settings: Settings, scheduler: Scheduler, entrypoint: tuple[str, ...]) -> None:
        self._settings, self._entrypoint = settings, entrypoint
        self._scheduler: Any = scheduler
        self._runner = Runner("mcf", {SCHEDULER: lambda session_name, **_: scheduler})

    def close(self) -> None:
        self._scheduler.close()

    def request(self, launch: Launch) -> dict[str, Any]:
        return asdict(app_for(self._request(launch)))

    def has_gpus(self, placement: Placement) -> bool:
        return num_gpus() > 0

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
            weights_uri=self._settings.run_uri(launch.weights_of) if launch.weights_of else None,
            entrypoint=self._entrypoint,
            **where,
        )


def handle(name: str) -> str:
    return f"{SCHEDULER}://mcf/{name}"


def num_gpus() -> int:
    folder = Path("/proc/driver/nvidia/gpus")
    return len(list(folder.iterdir())) if folder.is_dir() else 0
