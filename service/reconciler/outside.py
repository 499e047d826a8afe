"""What the reconciler sees and does outside of the database: launcher, run directory, MLflow. No SQL here."""

import contextlib
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from service.launching.port import Job, JobState, Launch, Launcher, LauncherAway, attempt_name
from service.publishing.trials import trial_params, trial_tags
from service.reconciler.directories import Directories
from service.reconciler.facts import Action, Observed, RunFacts
from service.reconciler.repository import RunLease
from service.settings import Settings
from service.tables import Experiment, Run
from service.tracking import TrackedRun, Tracker, TrackingAway, TrackingDeleted, TrackingGone
from trainer.contract import Placement, RunSpec
from trainer.contract.records import SENT, SPEC, UNSENT, UNSENT_FILES, Result, Sent, Verdict
from trainer.contract.records import Session as TrainingSession
from trainer.store.objects import Store, open_store
from trainer.store.rundir import read_readings, read_result, read_sent, read_unsent

# The last lines of every node that are kept when an attempt ends.
TAIL_LINES = 60


@dataclass(frozen=True)
class Look:
    """One look at a run: what decides, and what is only shown."""

    seen: Observed
    progress: dict[str, Any]
    """Columns of the run, from its sessions."""
    result: Result | None = None
    tracked: TrackedRun | None = None


