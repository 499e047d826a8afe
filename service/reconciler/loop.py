"""The reconciler: lease -> look -> decide -> act -> write, for every run that is due. Knows nothing of Kubernetes.

A look has no database session open, and a write names its lease, so a service that was away too long
changes nothing. Whatever it was doing when it died is found again by the next look.
"""

import contextlib
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

import structlog
from sqlalchemy import update
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session

from service import audit, projects
from service.db import Database
from service.experiments import repository as experiments
from service.launching.port import LauncherAway
from service.notify import repository as notices
from service.notify.notifier import Notifier
from service.publishing.publish import Superseded, publish
from service.reconciler import repository
from service.reconciler.admission import admit
from service.reconciler.cleaning import CLEAN_SECONDS, Cleaner
from service.reconciler.facts import Action, RunFacts
from service.reconciler.outside import Outside
from service.reconciler.repository import ExperimentLease, RunLease
from service.reconciler.rounds import close_round
from service.reconciler.transitions import decide
from service.settings import Settings
from service.states import RunState
from service.tables import AuditEntry, Experiment, Run, Trial
from service.telemetry import Telemetry
from service.tracking import TrackedRun, TrackingAway
from trainer.contract.records import DONE
from trainer.store.objects import StorageError

log = structlog.get_logger()

# Opening an attempt, submitting it and seeing it there are one after the other, without a pause between.
MAX_LOOKS = 3
# After a fault of the store, of MLflow or of ours; the reason is shown meanwhile.
FAULT_SECONDS = 5.0
SWEEP_SECONDS = 10.0
# At runs of which there is no news; each takes a few milliseconds of this process and two statements.
LOOKS_A_SECOND = 50
# Places are given out when something has been asked for or a place has become free, and so often in any case: the
# replica that knew of it may have died. With thousands of runs waiting it takes a tenth of a second.
ADMISSION_SECONDS = 5.0
# Of runs of which nothing is new, leases are given back together.
GIVE_BACK_SECONDS = 0.1
# Experiments that are published at a time; more would only wait for the same MLflow.
PUBLISHERS = 2


def utc_now() -> datetime:
    return datetime.now(UTC)


