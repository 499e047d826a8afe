"""Experiments as the API returns them."""

from datetime import datetime
from enum import StrEnum
from typing import Annotated, Any, Self

from pydantic import ConfigDict, Field, model_validator

from service.schemas.base import View
from service.schemas.costs import Cost
from service.states import RunState
from trainer.contract import Problem
from trainer.contract.frozen import MAX_INTEGER, MAX_NUMBER


class ExperimentState(StrEnum):
    QUEUED = "queued"
    RUNNING = "running"
    PAUSED = "paused"
    """Of the runs that have not ended, each is paused."""
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    """Ended, and at least one run failed."""
    CANCELLED = "cancelled"

    @property
    def is_final(self) -> bool:
        return self in (ExperimentState.SUCCEEDED, ExperimentState.FAILED, ExperimentState.CANCELLED)


class RoundsView(View):
    """How far seeds in rounds are."""

    seeds: list[int]
    """Of an arm, after each round."""
    number: int
    """The round under way, or the last there was, from 1."""
    is_over: bool

    def __str__(self) -> str:
        """`round 2 of 3 (up to 8 of 12 seeds)`."""
        seeds = f"{self.seeds[self.number - 1]} of {self.seeds[-1]} seeds"
        so_far = f"round {self.number} of {len(self.seeds)} (up to {seeds})"
        return f"over after {so_far}" if self.is_over else so_far


class ExperimentSummary(View):
    id: str
    name: str
    project: str
    state: ExperimentState
    created_at: datetime
    created_by: str = ""
    """Name of the token; empty for what a release before has submitted."""
    num_arms: int
    num_runs: int
    counts: dict[RunState, int]
    """Runs by state; states without a run are left out."""
    rounds: RoundsView | None = None
    """Where seeds come in rounds. Progress and what is left are then those of the rounds so far."""
    progress: float
    """0 to 1; a run that has ended counts as done, however it ended."""
    eta_seconds: float | None
    """Of what is left at the speed so far; None while there is no speed yet, or nothing left."""
    gpu_hours: float
    """Process-hours of all attempts so far of the runs that this experiment has trained."""
    cost: Cost | None = None
    """Of these hours, where node pools have prices."""
    gpu_hours_left: float | None = None
    """Process-hours to come, at the cost of a step so far; None while no step has been made, 0 with nothing left."""
    gpu_hours_cap: float | None
    cancel_reason: str
    pause_reason: str = ""
    """Not empty = paused: by whom."""
    concurrency: int = 1
    priority: int = 0
    deleted_at: datetime | None = None
    purge_at: datetime | None = None
    """Where it is deleted: until then it can be restored."""
    tracking_url: str | None
    """The experiment's parent run in MLflow."""


class ExperimentList(View):
    experiments: list[ExperimentSummary]
    next_cursor: str | None
    """Give it as `cursor` for the next page; None on the last."""


class TrialView(View):
    seed: int
    run_id: str
    state: RunState
    shared: bool
    """Trained by another experiment; costs nothing here."""
    step: int
    total_steps: int
    progress: float
    restarts: int
    waiting_reason: str
    reason: str
    tracking_url: str | None


class ArmView(View):
    name: str
    levels: dict[str, str]
    is_baseline: bool
    trials: list[TrialView]


class ExperimentDetail(ExperimentSummary):
    spec: dict[str, Any]
    """The request as it was understood, defaults filled in."""
    arms: list[ArmView]
    warnings: list[str] = Field([])
    """Only in the answer to a submission: what it had no time to look at."""


class Part(View):
    """Some runs of an experiment; nothing named = the whole experiment."""

    model_config = ConfigDict(extra="forbid")

    arms: list[str] = Field([])
    """Names of arms: all their runs."""
    runs: list[str] = Field([])
    """Ids of runs."""

    @model_validator(mode="after")
    def _names_something(self) -> Self:
        # A program whose list has turned out empty does not mean the whole experiment.
        if self.model_fields_set and self.is_whole:
            raise ValueError("names of arms or ids of runs; for the whole experiment leave out both")
        return self

    @property
    def is_whole(self) -> bool:
        return not (self.arms or self.runs)


class Changes(View):
    """What is to be different from now on; what is left out stays as it is."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    priority: int | None = Field(None, ge=-MAX_INTEGER, le=MAX_INTEGER)
    """Queued runs of higher priority start first."""
    concurrency: int | None = Field(None, ge=1, le=MAX_INTEGER)
    """How many of its runs may train at the same time. Those that train go on where it is lowered."""
    gpu_hours: float | None = Field(None, gt=0, le=MAX_NUMBER)
    """Cap on GPU-hours over all runs; null = no cap."""
    pool: str | Annotated[list[str], Field(min_length=1)] | None = None
    """Node pool, or several in order of preference. Runs on any other pool write a checkpoint and move."""

    @model_validator(mode="after")
    def _asks_for_something(self) -> Self:
        given = self.model_dump(exclude_unset=True)
        if not given or any(value is None for name, value in given.items() if name != "gpu_hours"):
            raise ValueError("one or more of priority, concurrency, gpu_hours (null = no cap), pool")
        return self


class ArmCurve(View):
    """One metric of an arm over its seeds: at `steps[i]` there are `seeds[i]` of them, `mean[i]` is theirs."""

    arm: str
    is_baseline: bool
    steps: list[int]
    mean: list[float]
    low: list[float]
    """The lowest seed's value."""
    high: list[float]
    seeds: list[int]


class ArmCurves(View):
    metric: str
    arms: list[ArmCurve]
    """In the order of the request; those without a number yet are left out."""


class PlannedRun(View):
    id: str
    digest: str
    arm: str
    seed: int
    total_steps: int
    already: RunState | None
    """State of the equal run that exists and would be shared; None where it would be new."""
    weights_of: str | None
    """The finished run of the same pretraining whose weights a new run would measure; None where it would train."""
    round: int | None = None
    """The round that it is of, from 1; None where seeds do not come in rounds."""


class PlannedArm(View):
    name: str
    levels: dict[str, str]
    is_baseline: bool


class Plan(View):
    """What a request would do."""

    arms: list[PlannedArm]
    runs: list[PlannedRun]
    launch_requests: list[dict[str, Any]]
    """TorchX AppDefs of the first attempts."""
    estimated_gpu_hours: float
    """Process-hours of the runs that would be new; of all rounds, where seeds come in rounds."""
    estimated_cost: Cost | None = None
    """Of these hours in the first pool; None where that has no price."""
    first_round_gpu_hours: float | None = None
    """Of the first round alone, after which arms that are decided get no more; None where there are no rounds."""
    estimate_basis: str
    problems: list[Problem] = Field([])
    """Empty: a request with problems is refused with 422 and the same list."""
    warnings: list[str] = Field([])
    """What there was no time to look at; each run looks before its first step."""
