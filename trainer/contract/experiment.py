"""What an experiment is: a run varied by factors, repeated over seeds, and where its runs go. Pydantic only."""

from collections.abc import Mapping
from typing import Any

from pydantic import Field, field_validator, model_validator

from trainer.contract.frozen import MAX_INTEGER, Asked
from trainer.contract.rounds import EXAMPLE, Rounds, asked_for

NAME = r"^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$"
"""Of experiments and of projects."""


class Extra(Asked):
    """Nodes that a run uses while they can be had, and does without otherwise."""

    nodes: int = Field(ge=1)
    """So many beside `min_nodes`."""
    pool: str | tuple[str, ...] | None = None
    """Their pool, or several in order of preference: each node takes the first that has room. null = the run's own."""
    mixed_gpus: bool = False
    """`true` lets GPUs of different types train one run: it goes at the pace of the slowest."""

    @property
    def pools(self) -> tuple[str, ...]:
        return (self.pool,) if isinstance(self.pool, str) else self.pool or ()


class Placement(Asked):
    """Where runs go. This decides speed and cost, never numbers."""

    pool: str | tuple[str, ...] = "local"
    """A node pool, or several in order of preference: a run takes the first that has room."""
    min_nodes: int = Field(1, ge=1)
    """A run starts when it has this many nodes."""
    max_nodes: int = Field(1, ge=1)
    """A run uses up to this many nodes. The short form of `extra` without a pool; where `extra` says more, this follows
    from it."""
    extra: Extra | None = None
    """Nodes beyond `min_nodes`, in pools of their own: spot nodes beside one that stays, say."""
    processes_per_node: int = Field(1, ge=1)
    """Worker processes per node: one per GPU, or CPU processes on a node without GPUs."""
    priority: int = 0
    """Queued runs of higher priority start first."""
    teacher_cache_gib: float = Field(0, ge=0)
    """Disk space per node for the teacher's features of training images. Helps small subsets seen often; 0: off."""
    compile: bool | None = None
    """torch.compile the networks: a minute or more before a node's first step, then faster. null = on GPUs, not on
    CPUs. Results are equal up to rounding."""
    cells_a_pass: int | None = Field(None, ge=1)
    """Cells of the step that go through the networks together. null = as many as a GPU holds, found at the start, and
    up to 64 images on a CPU. Results are equal up to rounding."""

    @model_validator(mode="before")
    @classmethod
    def _count_extra_nodes(cls, given: Any) -> Any:
        """`max_nodes` where only `extra` says it; what is no number, or out of bounds, is refused by its own field."""
        if not isinstance(given, Mapping) or "max_nodes" in given:
            return given
        extra, least = given.get("extra"), given.get("min_nodes", 1)
        more = extra.get("nodes") if isinstance(extra, Mapping) else getattr(extra, "nodes", None)
        if isinstance(more, int) and isinstance(least, int) and 1 <= more <= MAX_INTEGER - least:
            return {**given, "max_nodes": least + more}
        return given

    @property
    def pools(self) -> tuple[str, ...]:
        return (self.pool,) if isinstance(self.pool, str) else self.pool

    @property
    def extra_pools(self) -> tuple[str, ...]:
        """Where nodes beyond `min_nodes` go; () = where the run goes."""
        return self.extra.pools if self.extra else ()

    @property
    def max_world_size(self) -> int:
        return self.max_nodes * self.processes_per_node


class ExperimentSpec(Asked):
    """A question: arms that differ in named factors, repeated over seeds, compared with a baseline."""

    name: str = Field(pattern=NAME)
    """Lower-case letters, digits and hyphens."""
    base: Mapping[str, Any]
    """The run that all arms share: a whole RunSpec, or what differs from a `preset` (tiny, vit-s16, vit-b16, vit-l16,
    vit-h14)."""
    factors: Mapping[str, list[Any]] = Field(default_factory=dict)
    """Each factor is a dotted field of the run and a list of its levels. Every combination is an arm."""
    seeds: int | list[int] | Rounds = 3
    """Repeats of each arm: a number n (seeds 0 to n-1), a list of seeds, or rounds: `{rounds: [4, 8, 12]}` trains the
    arms that are undecided after 4 seeds further. Seeds are repeats, not one more factor."""
    baseline: Mapping[str, Any] = Field(default_factory=dict)
    """The level of each factor in the arm that the others are compared with. Default: the first level."""
    concurrency: int = Field(1, ge=1)
    """How many runs of this experiment may train at the same time."""
    placement: Placement = Placement()
    gpu_hours: float | None = Field(None, gt=0)
    """Cap on GPU-hours over all runs (process-hours on CPUs). When it is reached, what still runs is cancelled."""
    forecast: int | None = Field(None, ge=1)
    """Images that the comparison forecasts the arms at, where `data.subset_size` is a factor (docs/comparison.md)."""
    share: bool = True
    """`false` trains runs again that another experiment has already trained."""

    @field_validator("seeds", mode="before")
    @classmethod
    def _seeds_are_numbers_that_differ(cls, asked: Any) -> Any:
        if isinstance(asked, Mapping | Rounds):
            return asked_for(asked)
        seeds = asked if isinstance(asked, list | tuple) else [asked - 1] if type(asked) is int else []
        if not seeds or len(set(map(repr, seeds))) < len(seeds) or not all(map(_is_seed, seeds)):
            raise ValueError(
                f"a number of seeds from 1, a list of different seeds from 0 to {MAX_INTEGER}, such as [0, 1, 2], or "
                f"rounds, such as {EXAMPLE}"
            )
        return asked

    @property
    def rounds(self) -> Rounds | None:
        """None = all seeds are trained, whatever they show."""
        return self.seeds if isinstance(self.seeds, Rounds) else None

    @property
    def seed_list(self) -> list[int]:
        """All that an arm may have."""
        if isinstance(self.seeds, Rounds):
            return self.seeds.seed_list
        return list(range(self.seeds)) if isinstance(self.seeds, int) else list(self.seeds)

    @property
    def first_seeds(self) -> list[int]:
        """Those that every arm has from the beginning."""
        return self.seeds.seeds_of(1) if isinstance(self.seeds, Rounds) else self.seed_list

    @property
    def rank_by(self) -> str | None:
        """What `base.evaluation` asks to rank by."""
        evaluation = self.base.get("evaluation")
        return evaluation.get("rank_by") if isinstance(evaluation, Mapping) else None


def _is_seed(value: Any) -> bool:
    # In Python, true is the number 1.
    return type(value) is int and 0 <= value <= MAX_INTEGER
