"""What is known of a run, from the database, its directory and MLflow."""

import math
from collections.abc import Sequence

from sqlalchemy.orm import Session

from service.costs import prices_of
from service.db import Database
from service.errors import NotFound, Unavailable
from service.runs import repository
from service.schemas.runs import AttemptView, Checkpoints, Histories, RunDetail, RunSummary, SessionView, UsedBy
from service.settings import Settings
from service.tables import Run
from service.text import run_in_mlflow
from service.tracking import Tracker, TrackingAway
from trainer.contract.records import Readings, Result
from trainer.store.objects import StorageError, open_store
from trainer.store.rundir import list_checkpoints


def get(session: Session, run_id: str, *, project: str | None = None) -> Run:
    """`project`: one of its experiments must use the run. Raises NotFound."""
    run = session.get(Run, run_id.replace("\0", ""))
    if run is None or (project and not repository.is_used_in(session, run.id, project)):
        raise NotFound(f"There is no run {run_id!r}. GET /v1/runs lists all.")
    return run


def detail(db: Database, settings: Settings, run_id: str, project: str | None) -> RunDetail:
    """`project`: the only one whose experiments are named. Raises NotFound."""
    with db.read() as session:
        run = get(session, run_id)
        attempts = repository.attempts(session, run_id)
        users = repository.used_by(session, run_id, project)
    return RunDetail(
        **summary(run, settings).model_dump(),
        spec=run.spec,
        uri=settings.run_uri(run.id),
        attempts=[AttemptView.model_validate(item, from_attributes=True) for item in attempts],
        sessions=[SessionView.model_validate(item) for item in run.sessions],
        used_by=[UsedBy(experiment_id=e.id, experiment=e.name, arm=arm.name, seed=seed) for e, arm, seed in users],
        result=Result.model_validate(run.result) if run.result else None,
        readings=Readings.model_validate(run.readings or {}),
    )


def summary(run: Run, settings: Settings) -> RunSummary:
    left = run.total_steps - run.step
    eta = left * run.train_seconds / run.step if run.step and left and not run.state.is_final else None
    return RunSummary(
        id=run.id, digest=run.digest, state=run.state, stage=run.stage, step=run.step, total_steps=run.total_steps,
        weights_of=run.weights_of, progress=run.step / run.total_steps, eta_seconds=eta,
        images_per_second=run.images_per_second, mean_images_per_second=run.mean_images_per_second,
        waiting_share=run.waiting_share, peak_share=run.peak_share, compile_seconds=run.compile_seconds,
        losses=run.losses, restarts=run.restarts, world_sizes=run.world_sizes, gpu_hours=run.process_seconds / 3600,
        cost=prices_of(settings).of(run.process_seconds, run.pool_seconds),
        waiting_reason=run.waiting_reason, nodes_wait=run.nodes_wait, reason=run.reason, kind=run.kind,
        created_at=run.created_at, started_at=run.started_at, ended_at=run.ended_at,
        tracking_run_id=run.tracking_run_id,
        tracking_url=run_in_mlflow(settings.tracking_uri, run.tracking_id, run.tracking_run_id),
    )  # fmt: skip


def checkpoints(db: Database, settings: Settings, run_id: str) -> Checkpoints:
    """Complete checkpoints, oldest first. Raises NotFound, Unavailable."""
    with db.read() as session:
        get(session, run_id)
    uri = settings.run_uri(run_id)
    try:
        return Checkpoints(uri=uri, checkpoints=list_checkpoints(open_store(uri)))
    except StorageError as error:
        raise Unavailable(f"The store does not answer: {error}") from error


def histories(db: Database, tracker: Tracker | None, run_id: str, names: list[str] | None) -> Histories:
    """Metric curves from MLflow; empty while the run has no place there. Raises NotFound, Unavailable."""
    tracking_run_id = _tracked(db, run_id)
    if tracker is None or tracking_run_id is None:
        return Histories(metrics={})
    try:
        found = tracker.histories(tracking_run_id, names)
    except TrackingAway as error:
        raise Unavailable(str(error)) from error
    return Histories(metrics={name: _finite(points) for name, points in found.items()})


def sampled(db: Database, tracker: Tracker | None, run_id: str, names: Sequence[str], points: int) -> Histories:
    """Curves from MLflow thinned to what a chart can show; of those it does not have none. Raises as `histories`."""
    tracking_run_id = _tracked(db, run_id)
    if tracker is None or tracking_run_id is None:
        return Histories(metrics={})
    try:
        there = set(tracker.metric_names(tracking_run_id))
        asked = [name for name in names if name in there]
        found = {name: tracker.sampled([tracking_run_id], name, points).get(tracking_run_id, []) for name in asked}
    except TrackingAway as error:
        raise Unavailable(str(error)) from error
    return Histories(metrics={name: _finite(points) for name, points in found.items() if points})


def picture_steps(db: Database, tracker: Tracker | None, run_id: str) -> list[int]:
    """Steps of which there is a panel, in order. Raises NotFound, Unavailable."""
    return list(_pictures(tracker, _tracked(db, run_id)))


def newest_picture(db: Database, tracker: Tracker | None, run_id: str) -> int:
    """The step of the newest panel. Raises NotFound, Unavailable."""
    if steps := picture_steps(db, tracker, run_id):
        return steps[-1]
    raise NotFound(_no_picture(run_id))


def picture(db: Database, tracker: Tracker | None, run_id: str, step: int | None = None) -> bytes:
    """The panel of a step, or the newest one, as PNG. Raises NotFound, Unavailable."""
    tracking_run_id = _tracked(db, run_id)
    paths = _pictures(tracker, tracking_run_id)
    if not paths or tracker is None or tracking_run_id is None:
        raise NotFound(_no_picture(run_id))
    if step is not None and step not in paths:
        raise NotFound(f"Run {run_id} has no picture of step {step}; it has pictures of {', '.join(map(str, paths))}.")
    try:
        return tracker.picture(tracking_run_id, paths[max(paths) if step is None else step])
    except TrackingAway as error:
        raise Unavailable(str(error)) from error


def _no_picture(run_id: str) -> str:
    return f"Run {run_id} has no picture yet; the first comes after cadence.picture_steps steps."


def _pictures(tracker: Tracker | None, tracking_run_id: str | None) -> dict[int, str]:
    if tracker is None or tracking_run_id is None:
        return {}
    try:
        return tracker.pictures(tracking_run_id)
    except TrackingAway as error:
        raise Unavailable(str(error)) from error


def _tracked(db: Database, run_id: str) -> str | None:
    with db.read() as session:
        return get(session, run_id).tracking_run_id


def _finite(points: Sequence[tuple[int, float]]) -> list[tuple[int, float | None]]:
    """JSON has no other numbers."""
    return [(step, value if math.isfinite(value) else None) for step, value in points]
