"""Node pools as the API returns them."""

from datetime import datetime

from service.schemas.base import View
from service.states import RunState


class PoolView(View):
    name: str
    gpus_per_node: int
    """0: runs of this pool compute on CPUs."""
    price_per_gpu_hour: float | None = None
    """Of an hour of a process where there are no GPUs; null = not known."""
    currency: str | None = None
    """Of the price."""
    queue: str | None
    """Kueue's or Volcano's queue that decides who may start; None = whoever comes first."""
    nodes: int
    """Ready for work now."""
    nodes_not_ready: int
    gpus: int
    """Of the nodes that are ready."""
    gpus_free: int
    room: int
    """Pods of a whole node's size that would start at once."""
    running: int
    """Runs of ours that train there."""
    waiting: int
    """Runs of ours that have been sent there and do not train yet."""

    @property
    def price(self) -> str:
        """`3.2 USD`; empty where it is not known."""
        return f"{self.price_per_gpu_hour:g} {self.currency}" if self.price_per_gpu_hour is not None else ""


class QueuedRun(View):
    """A run that has not ended, as the first of the experiments that want it sees it."""

    run_id: str
    experiment_id: str
    experiment: str
    arm: str
    seed: int
    priority: int
    state: RunState
    progress: float
    pool: str
    """Node pool of its attempt; empty without one, or where attempts are processes of the service's machine."""
    position: int | None
    """1 gets the next place; None = has one."""
    waiting_reason: str
    created_at: datetime


class Queue(View):
    in_flight: list[QueuedRun]
    """Runs that hold a place."""
    waiting: list[QueuedRun]
    """Runs without one in their order, 200 at most; positions count those of other projects, too."""
    num_waiting: int
    places: int
    """Runs that may be in flight at once."""


class PoolList(View):
    pools: list[PoolView]
    """Empty where attempts are processes of the service's machine."""
