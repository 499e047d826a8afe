"""Experiments as the API returns them."""

from datetime import datetime
from enum import StrEnum
from typing import Any

from pydantic import Field

from service.schemas.base import View
from service.states import RunState
from trainer.contract import Problem


class ExperimentState(StrEnum):
    QUEUED = "queued"
    RUNNING = "running"
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
    gpu_hours_left: float | None = None
    """Process-hours to come, at the cost of a step so far; None while no step has been made, 0 with nothing left."""
    gpu_hours_cap: float | None
    cancel_reason: str
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
    first_round_gpu_hours: float | None = None
    """Of the first round alone, after which arms that are decided get no more; None where there are no rounds."""
    estimate_basis: str
    problems: list[Problem] = Field([])
    """Empty: a request with problems is refused with 422 and the same list."""
    warnings: list[str] = Field([])
    """What there was no time to look at; each run looks before its first step."""
