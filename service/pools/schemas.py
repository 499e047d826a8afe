"""Node pools as the API returns them."""

from service.experiments.schemas import View


class PoolView(View):
    name: str
    gpus_per_node: int
    """0: runs of this pool compute on CPUs."""
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


class PoolList(View):
    pools: list[PoolView]
    """Empty where attempts are processes of the service's machine."""
