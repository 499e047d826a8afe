"""What a run leaves in its directory, and where: the second half of the contract. Pydantic only.

    <store>/runs/<run id>/
        spec.json                       the RunSpec
        sent.json                       a Sent: the newest attempt, and where it was sent
        checkpoints/000000120/state.pt  complete exactly when ...
        checkpoints/000000120/COMMITTED ... this Checkpoint stands beside it
        sessions/0001.json              a Session: one stretch of training at one world size, refreshed as it goes
        out_of_memory.json              a MemoryNote: it has run out of memory once, and once more would end it
        fault.json                      a FaultNote: an exception of its own, and the same one once more would end it
        outcome.json                    an Outcome: how the run ended for good
        stages/alignment/checkpoints/   those of a stage of evaluation, which are gone once it has ended, and then ...
        stages/alignment/result.json    ... its StageResult
        unsent.json, unsent/            an Unsent and its files: what MLflow had not taken when the process ended, until
                                        the service has sent it
        readings.json                   Readings: what was measured while it trained
        result.json                     a Result: the numbers the comparison is made of
        export/                         the online encoder as a plain timm ViT, with its model card

The trainer writes, the service reads, but for the spec and sent.json; what is unsent is the service's once the run has
ended.
"""

from collections.abc import Mapping
from datetime import datetime
from enum import StrEnum
from typing import Any, Protocol

from pydantic import Field

from trainer.contract.frozen import Frozen

SPEC = "spec.json"
SENT = "sent.json"
OUTCOME = "outcome.json"
OUT_OF_MEMORY = "out_of_memory.json"
FAULT = "fault.json"
RESULT = "result.json"
READINGS = "readings.json"
SESSIONS = "sessions/"
CHECKPOINTS = "checkpoints/"
STAGES = "stages/"
UNSENT, UNSENT_FILES = "unsent.json", "unsent/"
STATE = "state.pt"
COMMITTED = "COMMITTED"
# In every row of training; other rows, such as the final metrics, are recognised by their first name.
REFERENCE = "loss/total"
EXPORT = "export/"
# In EXPORT, written in this order: the weights, timm's configuration of them, and a card for people. MLflow gets a
# pointer instead of the weights.
WEIGHTS = "model.safetensors"
CONFIG = "config.json"
CARD = "README.md"
POINTER = "export.json"


def session_name(number: int) -> str:
    return f"{SESSIONS}{number:04d}.json"


def stage_folder(stage: str) -> str:
    return f"{STAGES}{stage}/"


def checkpoint_name(step: int) -> str:
    """Folder of the checkpoint after `step` optimizer steps."""
    return f"{CHECKPOINTS}{step:09d}/"


DONE = "done"
"""Stage of a session in which its run has succeeded."""


class Speed(Frozen):
    """How fast a session has trained, from the end of its first step on; evaluation is not in it."""

    images: int = 0
    seconds: float = 0.0
    waiting_seconds: float = 0.0
    """Of `seconds`, those in which training had nothing to do, because images were not there yet."""
    compile_seconds: float = 0.0
    """Spent on compiling networks; not in `seconds`."""
    reading_seconds: float = 0.0
    """Spent on readings; not in `seconds`."""
    peak_share: float | None = None
    """Of the FLOP/s that the GPUs can do at best; None where that is not known, as on CPUs."""


class Session(Frozen):
    """One stretch of training by one set of workers. A restart, of a worker or of an attempt, begins the next."""

    number: int
    attempt: int
    world_size: int
    pools: dict[str, int] = Field(default_factory=dict)
    """Of these processes, how many are in which node pool; none where that is not known, as on one machine."""
    device: str
    first_step: int
    step: int
    """Optimizer steps done so far by the run."""
    total_steps: int
    stage: str
    """training, a stage of evaluation such as `alignment, epoch 3 of 150`, evaluating, or DONE."""
    images_per_second: float | None
    """Of the steps that were logged last."""
    speed: Speed = Speed()
    losses: dict[str, float]
    last_reading: int | None = None
    """Step of the newest reading."""
    trouble: str = ""
    """What somebody has to see to although training goes on, such as an MLflow run that was deleted."""
    started_at: datetime
    seen_at: datetime

    @property
    def process_seconds(self) -> float:
        return (self.seen_at - self.started_at).total_seconds() * self.world_size

    @property
    def pool_seconds(self) -> dict[str, float]:
        """Process-seconds by node pool, as far as that is known."""
        seconds = (self.seen_at - self.started_at).total_seconds()
        return {pool: seconds * processes for pool, processes in self.pools.items()}


class Checkpoint(Frozen):
    """The commit marker: written last, so a checkpoint without one does not exist."""

    step: int
    sha256: str
    bytes: int
    spec_digest: str
    world_size: int
    saved_at: datetime


class Sent(Frozen):
    """The newest attempt. A service whose database is older than the store, or lost, goes on after it."""

    attempt: int
    pool: str
    placement: dict[str, Any]
    weights_of: str | None
    tracking_id: str | None
    tracking_run_id: str | None


class Verdict(StrEnum):
    SUCCEEDED = "succeeded"
    FAILED = "failed"


class Outcome(Frozen):
    """How a run ended for good: finished, or stopped by its own error, which another attempt would meet again."""

    verdict: Verdict
    step: int
    reason: str = ""
    kind: str = ""
    """Class of the error, such as NonFiniteLoss; empty when the run succeeded."""
    ended_at: datetime


