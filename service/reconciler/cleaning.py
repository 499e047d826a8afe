"""What is removed: deleted experiments after their time, what they have left, and checkpoints that nobody needs.

Experiments first leave the tables, in one transaction, and their runs are written down as doomed; then the runs'
directories are emptied, and last the note that they are doomed goes. So whoever is killed on the way leaves a note
that the next one follows. Only directories of runs that this database has made are ever touched.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta

import structlog
from sqlalchemy.exc import SQLAlchemyError

from service import audit
from service.db import Database
from service.errors import ApiError
from service.record import note_recorded, object_name, record_of, unrecorded
from service.retention import repository
from service.retention.service import mark
from service.settings import Settings
from service.tables import AuditEntry, Doomed, Experiment
from service.tracking import Tracker, TrackingAway
from trainer.contract.records import COMMITTED, SPEC, checkpoint_name
from trainer.store.objects import StorageError, open_store
from trainer.store.rundir import list_checkpoints

log = structlog.get_logger()

CLEAN_SECONDS = 30.0
# At a time, so that a store is not asked for everything at once: thousands of old runs are thinned over hours.
MOST_RUNS = 20
MOST_RECORDS = 5
RETRY = timedelta(seconds=60)
EXPERIMENT = "e"
"""How ids of experiments begin; others are runs."""
LEASE = timedelta(seconds=60)
"""Renewed while a removal goes on, which may take long: who is killed in one holds it up for no longer than this."""
RENEW_SECONDS = LEASE.total_seconds() / 3


class Cleaner:
    def __init__(
        self, db: Database, settings: Settings, tracker: Tracker | None, clock: Callable[[], datetime],
        stopping: threading.Event,
    ) -> None:  # fmt: skip
        self._db, self._settings, self._tracker, self._clock = db, settings, tracker, clock
        self._stopping = stopping

    def record(self) -> None:
        """The store gets what has changed of experiments, so that a lost database can be written anew from it."""
        with self._db.read() as session:
            records = [(record_of(session, item), revision) for item, revision in unrecorded(session, MOST_RECORDS)]
        for record, revision in records:
            try:
                text = record.model_dump_json().encode()
                open_store(self._settings.store_uri).put(object_name(record.id), text)
            except StorageError as error:
                log.warning("experiment not recorded yet", experiment_id=record.id, error=str(error))
                return
            with self._db.write() as session:
                note_recorded(session, record.id, revision)

    def clean(self) -> None:
        """Whatever is due. What fails is tried again later, and holds up nothing else."""
        for step in self._delete_by_rule, self._purge, self._remove, self._thin:
            try:
                step()
            except (SQLAlchemyError, ApiError):
                log.exception("cleaning failed", step=step.__name__)

    def _delete_by_rule(self) -> None:
        now = self._clock()
        with self._db.read() as session:
            if not (aged := repository.aged(session, now)):
                return
        purge_at, written = now + timedelta(days=self._settings.undo_days), list[AuditEntry]()
        with self._db.deciding() as session:
            for id, project, days in aged:
                experiment = session.get_one(Experiment, id)
                if experiment.deleted_at is None and experiment.published:
                    mark(experiment, f"the rule of project {project}, {days:g} days after its end", purge_at, now)
                    who, rule = f"rule of project {project}", f"delete_after_days={days:g}"
                    written.append(audit.by_service(session, experiment, who, "experiments.delete", rule, now))
        for entry in written:
            audit.tell(entry)

    def _purge(self) -> None:
        now = self._clock()
        with self._db.read() as session:
            due = repository.due(session, now)
        for id in due:
            with self._db.deciding() as session:
                experiment = session.get_one(Experiment, id)
                if experiment.purge_at is None or experiment.purge_at > now or experiment.purged_at:
                    continue  # restored, or another service was faster
                if repository.unended(session, id):
                    # Another experiment has brought a run back that is still at home here.
                    continue
                parent = experiment.tracking_run_id if experiment.remove_tracking else None
                gone = repository.purge(session, experiment, now)
                session.add(Doomed(run_id=id, remove_objects=True, tracking_run_id=parent, next_check_at=now))
            log.info("experiment purged", experiment_id=id, runs=len(gone))

    def _remove(self) -> None:
        for _ in range(MOST_RUNS):
            now = self._clock()
            with self._db.write() as session:
                doomed = repository.lease_doomed(session, now, now + LEASE)
            if doomed is None or self._stopping.is_set():
                return
            try:
                with self._holding(doomed):
                    self._remove_what_is_left(doomed)
            except (StorageError, TrackingAway) as error:
                log.warning("not removed yet", run_id=doomed.run_id, error=str(error))
                with self._db.write() as session:
                    repository.put_off(session, doomed, self._clock() + RETRY)
                continue
            with self._db.write() as session:
                repository.removed(session, doomed)

    @contextmanager
    def _holding(self, doomed: Doomed) -> Iterator[None]:
        is_done = threading.Event()

        def renew() -> None:
            while not is_done.wait(RENEW_SECONDS):
                try:
                    with self._db.write() as session:
                        repository.renew(session, doomed, self._clock() + LEASE)
                except SQLAlchemyError:
                    log.exception("lease not renewed", run_id=doomed.run_id)

        renewing = threading.Thread(target=renew, name=f"lease-{doomed.run_id}", daemon=True)
        renewing.start()
        try:
            yield
        finally:
            is_done.set()
            renewing.join()

    def _remove_what_is_left(self, doomed: Doomed) -> None:
        is_experiment = doomed.run_id.startswith(EXPERIMENT)
        if is_experiment:
            open_store(self._settings.store_uri).delete([object_name(doomed.run_id)])
        elif doomed.remove_objects:
            # The spec first: what is half removed is no run that could be read again.
            open_store(self._settings.run_uri(doomed.run_id)).remove(first=SPEC)
        if doomed.tracking_run_id and self._tracker:
            self._tracker.delete(doomed.tracking_run_id, copies=is_experiment)

    def _thin(self) -> None:
        with self._db.read() as session:
            found = repository.to_thin(session, self._settings.keep_checkpoints, MOST_RUNS)
        for run_id, keep in found:
            if self._stopping.is_set():
                return
            store = open_store(self._settings.run_uri(run_id))
            try:
                folders = [checkpoint_name(each.step) for each in list_checkpoints(store)[:-keep]]
                # Markers first: a checkpoint that is half removed is none.
                store.delete([folder + COMMITTED for folder in folders])
                store.delete([entry.name for folder in folders for entry in store.list(folder)])
            except StorageError as error:
                log.warning("checkpoints not thinned yet", run_id=run_id, error=str(error))
                continue
            with self._db.write() as session:
                repository.thinned(session, run_id, keep)
