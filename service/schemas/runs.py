"""Runs as the API returns them."""

from datetime import datetime
from enum import StrEnum
from typing import Any

from pydantic import Field

from service.schemas.base import View
from service.schemas.costs import Cost
from service.states import AttemptState, RunState
from trainer.contract.records import Checkpoint, Readings, Result


class RunSummary(View):
    id: str
    digest: str
    state: RunState
    stage: str
    """training, evaluating or done."""
    step: int
    total_steps: int
    weights_of: str | None
    """The run of the same pretraining whose weights it measures; null where it has trained them itself."""
    progress: float
    eta_seconds: float | None
    """Of the training that is left, at the speed so far."""
    images_per_second: float | None
    """Now; null while it does not train."""
    mean_images_per_second: float | None = None
    """Of all its training, without the first step after each start; null before that has been measured."""
    waiting_share: float | None = None
    """Of that time, the share in which training waited for images."""
    peak_share: float | None = None
    """Of the FLOP/s that its GPUs can do at best; null where that is not known, as on CPUs."""
    compile_seconds: float = 0.0
    """Spent on compiling networks, apart from training."""
    losses: dict[str, float]
    restarts: int
    """Times that training went on after a loss of workers, within attempts and between them."""
    world_sizes: list[int]
    """Processes of each stretch of training."""
    gpu_hours: float
    cost: Cost | None = None
    """Of these hours, where node pools have prices."""
    waiting_reason: str
    """Why it is not training right now; empty while it is, and when it has ended."""
    nodes_wait: str = ""
    """How many nodes it could still use while it trains, and for what they wait."""
    reason: str
    """Why it failed or was cancelled."""
    kind: str
    """Class of the error."""
    created_at: datetime
    started_at: datetime | None
    ended_at: datetime | None
    tracking_run_id: str | None
    """Its MLflow run; null until there is one."""
    tracking_url: str | None
    """Page of that run."""


class RunList(View):
    runs: list[RunSummary]
    next_cursor: str | None


class AttemptView(View):
    name: str
    number: int
    pool: str
    """Node pool it was sent to; empty where attempts are processes of the service's machine."""
    state: AttemptState
    first_step: int
    last_step: int
    created_at: datetime
    ended_at: datetime | None
    reason: str


class SessionView(View):
    """A stretch of training by one set of workers; the next one begins with a restart."""

    attempt: int
    world_size: int
    pools: dict[str, int] = Field(default_factory=dict)
    """How many of its processes are in which node pool; none where that is not known."""
    first_step: int
    step: int
    started_at: datetime
    seen_at: datetime

    @property
    def places(self) -> str:
        """`8 in a100, 8 in spot`; empty where it was in one pool."""
        return ", ".join(f"{count} in {pool}" for pool, count in self.pools.items()) if len(self.pools) > 1 else ""


class UsedBy(View):
    experiment_id: str
    experiment: str
    arm: str
    seed: int


class RunDetail(RunSummary):
    spec: dict[str, Any]
    uri: str
    """Where its checkpoints, result and export are."""
    attempts: list[AttemptView]
    sessions: list[SessionView]
    """World sizes over time."""
    used_by: list[UsedBy]
    result: Result | None
    readings: Readings = Readings()
    """What was measured while it trained (evaluation.every)."""


class Checkpoints(View):
    uri: str
    checkpoints: list[Checkpoint]


class FileKind(StrEnum):
    ENCODER = "encoder"
    """The exported encoder: weights, timm's configuration, model card."""
    CHECKPOINT = "checkpoint"
    """Everything that training goes on from, at one step."""
    RESULT = "result"
    RECORD = "record"
    """What else the run has written down of itself, such as its spec and its readings."""


class RunFile(View):
    name: str
    """In the run's directory, and below /v1/runs/{run_id}/files/."""
    kind: FileKind
    bytes: int
    step: int | None = None
    """Of a checkpoint."""
    sha256: str | None = None
    """Of a checkpoint, as its marker says."""
    save_as: str
    """A name that still tells what it is where it lies alone."""


class RunFiles(View):
    run_id: str
    files: list[RunFile]
    """Encoder, checkpoints from the newest on, result, records."""
    missing: dict[FileKind, str]
    """Kinds without a file, each with why, and when there will be one."""
    weights_of: str | None
    """The run that has trained the weights that this one measures: checkpoints are there."""


class Histories(View):
    metrics: dict[str, list[tuple[int, float | None]]]
    """Metric -> (step, value); of a step that was logged twice the newest value, None where it is not a number."""


class Pictures(View):
    steps: list[int]
    """In order."""