class Outside:
    """Everything outside of the database, for one service."""

    def __init__(self, settings: Settings, launcher: Launcher, tracker: Tracker | None) -> None:
        self._settings = settings
        self.launcher = launcher
        self.tracker = tracker
        self._untracked: dict[str, str] = {}
        """Why an experiment has no place in MLflow yet."""
        self._directories = Directories(settings.progress_pause)

    @property
    def num_looked_at(self) -> int:
        """Runs that this service has looked at and that have not ended."""
        return len(self._directories)

    def look(self, lease: RunLease, facts: RunFacts, now: datetime) -> Look:
        """Raises StorageError when the run's directory cannot be read."""
        store = open_store(self._settings.run_uri(lease.run.id))
        # The scheduler first: a job that is seen ended here had written its outcome before.
        job = Job()
        number = facts.attempt.number if facts.attempt else 0
        placement = Placement.model_validate(lease.run.placement)
        if facts.attempt:
            run = lease.run
            job = self.launcher.look(Launch(run.id, number, placement, run.tracking_run_id, run.weights_of))
        outcome, sessions = self._directories.read(lease.run.id, store, number, job, now)
        result = read_result(store) if outcome and outcome.verdict is Verdict.SUCCEEDED else None
        seen = Observed(
            job=job,
            step=max([session.step for session in sessions] + [outcome.step if outcome else 0]),
            sessions_of_attempt=sum(session.attempt == number for session in sessions),
            outcome=outcome,
            has_result=result is not None,
            trouble=sessions[-1].trouble if sessions else "",
        )
        tracked = None
        if _is_ending(facts, seen):
            seen = replace(seen, log_tail=self._tail(lease.run.id, number, placement))
        if _may_open(facts, seen, now):
            sent = read_sent(store)
            seen = replace(seen, pool=self.launcher.choose(placement), sent=sent.attempt if sent else 0)
            seen, tracked = self._prepare(lease, seen)
        progress = progress_of(sessions) | _readings(store, sessions, lease.run, has_ended=outcome is not None)
        progress["nodes_wait"] = job.nodes_wait[:500]
        return Look(seen, progress, result, tracked)

    def act(self, action: Action, lease: RunLease, facts: RunFacts) -> None:
        """Do it outside; raises what the store or the scheduler raise, and is then done again."""
        assert facts.attempt
        name = attempt_name(lease.run.id, facts.attempt.number)
        if action is Action.CANCEL:
            self.launcher.cancel(name)
            return
        placement = Placement.model_validate(lease.run.placement)
        # The pool is written down before: whoever submits this attempt again sends it to the same.
        placement = placement.model_copy(update={"pool": facts.attempt.pool or placement.pools[0]})
        spec = RunSpec.model_validate(lease.run.spec)
        run, store = lease.run, open_store(self._settings.run_uri(lease.run.id))
        store.put(SPEC, spec.model_dump_json(indent=2).encode())
        sent = Sent(
            attempt=facts.attempt.number, pool=facts.attempt.pool, placement=run.placement, weights_of=run.weights_of,
            tracking_id=run.tracking_id, tracking_run_id=run.tracking_run_id,
        )  # fmt: skip
        store.put(SENT, sent.model_dump_json().encode())
        self.launcher.submit(Launch(run.id, facts.attempt.number, placement, run.tracking_run_id, run.weights_of))

    def settle(self, lease: RunLease) -> None:
        """Tell MLflow how the run ended, and what the run itself could not. Raises TrackingAway, StorageError."""
        run = lease.run
        self._directories.forget(run.id)
        if self.tracker and run.tracking_run_id:
            home = lease.home
            if home.tracking_id and home.tracking_run_id and not home.cancelled_at:
                # Its experiment's, where the comparison will be. A single run that was deleted is nobody's worry.
                with contextlib.suppress(TrackingGone):
                    self.tracker.expect_there(TrackedRun(home.tracking_id, home.tracking_run_id))
            self._send_unsent(open_store(self._settings.run_uri(run.id)), self.tracker, run.tracking_run_id)
            tags = {"mcf.state": run.state.value, "mcf.reason": run.reason or "-"}
            self.tracker.finish(run.tracking_run_id, run.state, tags)

    def _send_unsent(self, store: Store, tracker: Tracker, tracking_run_id: str) -> None:
        unsent = read_unsent(store)
        if unsent is None:
            return
        files = {name: UNSENT_FILES + name for name in unsent.files}
        with contextlib.suppress(TrackingGone, TrackingDeleted):
            tracker.send(tracking_run_id, unsent.rows)
            for name, kept in files.items():
                tracker.upload(tracking_run_id, name, store.get(kept))
        # Those of an earlier process, too.
        store.delete([UNSENT, *(entry.name for entry in store.list(UNSENT_FILES))])

    def parent_of(self, experiment: Experiment) -> TrackedRun | None:
        """The experiment's parent run in MLflow, created where it does not exist. Raises TrackingAway."""
        if experiment.tracking_id and experiment.tracking_run_id:
            return TrackedRun(experiment.tracking_id, experiment.tracking_run_id)
        if self.tracker is None:
            return None
        try:
            parent = self.tracker.ensure_parent(experiment_id=experiment.id, name=experiment.name, tags={})
        except TrackingAway as error:
            self._untracked[experiment.id] = str(error)
            raise
        self._untracked.pop(experiment.id, None)
        return parent

    def _prepare(self, lease: RunLease, seen: Observed) -> tuple[Observed, TrackedRun | None]:
        """Before an attempt is opened: the run's place in MLflow exists."""
        if self.tracker is None:
            return seen, None
        try:
            return seen, self._ensure_trial(self.tracker, lease)
        except TrackingDeleted as error:
            # What it logs waits with the trainer until it is restored.
            return (seen if lease.run.tracking_run_id else replace(seen, not_ready=str(error))), None
        except TrackingAway as error:
            return replace(seen, not_ready=str(error)), None

    def _ensure_trial(self, tracker: Tracker, lease: RunLease) -> TrackedRun:
        """The run's child run in MLflow, RUNNING, with params and tags. Raises TrackingAway."""
        home, run = lease.home, lease.run
        if not (home.tracking_id and home.tracking_run_id):
            raise TrackingAway(self._untracked.get(home.id, "the experiment's run in MLflow is being created"))
        return tracker.ensure_child(
            # A run that found a new home stays where its history is.
            TrackedRun(run.tracking_id or home.tracking_id, home.tracking_run_id),
            own={"mcf.run_id": run.id},
            name=f"{lease.arm.name} seed {lease.seed}",
            tags=trial_tags(home.id, lease.arm.name, lease.arm.levels, lease.seed, run.digest),
            params=trial_params(lease.arm.levels, run.spec),
        )

    def _tail(self, run_id: str, number: int, placement: Placement) -> str:
        """What was printed last; that it cannot be read holds nothing up."""
        try:
            return "".join(self.launcher.tail(attempt_name(run_id, number), placement.max_nodes, TAIL_LINES))
        except LauncherAway as error:
            return f"({error})\n"


