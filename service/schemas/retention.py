"""Deletion, and what the store holds, as the API takes and returns it."""

from datetime import datetime

from pydantic import ConfigDict, Field, model_validator

from service.schemas.base import View
from trainer.contract.frozen import MAX_INTEGER


class KeptRun(View):
    run_id: str
    because: str
    """Who else uses it."""


class Freed(View):
    removed_runs: list[str]
    """Nobody else uses them: they go, too."""
    kept_runs: list[KeptRun]
    bytes: int
    """That the removed runs take in the store now."""
    later_runs: list[str] = Field(default_factory=list)
    """Of the kept ones those that only deleted experiments use, too: they go with the last of these, unless one is
    restored."""
    later_bytes: int = 0
    """That these take in the store now."""


class NamedExperiment(View):
    experiment_id: str
    name: str


class JointDeletion(Freed):
    """What deleting several experiments together would do. A run that several of them use is there once, and goes
    with the last of them."""

    experiments: list[NamedExperiment]


class Deletion(NamedExperiment, Freed):
    """What deleting an experiment does, or did."""

    objects: bool
    """Whether their directories go; else they stay in the store, and no experiment knows of them."""
    tracking: bool
    """Whether their runs in MLflow are deleted, too."""
    purge_at: datetime | None
    """Until then it can be restored; null = nothing has been done (dry_run)."""


class StoredExperiment(View):
    experiment_id: str
    name: str
    project: str
    created_at: datetime
    state: str
    deleted_at: datetime | None
    runs: int
    bytes: int
    """Of all its runs."""
    own_bytes: int
    """Of those that no other experiment uses, but for deleted ones: what deleting it frees, at the latest with the
    last of these."""


class StoredThing(View):
    name: str
    objects: int
    bytes: int


class StoreCheck(View):
    uri: str
    bytes: int
    run_bytes: int
    experiments: list[StoredExperiment]
    """The largest first."""
    orphans: list[StoredThing]
    """Directories that look like a run's, and that no run of this database has left. Another service that shares the
    store may have: nothing here is ever removed."""
    others: list[StoredThing]
    """What else lies there, such as artifacts of MLflow."""
    missing: list[str]
    """Runs that should have left something, and have no directory."""
    being_removed: int
    """Runs of deleted experiments whose directories are not gone yet."""


class ProjectLimits(View):
    """What an admin sets for a project. What is null has no limit."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    max_places: int | None = Field(None, ge=1, le=MAX_INTEGER)
    """Runs of the project in flight at once."""
    max_queued: int | None = Field(None, ge=1, le=MAX_INTEGER)
    """Runs of the project that wait; a submission that would make more is refused with 429."""
    max_priority: int | None = Field(None, ge=-MAX_INTEGER, le=MAX_INTEGER)
    """Highest `placement.priority` that a spec may ask for."""
    delete_after_days: float | None = Field(None, gt=0, le=36_500)
    """Experiments are deleted so long after their last run has ended; they can be restored for a while."""
    keep_checkpoints: int | None = Field(None, ge=0, le=1_000_000)
    """Of a run that has succeeded, the last ones; 0 = all; null = MCF_KEEP_CHECKPOINTS."""


class ProjectView(ProjectLimits):
    name: str
    experiments: int = 0
    in_flight: int = 0
    queued: int = 0


class ProjectList(View):
    projects: list[ProjectView]


class ProjectChanges(ProjectLimits):
    """What is left out stays as it is; null takes a limit away."""

    @model_validator(mode="after")
    def _asks_for_something(self) -> "ProjectChanges":
        if not self.model_fields_set:
            raise ValueError(f"one or more of {', '.join(ProjectLimits.model_fields)}; null takes a limit away")
        return self
