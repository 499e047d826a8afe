"""What an experiment is: a run varied by factors, repeated over seeds, and where its runs go. Pydantic only."""

from collections.abc import Mapping
from typing import Any

from pydantic import Field

from trainer.contract.frozen import Frozen


class Placement(Frozen):
    """Where runs go. Decides speed and cost, never numbers."""

    pool: str | tuple[str, ...] = "local"
    """Node pool, or several in order of preference: the first that has room is taken."""
    min_nodes: int = Field(1, ge=1)
    max_nodes: int = Field(1, ge=1)
    processes_per_node: int = Field(1, ge=1)
    """Worker processes on a node: one a GPU, or CPU processes where there is none."""
    priority: int = 0
    """Higher goes first among queued runs."""
    teacher_cache_gib: float = Field(0, ge=0)
    """Disk of a node for the teacher's features of training images, for small subsets seen often; 0 = none kept."""
    compile: bool = False
    """torch.compile the networks: minutes more before the first step, then faster; equal up to rounding."""

    @property
    def pools(self) -> tuple[str, ...]:
        return (self.pool,) if isinstance(self.pool, str) else self.pool

    @property
    def max_world_size(self) -> int:
        return self.max_nodes * self.processes_per_node


class ExperimentSpec(Frozen):
    """A question: arms that differ in named factors, each repeated over seeds, judged against a baseline."""

    name: str = Field(pattern=r"^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$")
    """Lower-case letters, digits and hyphens."""
    base: Mapping[str, Any]
    """A RunSpec, or what differs from `preset`: tiny, vit-s16, vit-b16, vit-l16, vit-h14."""
    factors: Mapping[str, list[Any]] = Field(default_factory=dict)
    """Dotted field of the RunSpec -> its levels; every combination is an arm."""
    seeds: int | list[int] = 3
    """Repeats of every arm: a number n (seeds 0..n-1), or the seeds themselves. Not one more axis."""
    baseline: Mapping[str, Any] = Field(default_factory=dict)
    """Level of each factor in the arm the others are compared with; the first level where not given."""
    concurrency: int = Field(1, ge=1)
    """Runs of this experiment in flight at once."""
    placement: Placement = Placement()
    gpu_hours: float | None = Field(None, gt=0)
    """Cap over all runs (process-hours on CPU): reached = what still runs is cancelled. None = no cap."""
    share: bool = True
    """False trains again what another experiment has already trained."""

    @property
    def seed_list(self) -> list[int]:
        return list(range(self.seeds)) if isinstance(self.seeds, int) else list(self.seeds)