def _may_open(facts: RunFacts, seen: Observed, now: datetime) -> bool:
    between = not (facts.attempt and facts.attempt.is_live)
    due = facts.not_before is None or now >= facts.not_before
    wanted = facts.admitted and not (facts.cancel_reason or facts.pause_reason)
    return between and due and wanted and seen.outcome is None


def _is_ending(facts: RunFacts, seen: Observed) -> bool:
    """Whether what the attempt printed has to be read now: its pods are going, or have gone."""
    attempt, job = facts.attempt, seen.job.state
    if attempt is None or not attempt.is_live or job is JobState.ABSENT:
        return False
    if not job.is_live:
        return True
    return not attempt.log_tail and bool(facts.cancel_reason or facts.pause_reason or attempt.reason or seen.outcome)


def progress_of(sessions: Sequence[TrainingSession]) -> dict[str, Any]:
    """Columns of a run that follow from its sessions."""
    if not sessions:
        return {}
    last = sessions[-1]
    seconds = sum((session.seen_at - session.started_at).total_seconds() for session in sessions)
    return {
        "stage": last.stage,
        "total_steps": last.total_steps,
        "images_per_second": last.images_per_second,
        **_speed(sessions),
        "losses": last.losses,
        "restarts": len(sessions) - 1,
        "world_sizes": [session.world_size for session in sessions],
        "sessions": [_stretch(session) for session in sessions],
        "train_seconds": seconds,
        "process_seconds": sum(session.process_seconds for session in sessions),
        "pool_seconds": seconds_by_pool(sessions),
        "started_at": sessions[0].started_at,
    }


def seconds_by_pool(sessions: Iterable[TrainingSession]) -> dict[str, float]:
    """Process-seconds whose node pool is known."""
    total: Counter[str] = Counter()
    for session in sessions:
        total.update(session.pool_seconds)
    return dict(total)


def _readings(store: Store, sessions: Sequence[TrainingSession], run: Run, *, has_ended: bool) -> dict[str, Any]:
    """What is measured while it trains, where there is news of it, and once more at its end."""
    newest = sessions[-1].last_reading if sessions else None
    watched = (run.spec.get("evaluation") or {}).get("every")
    if newest in (None, run.last_reading) and not (has_ended and watched):
        return {}
    found = read_readings(store)
    if not found.readings:
        return {}
    return {"readings": found.model_dump(mode="json"), "last_reading": found.readings[-1].step}


def _speed(sessions: Sequence[TrainingSession]) -> dict[str, float | None]:
    """Of all sessions together: each counts for as long as it trained."""
    speeds = [session.speed for session in sessions]
    seconds = sum(speed.seconds for speed in speeds)
    # A session on more GPUs counts for more of them.
    known = [(s.speed.seconds * s.world_size, s.speed.peak_share) for s in sessions if s.speed.peak_share is not None]
    weights = sum(weight for weight, _ in known)
    return {
        "mean_images_per_second": sum(speed.images for speed in speeds) / seconds if seconds else None,
        "waiting_share": sum(speed.waiting_seconds for speed in speeds) / seconds if seconds else None,
        "peak_share": sum(weight * share for weight, share in known) / weights if weights else None,
        "compile_seconds": sum(speed.compile_seconds for speed in speeds),
    }


def _stretch(session: TrainingSession) -> dict[str, Any]:
    return session.model_dump(
        mode="json", include={"attempt", "world_size", "pools", "first_step", "step", "started_at", "seen_at"}
    )
