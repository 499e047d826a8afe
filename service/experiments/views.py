"""From rows to what the API says of experiments."""

from collections.abc import Sequence

from sqlalchemy.orm import Session

from service.costs import prices_of
from service.experiments import repository
from service.experiments.repository import ShownTrial, Tally
from service.schemas.experiments import (
    ArmView,
    ExperimentDetail,
    ExperimentState,
    ExperimentSummary,
    RoundsView,
    TrialView,
)
from service.settings import Settings
from service.states import RunState
from service.tables import Experiment
from service.text import run_in_mlflow

WAITS = {RunState.QUEUED, RunState.PAUSED}
IN_FLIGHT = (RunState.STARTING, RunState.RUNNING, RunState.INTERRUPTED)


def summaries(session: Session, experiments: Sequence[Experiment], settings: Settings) -> list[ExperimentSummary]:
    ids = [experiment.id for experiment in experiments]
    tallies, arms = repository.tallies(session, ids), repository.num_arms(session, ids)
    return [_summary(item, tallies.get(item.id, Tally()), arms.get(item.id, 0), settings) for item in experiments]


def detail(session: Session, experiment: Experiment, settings: Settings) -> ExperimentDetail:
    arms = repository.arms_of(session, experiment.id)
    trials: dict[int, list[TrialView]] = {arm.id: [] for arm in arms}
    for trial in repository.shown_trials(session, experiment.id):
        trials[trial.arm_id].append(_trial(trial, experiment, settings))
    [summary] = summaries(session, [experiment], settings)
    views = [ArmView(name=a.name, levels=a.levels, is_baseline=a.is_baseline, trials=trials[a.id]) for a in arms]
    return ExperimentDetail(**summary.model_dump(), spec=experiment.spec, arms=views)


def state_of(experiment: Experiment, counts: dict[RunState, int]) -> ExperimentState:
    """Lists are filtered by the same rule in SQL (search.py): who changes one changes both."""
    states = set(counts)
    if experiment.cancelled_at:
        return ExperimentState.CANCELLED
    if states & set(IN_FLIGHT):
        return ExperimentState.RUNNING
    if RunState.QUEUED in states:
        # Between two runs it is as much under way as during them.
        return ExperimentState.QUEUED if states <= WAITS else ExperimentState.RUNNING
    if RunState.PAUSED in states or (experiment.pause_reason and experiment.has_look_to_come):
        return ExperimentState.PAUSED
    if experiment.has_look_to_come:
        return ExperimentState.RUNNING
    if RunState.FAILED in states:
        return ExperimentState.FAILED
    # Of single runs that were cancelled the table says so; the rest is what was asked for then.
    return ExperimentState.CANCELLED if states == {RunState.CANCELLED} else ExperimentState.SUCCEEDED


def _summary(experiment: Experiment, tally: Tally, num_arms: int, settings: Settings) -> ExperimentSummary:
    state = state_of(experiment, tally.counts)
    return ExperimentSummary(
        id=experiment.id,
        name=experiment.name,
        project=experiment.project,
        state=state,
        created_at=experiment.created_at,
        created_by=experiment.created_by,
        num_arms=num_arms,
        num_runs=tally.num_runs,
        counts=tally.counts,
        rounds=_rounds(experiment),
        progress=tally.done / tally.num_runs if tally.num_runs else 0.0,
        # Nobody knows how long a pause takes.
        eta_seconds=None
        if state is ExperimentState.PAUSED
        else _eta(tally, min(experiment.concurrency, settings.max_concurrent_runs)),
        gpu_hours=tally.paid_process_seconds / 3600,
        cost=prices_of(settings).of(tally.paid_process_seconds, tally.paid_by_pool),
        gpu_hours_left=_hours_left(tally),
        gpu_hours_cap=experiment.gpu_hours,
        cancel_reason=experiment.cancel_reason,
        pause_reason=experiment.pause_reason,
        concurrency=experiment.concurrency,
        priority=experiment.priority,
        deleted_at=experiment.deleted_at,
        purge_at=experiment.purge_at,
        tracking_url=run_in_mlflow(settings.tracking_uri, experiment.tracking_id, experiment.tracking_run_id),
    )


def _rounds(experiment: Experiment) -> RoundsView | None:
    asked = experiment.spec["seeds"]
    if not isinstance(asked, dict):
        return None
    is_over = not experiment.has_look_to_come
    number = len(experiment.looks) + (0 if is_over else 1)
    return RoundsView(seeds=asked["rounds"], number=number, is_over=is_over)


def _eta(tally: Tally, concurrency: int) -> float | None:
    if not (tally.steps and tally.steps_left):
        return None
    going = sum(count for state, count in tally.counts.items() if not state.is_final)
    return tally.steps_left * tally.train_seconds / tally.steps / max(1, min(concurrency, going))


def _hours_left(tally: Tally) -> float | None:
    if not tally.own_steps_left:
        return 0.0
    return tally.own_steps_left * tally.process_seconds / tally.steps / 3600 if tally.steps else None


def _trial(trial: ShownTrial, experiment: Experiment, settings: Settings) -> TrialView:
    return TrialView(
        seed=trial.seed,
        run_id=trial.run_id,
        state=trial.state,
        shared=trial.home_id != experiment.id,
        step=trial.step,
        total_steps=trial.total_steps,
        progress=trial.step / trial.total_steps,
        restarts=trial.restarts,
        waiting_reason=trial.waiting_reason,
        reason=trial.reason,
        tracking_url=run_in_mlflow(settings.tracking_uri, trial.tracking_id, trial.tracking_run_id),
    )
