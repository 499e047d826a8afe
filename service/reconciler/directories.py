"""What runs leave in the store, read in as few requests as it takes: S3 is paid by the request.

While a run trains nothing but its newest session changes, so that file alone is read, and only when it has changed. All
is read again when the scheduler has something new, when the session falls silent, as it does when another one has
begun or the run has ended, and once a minute in any case: a worker that has been cut off may go on writing its own.
Where many runs train, each is read less often, so that all of them together cost no more than READS_A_SECOND.
"""

import threading
from collections import OrderedDict
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from service.launching.port import Job, JobState
from trainer.contract.records import DONE, Outcome, Session
from trainer.store.objects import Store
from trainer.store.rundir import SessionFile, newer_session, read_outcome, session_files

# A trainer writes its session every 12 s at the latest (trainer/tracking/journal.py).
SILENT = timedelta(seconds=15)
AT_LEAST = timedelta(seconds=60)
READS_A_SECOND = 10
"""Of newest sessions, one request each; another five are for reading all again."""
# As often as a trainer writes.
OFTEN = timedelta(seconds=2)
MAX_RUNS = 10_000


@dataclass(frozen=True)
class _Seen:
    attempt: int
    job: tuple[JobState, int, int]
    outcome: Outcome | None
    files: list[SessionFile]
    all_read_at: datetime
    read_at: datetime
    changed_at: datetime

    @property
    def trains(self) -> bool:
        """Whether the newest session is the attempt's own and has not come to its end."""
        newest = self.files[-1].session if self.files else None
        return newest is not None and newest.attempt == self.attempt and newest.stage != DONE


class Directories:
    """Outcomes and sessions of the runs that are looked at; safe to ask from several threads."""

    def __init__(self, pause: timedelta) -> None:
        """`pause`: between two reads of a run that trains and of which the scheduler has nothing new."""
        self._pause = pause
        self._seen: OrderedDict[str, _Seen] = OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._seen)

    def read(
        self, run_id: str, store: Store, attempt: int, job: Job, now: datetime
    ) -> tuple[Outcome | None, list[Session]]:
        """How the run has ended, if it has, and its sessions, oldest first. Raises StorageError."""
        with self._lock:
            before = self._seen.get(run_id)
        turn = timedelta(seconds=len(self) / READS_A_SECOND)
        seen = self._again(store, before, attempt, job, now, turn) if before else None
        seen = seen or self._all(store, before, attempt, job, now)
        with self._lock:
            self._seen[run_id] = seen
            self._seen.move_to_end(run_id)
            # Another replica may settle the run, and this one would never hear of its end.
            while len(self._seen) > MAX_RUNS:
                self._seen.popitem(last=False)
        return seen.outcome, [file.session for file in seen.files]

    def forget(self, run_id: str) -> None:
        with self._lock:
            self._seen.pop(run_id, None)

    def _again(
        self, store: Store, seen: _Seen, attempt: int, job: Job, now: datetime, turn: timedelta
    ) -> _Seen | None:  # fmt: skip
        """What is known, with the newest session as it is now; None where all has to be read.

        `turn`: how long it takes to read those of all runs.
        """
        if not job.state.is_live or (seen.attempt, seen.job) != (attempt, _key(job)) or seen.outcome:
            return None
        waits = job.state is JobState.PENDING
        if now - seen.read_at < (max(self._pause, turn) if seen.trains or waits else min(self._pause, OFTEN)):
            return seen
        if not seen.trains or now - seen.all_read_at >= max(AT_LEAST, 4 * turn):
            return None
        if newer := newer_session(store, seen.files[-1]):
            return replace(seen, files=[*seen.files[:-1], newer], read_at=now, changed_at=now)
        return replace(seen, read_at=now) if now - seen.changed_at < SILENT else None

    def _all(self, store: Store, before: _Seen | None, attempt: int, job: Job, now: datetime) -> _Seen:
        outcome = read_outcome(store)
        known = before.files if before else []
        files = session_files(store, known) if attempt or outcome else []
        changed_at = before.changed_at if before and files[-1:] == known[-1:] else now
        return _Seen(attempt, _key(job), outcome, files, now, now, changed_at)


def _key(job: Job) -> tuple[JobState, int, int]:
    return job.state, job.crashes, job.out_of_memory
