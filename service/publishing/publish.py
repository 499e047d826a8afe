"""When an experiment has ended: comparison, report, figures, encoders, shared runs and final state go into MLflow."""

from contextlib import suppress
from datetime import datetime
from typing import Protocol

from sqlalchemy import select

from service.compare import figures, paper, plaintext
from service.compare.latex import latex
from service.compare.plot import svg
from service.compare.service import report_of
from service.db import Database
from service.publishing import encoders
from service.publishing.note import note
from service.publishing.trials import trial_params, trial_tags
from service.publishing.view import view_link, view_tag
from service.states import RunState
from service.tables import Arm, Experiment, Run, Trial
from service.tracking import TrackedRun, Tracker, TrackingDeleted, TrackingGone
from trainer.contract.records import Result, final_metrics


class Keep(Protocol):
    """Called after each step with the trial that MLflow now has: that is written down, and the lease renewed.

    Raises Superseded when the lease has been lost or the service stops: then somebody else publishes.
    """

    def __call__(self, done: Trial | None = None) -> None: ...


class Superseded(Exception):
    """What is being published is out of date, or somebody else's to publish."""


def publish(db: Database, tracker: Tracker, experiment_id: str, parent: TrackedRun, keep: Keep) -> None:
    """Raises TrackingAway and Superseded; doing it again replaces what is there, and skips the trials that are done.

    No session is open while MLflow is waited for.
    """
    keep()  # it may have waited for longer than the lease
    try:
        tracker.expect_there(parent)
    except TrackingGone:
        return  # for good, and what would be written with it
    with db.read() as session:
        found = report_of(session, experiment_id, tracker.uri)
        experiment = session.get_one(Experiment, experiment_id)
        rows = session.execute(
            select(Run, Arm, Trial)
            .join(Trial, Trial.run_id == Run.id)
            .join(Arm, Arm.id == Trial.arm_id)
            .where(Trial.experiment_id == experiment_id)
        ).all()
    for run, arm, trial in rows:
        if run.state is not RunState.SUCCEEDED or trial.published:
            continue
        # A single run that was deleted is nobody's worry; an experiment that was is met again below.
        with suppress(TrackingDeleted, TrackingGone):
            if run.home_id != experiment_id:
                _copy(tracker, parent, experiment_id, run, arm, trial.seed)
            elif run.tracking_run_id:
                _complete(tracker, run.tracking_run_id, run)
            keep(trial)
    tracker.retire(parent, experiment_id, {run.id for run, _, _ in rows})
    comparison = found.comparison
    drawn = {name: figures.draw(comparison, name, "svg").decode() for name in figures.drawable(comparison)}
    files = {
        "report.html": paper.html(found, drawn),
        "comparison.md": plaintext.markdown(comparison),
        "comparison.csv": plaintext.comma_separated(comparison),
        "comparison.json": comparison.model_dump_json(indent=2),
        "comparison.tex": latex(comparison),
        "comparison.svg": svg(comparison),
        **{f"figures/{name}.svg": text for name, text in drawn.items()},
    }
    for name, text in files.items():
        keep()
        tracker.write(parent.run_id, {name: text})
    tracker.tag_experiment(parent.experiment_id, *view_tag(comparison, experiment.created_at))
    link = view_link(parent.experiment_id, comparison)
    tracker.describe(parent, note(comparison, encoders.model_name(experiment), link))
    for encoder in encoders.first_seeds([(run, arm, trial.seed) for run, arm, trial in rows]):
        keep()
        with suppress(TrackingDeleted, TrackingGone):
            encoders.register(tracker, experiment, comparison, *encoder)
    keep()
    states = {trial.state_of(run) for run, _, trial in rows}
    state = RunState.FAILED if RunState.FAILED in states else RunState.SUCCEEDED
    if experiment.cancelled_at or states == {RunState.CANCELLED}:
        state = RunState.CANCELLED
    tracker.finish(parent.run_id, state, {"mcf.state": state.value})


def _copy(tracker: Tracker, parent: TrackedRun, experiment_id: str, run: Run, arm: Arm, seed: int) -> None:
    """A run another experiment trained gets a child here with its final numbers, so that the arms can be compared."""
    tags = trial_tags(experiment_id, arm.name, arm.levels, seed, run.digest)
    child = tracker.ensure_child(
        parent,
        own={"mcf.experiment_id": experiment_id, "mcf.copy_of": run.id},
        name=f"{arm.name} seed {seed}",
        tags=tags | {"mcf.trained_in": run.home_id},
        params=trial_params(arm.levels, run.spec),
    )
    tracker.log_metrics(child.run_id, final_metrics(Result.model_validate(run.result)), _end(run))
    _complete(tracker, child.run_id, run)
    tracker.finish(child.run_id, run.state, {"mcf.state": run.state.value})


def _complete(tracker: Tracker, tracking_run_id: str, run: Run) -> None:
    """What only the service knows of a run, or MLflow's table has no column for: cost, and what it was trained on."""
    result = Result.model_validate(run.result)
    cost: dict[str, float | None] = {
        "process_hours": run.process_seconds / 3600, "restarts": run.restarts, "images_seen": result.images_seen,
    }  # fmt: skip
    if run.mean_images_per_second is not None:
        cost |= {
            "images_per_second": run.mean_images_per_second, "waiting_share": run.waiting_share,
            "peak_share": run.peak_share, "compile_seconds": run.compile_seconds,
        }  # fmt: skip
    spent = {f"cost/{name}": float(value) for name, value in cost.items() if value is not None}
    tracker.log_metrics(tracking_run_id, spent, _end(run))
    known = {
        "mcf.subset_digest": result.subset_digest,
        "mcf.held_out_digest": result.held_out_digest,
        "mcf.teacher_digest": run.spec.get("teacher", {}).get("sha256"),
        "mcf.world_sizes": " ".join(map(str, run.world_sizes)),
        **{f"mcf.trained_with.{name}": number for name, number in result.software.items()},
    }
    tracker.tag(tracking_run_id, {name: value for name, value in known.items() if value})


def _end(run: Run) -> datetime:
    assert run.ended_at  # it has succeeded
    return run.ended_at
