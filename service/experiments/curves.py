"""Curves of an experiment's arms: one metric, the mean over an arm's seeds and their range.

MLflow is asked for a hundred runs at a time, thinned to what a chart can show, and once for a run that has succeeded
some time ago: nothing is added to it any more.
"""

import threading
import time
from collections import OrderedDict
from collections.abc import Collection, Sequence
from datetime import UTC, datetime, timedelta

import numpy as np
from sqlalchemy.orm import Session

from service.experiments import repository
from service.experiments import service as experiments
from service.experiments.repository import TrackedTrial
from service.schemas.experiments import ArmCurve
from service.states import RunState
from service.tracking import MAX_RUNS_AT_ONCE, Tracker

MAX_POINTS = 120
"""Of one curve."""
MAX_KEPT = 2000
"""Histories; 120 points are about 15 kB."""
LATE = timedelta(minutes=10)
"""After its end a trainer still sends what MLflow has not taken (trainer/conclude.py)."""
BUDGET_SECONDS = 4.0
"""For MLflow in one answer; what is not told until then is left out, and comes with the next one."""

History = Sequence[tuple[int, float]]


class Curves:
    """Thinned histories of many runs, those of succeeded runs kept; safe to ask from several threads."""

    def __init__(self, tracker: Tracker | None) -> None:
        self._tracker = tracker
        self._kept: OrderedDict[tuple[str, str], History] = OrderedDict()
        self._lock = threading.Lock()

    def of(self, trials: Sequence[TrackedTrial], metric: str) -> list[ArmCurve]:
        """In the order of the request; arms without a number are left out. Raises TrackingAway."""
        histories = self._histories(trials, metric)
        arms: dict[int, list[TrackedTrial]] = {}
        for trial in trials:
            arms.setdefault(trial.position, []).append(trial)
        curves = [
            over_seeds(
                mine[0].arm,
                mine[0].is_baseline,
                [histories[t.tracking_run_id] for t in mine if t.tracking_run_id in histories],
            )
            for _, mine in sorted(arms.items())
        ]
        return [curve for curve in curves if curve.steps]

    def names(self, trials: Sequence[TrackedTrial]) -> list[str]:
        """Metrics of the run that is furthest. Raises TrackingAway."""
        tracked = [trial for trial in trials if trial.tracking_run_id]
        if not tracked or self._tracker is None:
            return []
        furthest = max(tracked, key=lambda trial: trial.step)
        return self._tracker.metric_names(furthest.tracking_run_id or "")

    def _histories(self, trials: Sequence[TrackedTrial], metric: str) -> dict[str, History]:
        """By MLflow run."""
        by_id = {trial.tracking_run_id: trial for trial in trials if trial.tracking_run_id}
        with self._lock:
            found = {id: self._kept[id, metric] for id in by_id if (id, metric) in self._kept}
        missing = [id for id in by_id if id not in found]
        deadline = time.monotonic() + BUDGET_SECONDS
        for start in range(0, len(missing) if self._tracker else 0, MAX_RUNS_AT_ONCE):
            if time.monotonic() > deadline:
                break
            assert self._tracker
            asked = missing[start : start + MAX_RUNS_AT_ONCE]
            told = self._tracker.sampled(asked, metric, MAX_POINTS)
            found |= told
            self._keep({(id, metric): told.get(id, []) for id in asked if _is_complete(by_id[id])})
        return found

    def _keep(self, told: dict[tuple[str, str], History]) -> None:
        with self._lock:
            self._kept |= told
            while len(self._kept) > MAX_KEPT:
                self._kept.popitem(last=False)


def tracked_trials(session: Session, experiment_id: str, arms: Collection[int] | None = None) -> list[TrackedTrial]:
    """Of the arms at these positions, or of all. Raises NotFound."""
    experiments.get(session, experiment_id)
    return repository.tracked_trials(session, experiment_id, arms)


def _is_complete(trial: TrackedTrial) -> bool:
    late = trial.ended_at is None or datetime.now(UTC) - trial.ended_at < LATE
    return trial.state is RunState.SUCCEEDED and not late


def over_seeds(arm: str, is_baseline: bool, histories: Sequence[History]) -> ArmCurve:
    """At steps that any seed has, between its own steps by a straight line; beyond its last one a seed is left out."""
    finite = [np.array([point for point in history if np.isfinite(point[1])]) for history in histories]
    finite = [points for points in finite if len(points)]
    if not finite:
        return ArmCurve(arm=arm, is_baseline=is_baseline, steps=[], mean=[], low=[], high=[], seeds=[])
    steps = np.unique(np.concatenate([points[:, 0] for points in finite]))
    if len(steps) > MAX_POINTS:
        steps = steps[np.unique(np.linspace(0, len(steps) - 1, MAX_POINTS).round().astype(int))]
    # Seeds x steps.
    values = np.stack([np.interp(steps, p[:, 0], p[:, 1], left=np.nan, right=np.nan) for p in finite])
    return ArmCurve(
        arm=arm, is_baseline=is_baseline, steps=steps.astype(int).tolist(),
        mean=np.nanmean(values, axis=0).tolist(), low=np.nanmin(values, axis=0).tolist(),
        high=np.nanmax(values, axis=0).tolist(), seeds=np.isfinite(values).sum(axis=0).tolist(),
    )  # fmt: skip