class Reconciler:
    """Brings what runs to what is wanted, from one thread and a few helpers."""

    def __init__(
        self,
        db: Database,
        settings: Settings,
        outside: Outside,
        telemetry: Telemetry,
        *,
        clock: Callable[[], datetime] = utc_now,
    ) -> None:
        self._db, self._settings, self._outside, self._telemetry, self._clock = db, settings, outside, telemetry, clock
        self._pool = ThreadPoolExecutor(settings.reconcile_threads, thread_name_prefix="look")
        self._busy: set[Future[None]] = set()
        self._publishers = ThreadPoolExecutor(PUBLISHERS, thread_name_prefix="publish")
        self._publishing: set[Future[None]] = set()
        self._stopping, self._woken = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._loop, name="reconciler")
        self._news: set[str] = set()
        self._unchanged = deque[tuple[RunLease, datetime]]()
        """Leases of runs of which nothing is new, and when they are due again: given back together."""
        self._swept_at = self._admitted_at = datetime.min.replace(tzinfo=UTC)
        self._queue_changed = threading.Event()
        self._cleaner = Cleaner(db, settings, outside.tracker, clock, self._stopping)
        self._cleaning = ThreadPoolExecutor(1, thread_name_prefix="clean")
        self._cleaned: Future[None] | None = None
        self._cleaned_at = self._swept_at
        self._notifier = Notifier(db, settings, clock, self._stopping)

    def start(self) -> None:
        self.reopen_rounds()
        self._outside.launcher.start(self.hear)
        self._thread.start()

    def stop(self) -> None:
        """Returns when the looks under way have ended; leases of none are left behind."""
        self._stopping.set()
        self._woken.set()
        if self._thread.is_alive():
            self._thread.join()
        self._pool.shutdown()
        try:
            self._give_back()
        except SQLAlchemyError as error:
            log.warning("the database is away: leases run out by themselves", error=str(error))
        self._publishers.shutdown()
        self._cleaning.shutdown()
        self._notifier.stop()
        self._outside.launcher.close()

    def hear(self, attempt: str) -> None:
        """The scheduler has news of it: its run is looked at in the next tick."""
        self._news.add(attempt)

    def wake(self) -> None:
        """Something was asked for: look now and not at the next tick."""
        self._queue_changed.set()
        self._woken.set()

    def tick(self) -> None:
        """Start every look that is due and for which a helper is free."""
        now = self._clock()
        self._give_back()
        self._look_at_news(now)
        if self._queue_changed.is_set() or now - self._admitted_at > timedelta(seconds=ADMISSION_SECONDS):
            self._queue_changed.clear()
            self._admit()
            self._admitted_at = now
        self._busy = {look for look in self._busy if not look.done()}
        # Leases of more than one run at a time cost hardly more than that of one.
        free = 2 * self._settings.reconcile_threads - len(self._busy)
        lease_seconds = self._settings.lease_seconds
        if free:
            with self._db.write() as session:
                # Experiments first: runs wait for them, and come round more often.
                experiments = repository.lease_experiments(session, now, lease_seconds, max(1, free // 2))
                runs = repository.lease_runs(session, now, lease_seconds, free - len(experiments))
            self._busy |= {self._pool.submit(self._look_at_experiment, lease) for lease in experiments}
            self._busy |= {self._pool.submit(self._look_at_run, lease) for lease in runs}
        if now - self._swept_at > timedelta(seconds=SWEEP_SECONDS):
            self._swept_at = now
            self._sweep()
        if self._cleaned is None or self._cleaned.done():
            is_due = now - self._cleaned_at > timedelta(seconds=CLEAN_SECONDS)
            self._cleaned_at = now if is_due else self._cleaned_at
            self._cleaned = self._cleaning.submit(self._clean, cleans=is_due)
        self._notifier.tick(now)
        self._telemetry.last_tick.set(now.timestamp())

    def drain(self) -> None:
        """Wait for the looks under way."""
        for look in wait(self._busy).done:
            look.result()
        self._give_back()
        wait(list(self._publishing))
        if self._cleaned:
            self._cleaned.result()
        self._notifier.drain()

    def _clean(self, *, cleans: bool) -> None:
        for step in (self._cleaner.record, self._cleaner.clean) if cleans else (self._cleaner.record,):
            try:
                step()
            except Exception:
                # The database may be away for a while; the next round does what this one has not.
                log.exception("cleaning failed", step=step.__name__)

    def _loop(self) -> None:
        while not self._stopping.is_set():
            self._woken.clear()
            try:
                self.tick()
            except Exception:
                # The database may be away for a while; nothing else may end this thread.
                log.exception("tick failed")
            more = len(self._busy) >= self._settings.reconcile_threads
            self._pause(0.05 if more else self._settings.tick_seconds)

    def _pause(self, seconds: float) -> None:
        """Until the next tick, or news. Leases are not held meanwhile: who dies keeps others from its runs."""
        until = time.monotonic() + seconds
        while not self._woken.wait(max(0.0, min(GIVE_BACK_SECONDS, until - time.monotonic()))):
            if time.monotonic() >= until:
                return
            try:
                self._give_back()
            except Exception:
                log.exception("leases not given back")
                self._woken.wait(until - time.monotonic())
                return

    def _give_back(self) -> None:
        given = list(self._unchanged)
        if given:
            with self._db.deciding() as session:
                repository.give_back(session, given)
            # Not before: the database may be away. More may have come meanwhile, at the end.
            for _ in given:
                self._unchanged.popleft()

    def _look_at_news(self, now: datetime) -> None:
        """Attempts that the scheduler has news of are looked at now, and the others in their turn."""
        names = {self._news.pop() for _ in range(len(self._news))}
        if names:
            with self._db.deciding() as session:
                repository.look_soon(session, names, now)

    def _admit(self) -> None:
        with self._db.read() as session:
            if not repository.is_anything_waiting(session):
                return
        with self._db.deciding() as session:
            rows = repository.waiting(session)
            taken, training = repository.in_flight(session), repository.training(session)
            places = projects.max_places(session)
            admitted, told = admit(rows, taken, self._settings.max_concurrent_runs, places, training)
            weights_of = repository.weights_for(session, admitted)
            now = self._clock()
            for run_id, reason in told.items():
                session.execute(update(Run).where(Run.id == run_id).values(waiting_reason=reason))
            values = {"admitted": True, "waiting_reason": "", "next_check_at": now}
            session.execute(update(Run).where(Run.id.in_(admitted)).values(values))
            for run_id in admitted:
                session.execute(update(Run).where(Run.id == run_id).values(weights_of=weights_of.get(run_id)))

    # ------------------------------------------------------------ runs

    def _look_at_run(self, lease: RunLease) -> None:
        with self._faults_shown(lease), self._telemetry.look_seconds.time():
            if lease.run.state.is_final:
                self._outside.settle(lease)
                self._write(lease, {"settled": True, "waiting_reason": ""})
                return
            facts: RunFacts | None = repository.facts(lease)
            for number in range(1, MAX_LOOKS + 1):
                if facts:
                    facts = self._look_once(lease, facts, last=number == MAX_LOOKS)

    def _look_once(self, lease: RunLease, before: RunFacts, *, last: bool) -> RunFacts | None:
        """Look, decide, act, write. The new facts when the next look should follow at once, with the same lease."""
        now = self._clock()
        look = self._outside.look(lease, before, now)
        decision = decide(before, look.seen, now)
        after = decision.run
        if decision.action:
            self._outside.act(decision.action, lease, after)
        # Most of a row is JSON, and most looks find nothing new in it.
        progress = {name: value for name, value in look.progress.items() if getattr(lease.run, name) != value}
        values = _changes(before, after) | progress
        is_new = bool(values) or (after.step, after.attempt) != (before.step, before.attempt)
        values["step"] = after.step
        if look.tracked:
            values |= {"tracking_id": look.tracked.experiment_id, "tracking_run_id": look.tracked.run_id}
        if after.state is RunState.SUCCEEDED and look.result:
            values |= {"result": look.result.model_dump(mode="json"), "step": look.result.steps}
        again = not last and (decision.action is Action.SUBMIT or _number(after) > _number(before))
        if after.state.is_final:
            values |= {"ended_at": now, "next_check_at": now, "stage": DONE}
        elif not again:
            due = self._next_check(after, now)
            if not is_new:
                self._unchanged.append((lease, due))
                return None
            values["next_check_at"] = due
        if not self._write(lease, values, after, release=not again):
            return None
        if after.state is RunState.SUCCEEDED:
            self._count_again(lease.run.id)
        is_back = after.state is RunState.QUEUED and before.state is RunState.PAUSED
        if after.state.is_final or is_back or after.admitted != before.admitted:
            self._queue_changed.set()
        self._count(before, after, decision.action)
        return after if again else None

    def _count_again(self, run_id: str) -> None:
        """Experiments that had given the run up have its number now, and are published with it."""
        with self._db.read() as session:
            ids = repository.published_without(session, run_id)
        if ids:
            with self._db.deciding() as session:
                experiments.reopen(session, ids, self._clock())

    def _write(
        self, lease: RunLease, values: dict[str, Any], after: RunFacts | None = None, *, release: bool = True
    ) -> bool:
        if release:
            values = values | {"lease_token": None, "lease_expires_at": None}
        with self._db.write() as session:
            attempt = after.attempt if after else None
            if not repository.write_run(session, lease, values, attempt, self._clock()):
                log.warning("lease lost", run_id=lease.run.id)
                return False
            if values.get("state") is RunState.FAILED:
                notices.tell_failed(session, lease.run.id, values.get("reason", ""), self._clock())
        for name, value in values.items():
            setattr(lease.run, name, value)
        return True

    def _next_check(self, after: RunFacts, now: datetime) -> datetime:
        if after.not_before and after.not_before > now:
            return after.not_before
        # Of news the watches tell at once. The others have their turn later where there are many.
        turn = self._outside.num_looked_at / LOOKS_A_SECOND
        return now + timedelta(seconds=max(self._settings.observe_seconds, turn))

    def _count(self, before: RunFacts, after: RunFacts, action: Action | None) -> None:
        if action is Action.SUBMIT:
            self._telemetry.submissions.inc()
        if after.state is not before.state:
            self._telemetry.transitions.labels(after.state.value).inc()
        if after.attempt and not after.attempt.is_live and before.attempt and before.attempt.is_live:
            self._telemetry.attempts_ended.labels(after.attempt.state.value).inc()

    @contextlib.contextmanager
    def _faults_shown(self, lease: RunLease) -> Iterator[None]:
        """A fault holds up this run alone, for a few seconds, and is its waiting reason meanwhile."""
        try:
            yield
            return
        except (StorageError, TrackingAway, LauncherAway, OSError) as error:
            kind, text = type(error).__name__, str(error)
            log.warning("look failed", run_id=lease.run.id, kind=kind, error=text)
        except Exception as error:
            kind, text = type(error).__name__, f"an error of the service ({error}); see its log"
            log.exception("look failed", run_id=lease.run.id)
        self._telemetry.look_errors.labels(kind).inc()
        later = self._clock() + timedelta(seconds=FAULT_SECONDS)
        self._write(lease, {"waiting_reason": text[:500], "next_check_at": later})

    # ------------------------------------------------------------ experiments

    def _look_at_experiment(self, lease: ExperimentLease) -> None:
        experiment, values = lease.experiment, dict[str, Any]()
        pause = self._settings.observe_seconds
        try:
            parent = self._outside.parent_of(experiment)
            if parent:
                values = {"tracking_id": parent.experiment_id, "tracking_run_id": parent.run_id}
            with self._db.read() as session:
                seconds, going, unsettled = repository.usage(session, experiment.id)
            cap, capped = experiment.gpu_hours, ""
            if cap is not None and seconds >= cap * 3600 and experiment.cancelled_at is None:
                capped = f"the cap of {cap:g} GPU-hours is reached ({seconds / 3600:.3g} used)"
            if capped and going:
                self._cancel(lease, capped)
            has_ended = unsettled == 0
            if experiment.has_look_to_come and experiment.cancelled_at is None:
                has_ended = False
                if going == 0 and self._close_round(lease, capped):
                    pause = 0.0
            if has_ended and self._outside.tracker and parent:
                publication = self._publishers.submit(self._publish, lease, values, parent)
                self._publishing.add(publication)
                publication.add_done_callback(self._publishing.discard)
                return
            values["published"] = has_ended
            values |= self._news_of(experiment, values)
        except TrackingAway as error:
            log.warning("experiment waits for MLflow", experiment_id=experiment.id, error=str(error))
            pause = FAULT_SECONDS
        except Exception:
            log.exception("look failed", experiment_id=experiment.id)
            pause = FAULT_SECONDS
        self._release(lease, values, pause)

    def _publish(self, lease: ExperimentLease, values: dict[str, Any], parent: TrackedRun) -> None:
        """Takes minutes where there are many runs, so it has threads of its own, and renews its lease."""
        experiment, pause, tracker = lease.experiment, FAULT_SECONDS, self._outside.tracker
        assert tracker
        try:
            publish(self._db, tracker, experiment.id, parent, partial(self._keep, lease))
            values, pause = values | {"published": True}, 0.0
            values |= self._news_of(experiment, values)
        except Superseded as error:
            log.info("publishing is left to another look", experiment_id=experiment.id, reason=str(error))
        except TrackingAway as error:
            log.warning("experiment waits for MLflow", experiment_id=experiment.id, error=str(error))
        except Exception:
            log.exception("publishing failed", experiment_id=experiment.id)
        self._release(lease, values, pause)

    def _news_of(self, experiment: Experiment, values: dict[str, Any]) -> dict[str, Any]:
        """The store is to know of it, too."""
        is_new = any(getattr(experiment, name) != value for name, value in values.items())
        return {"revision": Experiment.revision + 1} if is_new else {}

    def _keep(self, lease: ExperimentLease, done: Trial | None = None) -> None:
        expires = self._clock() + timedelta(seconds=self._settings.lease_seconds)
        with self._db.deciding() as session:
            if not repository.renew(session, lease, expires, done):
                raise Superseded("the experiment was reopened, or its lease has run out")
        if self._stopping.is_set():
            raise Superseded("the service stops")

    def _release(self, lease: ExperimentLease, values: dict[str, Any], pause: float) -> None:
        values = values | {"next_check_at": self._clock() + timedelta(seconds=pause)}
        with self._db.write() as session:
            if repository.write_experiment(session, lease, values) and values.get("published"):
                notices.tell_ended(session, lease.experiment.id, self._clock())

    def _cancel(self, lease: ExperimentLease, reason: str) -> None:
        with self._db.deciding() as session:
            experiment = repository.still_leased(session, lease)
            if experiment is None or experiment.cancelled_at:
                return
            entry = self._cancel_by_cap(session, experiment, reason)
        audit.tell(entry)

    def _cancel_by_cap(self, session: Session, experiment: Experiment, reason: str) -> AuditEntry:
        now = self._clock()
        experiments.cancel(session, experiment, reason, now)
        return audit.by_service(session, experiment, "cap of GPU-hours", "experiments.cancel", reason, now)

    def _close_round(self, lease: ExperimentLease, capped: str) -> bool:
        """`capped`: why no more may be spent; the look is taken, and then no round follows."""
        entry = None
        with self._db.deciding() as session:
            experiment = repository.still_leased(session, lease)
            if experiment is None or experiment.cancelled_at or not close_round(session, experiment, self._clock()):
                return False
            if capped and experiment.has_look_to_come:
                entry = self._cancel_by_cap(session, experiment, capped)
            log.info("round closed", experiment_id=experiment.id, look=len(experiment.looks))
        if entry:
            audit.tell(entry)
        self._queue_changed.set()
        return True

    def reopen_rounds(self) -> None:
        """A service of a release without rounds takes an experiment for over when its first round is."""
        with self._db.deciding() as session:
            ids = repository.published_with_a_look_to_come(session)
            experiments.reopen(session, ids, self._clock())
        if ids:
            log.warning("experiments in rounds were taken for over and go on", experiments=ids)

    def _sweep(self) -> None:
        """Stop attempts that live although their end is written down: submitted by a service that woke up too late."""
        try:
            live = self._outside.launcher.live()
        except LauncherAway as error:
            log.warning("cannot look for attempts that should have ended", error=str(error))
            return
        if not live:
            return
        with self._db.read() as session:
            orphans = repository.ended_attempts(session, live)
        for name in orphans:
            log.warning("stopping an attempt that should have ended", attempt=name)
            self._outside.launcher.cancel(name)


def _number(facts: RunFacts) -> int:
    return facts.attempt.number if facts.attempt else 0


def _changes(before: RunFacts, after: RunFacts) -> dict[str, Any]:
    """Columns that the decision changed; what users change meanwhile, such as cancel_reason, is not among them."""
    names = ("state", "admitted", "not_before", "fruitless", "reason", "kind", "waiting_reason")
    return {name: getattr(after, name) for name in names if getattr(after, name) != getattr(before, name)}