def witness(values: Mapping[str, float]) -> str:
    """Of a row of metrics, the one whose history shows whether MLflow has the row."""
    return REFERENCE if REFERENCE in values else min(values)


class Unsent(Frozen):
    """What MLflow had not taken when the process of rank 0 ended. If the run goes on, the next one logs it again; if it
    has ended, the service sends what MLflow has not got since, and removes it."""

    rows: list[tuple[int, int, dict[str, float]]]
    """Step, time in milliseconds, numbers."""
    files: list[str]
    """Names of artifacts; each is below UNSENT_FILES."""


class MemoryNote(Frozen):
    """Another process may have taken the memory the first time; once more, with passes of one cell, it was the spec."""

    at: datetime
    reason: str
    cells_a_pass: int = 1
    """That did not fit."""


class FaultNote(Frozen):
    """An exception that no other part of the cluster has caused. Once may be an accident; twice it is the spec."""

    at: datetime
    step: int
    """Of the newest checkpoint then. A run that has got further since has met two accidents."""
    kind: str
    place: str
    reason: str

    def is_again(self, kind: str, place: str, step: int) -> bool:
        return (self.kind, self.place, self.step) == (kind, place, step)


class Metric(Frozen):
    name: str
    value: float
    unit: str
    higher_is_better: bool
    low: float | None = None
    """Ends of the 95 % interval over the test images, where the metric is a mean over them (docs/evaluation.md)."""
    high: float | None = None

    @property
    def logged(self) -> dict[str, float]:
        """The numbers by the names they have in MLflow."""
        found = {self.name: self.value, f"{self.name}/low": self.low, f"{self.name}/high": self.high}
        return {name: value for name, value in found.items() if value is not None}


class Floors(Frozen):
    """The probe on what was never trained, in the probe's own metric: what an arm has to beat."""

    pixels: float
    random_encoder: float
    """The run's own encoder as it was drawn, before the first step."""


class Reading(Frozen):
    """What was measured of the encoder as it was after `step` optimizer steps, by the measures of the final Result."""

    step: int
    images_seen: int
    probe: Metric | None
    sanity: list[Metric]
    seconds: float
    """That it took."""

    @property
    def metrics(self) -> list[Metric]:
        """The probe first."""
        return [*([self.probe] if self.probe else []), *self.sanity]


class Readings(Frozen):
    """All readings of a run, in step order."""

    readings: tuple[Reading, ...] = ()
    note: str = ""
    """What is left out, and why; empty where nothing is."""

    def with_reading(self, reading: Reading) -> "Readings":
        """The same step is read once: what an earlier session has read of it gives way."""
        others = (before for before in self.readings if before.step != reading.step)
        found = tuple(sorted((*others, reading), key=lambda each: each.step))
        return self.model_copy(update={"readings": found})

    def at(self, step: int) -> Reading | None:
        return next((reading for reading in self.readings if reading.step == step), None)


class StageResult(Frozen):
    """The numbers of a stage of evaluation, of the epoch that its recipe selects."""

    stage: str
    """alignment or parsing."""
    benchmark: str
    selection: str
    """How the epoch was chosen: last, best_on_validation, or best_on_test, which flatters."""
    epoch: int
    """Counted from 1."""
    epochs: int
    primary: str
    """Name of the metric that an epoch is chosen by."""
    metrics: tuple[Metric, ...]
    """On the test split, named STAGE/SELECTION/METRIC: a number never stands without how its epoch was chosen."""
    note: str


class Result(Frozen):
    """The numbers of a finished run."""

    steps: int
    images_seen: int
    subset_size: int
    subset_digest: str
    held_out_digest: str
    undecodable: tuple[str, ...] = ()
    """Images of the subset that others stood in for, by key, with the reason."""
    without_landmarks: int = 0
    """Images of the subset without landmarks, in a run whose masks go by them."""
    probe: Metric | None
    """None where the data has neither landmarks nor labels."""
    floors: Floors | None
    probe_note: str = ""
    """What a reader must know of the probe, such as how many images and which labels."""
    sanity: list[Metric]
    """Metrics that show that training works and do not rank arms."""
    stages: tuple[StageResult, ...] = ()
    """Alignment and parsing, where the spec asks for them."""
    losses: dict[str, float]
    """Means over the last logged steps; not comparable between teachers or mask ratios."""
    export: str
    """Address of the exported encoder."""
    software: dict[str, str] = Field(default_factory=dict)
    """What it was trained with: name -> version, the commit, and the kind of GPU where there was one."""


class Measured(Protocol):
    """A result, or its part that is measured on the trained model."""

    @property
    def probe(self) -> Metric | None: ...
    @property
    def floors(self) -> Floors | None: ...
    @property
    def sanity(self) -> list[Metric]: ...
    @property
    def stages(self) -> tuple[StageResult, ...]: ...


def final_metrics(found: Measured) -> dict[str, float]:
    """The numbers by the names they have in MLflow, whoever logs them."""
    metrics = {name: value for metric in found.sanity for name, value in metric.logged.items()}
    if found.probe:
        metrics |= found.probe.logged
    for stage in found.stages:
        metrics |= {name: value for metric in stage.metrics for name, value in metric.logged.items()}
    if found.floors:
        metrics |= {"floor/pixels": found.floors.pixels, "floor/random_encoder": found.floors.random_encoder}
    return metrics
