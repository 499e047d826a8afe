"""The launcher port: attempts are submitted, watched, stopped and read through it, wherever they run."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Protocol

from k8s.capacity import PoolState
from trainer.contract import Placement


class LauncherAway(Exception):
    """The scheduler does not answer; says which."""


@dataclass(frozen=True)
class Launch:
    """One attempt of a run."""

    run_id: str
    attempt: int
    placement: Placement
    """With one pool: the one that was chosen."""
    tracking_run_id: str | None = None
    weights_of: str | None = None
    """The run of the same pretraining that it starts from."""

    @property
    def name(self) -> str:
        return attempt_name(self.run_id, self.attempt)


def attempt_name(run_id: str, attempt: int) -> str:
    return f"{run_id}-{attempt}"


class JobState(StrEnum):
    """What the scheduler says of an attempt."""

    ABSENT = "absent"
    PENDING = "pending"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    LOST = "lost"
    """Ended from outside, as with its node."""
    CANCELLED = "cancelled"

    @property
    def is_live(self) -> bool:
        return self in (JobState.PENDING, JobState.RUNNING)


@dataclass(frozen=True)
class Job:
    """An attempt as its scheduler sees it."""

    state: JobState = JobState.ABSENT
    message: str = ""
    """Why it waits, or how it ended."""
    crashes: int = 0
    """Times that a container of it ended by itself."""
    out_of_memory: int = 0
    """Times of these that it had used up its memory."""
    room_in: str = ""
    """Another pool that the run would go to, where it need not wait; empty while it may wait here."""
    nodes_wait: str = ""
    """How many nodes it could still use, and for what they wait."""


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

    def look(self, launch: Launch) -> Job:
        """How an attempt is, by its scheduler. What it lacks is seen to, such as nodes beyond its first.

        `launch`: as it was submitted, but with all pools that its run has asked for.
        """

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
