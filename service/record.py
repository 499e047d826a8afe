"""What the store keeps of an experiment, beside what its runs leave: enough to write a lost database anew.

    <store>/experiments/<experiment id>.json      an ExperimentRecord: request, arms, trials, and what was done since
    <store>/runs/<run id>/sent.json               a Sent (trainer/contract/records.py): the newest attempt

Written whenever something of it changes, by the reconciler, within seconds.
"""

from collections import defaultdict
from datetime import datetime
from typing import Any

from pydantic import Field
from sqlalchemy import select, update
from sqlalchemy.orm import Session

from service.tables import Arm, Charge, Experiment, PoolCharge, Run, Trial
from trainer.contract.frozen import Frozen

FOLDER = "experiments"


class ArmRecord(Frozen):
    id: int
    """In the database that is lost: looks name arms by it."""
    position: int
    name: str
    levels: dict[str, Any]
    is_baseline: bool
    cancel_reason: str
    sample: dict[str, Any] | None


class TrialRecord(Frozen):
    arm: int
    """Position."""
    seed: int
    run_id: str
    cancel_reason: str
    pause_reason: str


class RunRecord(Frozen):
    """A run as its experiment asked for it. How far it is stands in its directory."""

    id: str
    digest: str
    pretraining: str
    spec: dict[str, Any]
    placement: dict[str, Any]
    private_to: str
    home_id: str
    weights_of: str | None
    created_at: datetime
    total_steps: int
    tracking_id: str | None
    tracking_run_id: str | None
    checkpoints_kept: int | None
    charged_seconds: float | None
    """What this experiment has paid for it."""
    charged_pools: dict[str, float] = Field(default_factory=dict)
    """Of that, what is known by node pool."""


class ExperimentRecord(Frozen):
    id: str
    name: str
    project: str
    spec: dict[str, Any]
    created_at: datetime
    created_by: str
    idempotency_key: str | None
    request_digest: str
    concurrency: int
    priority: int
    gpu_hours: float | None
    cancelled_at: datetime | None
    cancel_reason: str
    pause_reason: str
    deleted_at: datetime | None
    purge_at: datetime | None
    restored_at: datetime | None
    delete_reason: str
    remove_objects: bool
    remove_tracking: bool
    tracking_id: str | None
    tracking_run_id: str | None
    published: bool
    looks: list[dict[str, Any]]
    arms: list[ArmRecord]
    trials: list[TrialRecord]
    runs: list[RunRecord]


OWN = tuple(name for name in ExperimentRecord.model_fields if name not in ("arms", "trials", "runs"))
"""Columns of the experiment that are kept as they are."""
RUN = tuple(name for name in RunRecord.model_fields if not name.startswith("charged_"))


def object_name(experiment_id: str) -> str:
    return f"{FOLDER}/{experiment_id}.json"


def record_of(session: Session, experiment: Experiment) -> ExperimentRecord:
    arms = session.scalars(select(Arm).where(Arm.experiment_id == experiment.id).order_by(Arm.position)).all()
    positions = {arm.id: arm.position for arm in arms}
    rows = session.execute(
        select(Trial, Run, Charge.process_seconds)
        .join(Run, Run.id == Trial.run_id)
        .outerjoin(Charge, (Charge.run_id == Run.id) & (Charge.experiment_id == Trial.experiment_id))
        .where(Trial.experiment_id == experiment.id)
        .order_by(Trial.id)
    ).all()
    by_pool: dict[str, dict[str, float]] = defaultdict(dict)
    for charge in session.scalars(select(PoolCharge).where(PoolCharge.experiment_id == experiment.id)):
        by_pool[charge.run_id][charge.pool] = charge.process_seconds
    return ExperimentRecord(
        **{name: getattr(experiment, name) for name in OWN},
        arms=[ArmRecord(**{name: getattr(arm, name) for name in ArmRecord.model_fields}) for arm in arms],
        trials=[
            TrialRecord(
                arm=positions[trial.arm_id], seed=trial.seed, run_id=run.id, cancel_reason=trial.cancel_reason,
                pause_reason=trial.pause_reason,
            )
            for trial, run, _ in rows
        ],
        runs=[
            RunRecord(
                **{name: getattr(run, name) for name in RUN}, charged_seconds=seconds, charged_pools=by_pool[run.id]
            )
            for run, seconds in {run.id: (run, seconds) for _, run, seconds in rows}.values()
        ],
    )  # fmt: skip


def unrecorded(session: Session, limit: int) -> list[tuple[Experiment, int]]:
    """Experiments of which the store has not the newest, with their revisions; the oldest first."""
    query = select(Experiment).where(Experiment.recorded != Experiment.revision, Experiment.purged_at.is_(None))
    # PostgreSQL takes nearly all for unrecorded, so without an order it reads the whole table and not the index.
    query = query.order_by(Experiment.created_at, Experiment.id).limit(limit)
    return [(experiment, experiment.revision) for experiment in session.scalars(query)]


def note_recorded(session: Session, experiment_id: str, revision: int) -> None:
    """Once the store has it. Where it has changed since, another service may have written what is newer: once more."""
    mine = update(Experiment).where(Experiment.id == experiment_id)
    still = session.scalar(
        mine.where(Experiment.revision == revision).values(recorded=revision).returning(Experiment.id)
    )
    if still is None:
        session.execute(mine.values(recorded=-1))
