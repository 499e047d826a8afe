"""Attempts as processes of this machine."""

import sys
from collections.abc import Callable, Iterator

from torchx.specs import AppState

from k8s.appdef import ROLE, LaunchRequest, app_for
from k8s.local import KILLED, LocalScheduler
from service.launching.base import SCHEDULER, STATES, TorchxLauncher, handle, num_gpus
from service.launching.port import Job, JobState, Launch
from service.settings import Settings


class LocalLauncher(TorchxLauncher):
    """Attempts are processes of this machine."""

    def __init__(self, settings: Settings, entrypoint: tuple[str, ...] = ()) -> None:
        super().__init__(settings, LocalScheduler("mcf", settings.attempts_dir), entrypoint)

    def start(self, changed: Callable[[str], None]) -> None:
        """Nobody tells of a process that ends; it is seen at the next look."""

    def submit(self, launch: Launch) -> None:
        self._runner.run(app_for(self._request(launch)), SCHEDULER, {"auto_set_cuda_visible_devices": True})

    def look(self, launch: Launch) -> Job:
        status = self._runner.status(handle(launch.name))
        if status is None:
            return Job()
        if status.state is AppState.FAILED and status.structured_error_msg == KILLED:
            return Job(JobState.LOST, status.msg)
        return Job(STATES[status.state], status.msg)

    def live(self) -> list[str]:
        return list(self._scheduler.live())

    def lines(self, name: str, num_nodes: int, *, follow: bool = False) -> Iterator[str]:
        if self._runner.status(handle(name)) is not None:
            yield from super().lines(name, num_nodes, follow=follow)

    def tail(self, name: str, num_nodes: int, count: int) -> list[str]:
        found: list[str] = []
        for node in range(num_nodes):
            prefix = f"[node {node}] " if num_nodes > 1 else ""
            lines = self._scheduler.tail(name, ROLE, node, count)
            found += [prefix + line for line in lines if line.strip()]
        return found

    def _request(self, launch: Launch) -> LaunchRequest:
        placement = launch.placement
        gpus = placement.processes_per_node if num_gpus() >= placement.max_world_size else 0
        threads = max(1, self._settings.cores // placement.max_world_size)
        return self._launch_request(launch, gpus_per_node=gpus, threads=threads, python=sys.executable)
