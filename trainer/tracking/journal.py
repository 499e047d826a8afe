"""A run's own account of itself for who watches it: one file a session, refreshed as it goes, and how it ended.

Watchers read it from the store, so they need no way into the machine. A store that is away costs a warning.
"""

import logging
import math
import threading
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from types import MappingProxyType

import psutil

from trainer.contract import records
from trainer.contract.records import Outcome, Readings, Result, Session, Speed
from trainer.store.objects import StorageError, Store, insist

logger = logging.getLogger(__name__)

WRITE_SECONDS = 2.0
# Without news the file is still refreshed, so that a long step and a dead worker look different.
HEARTBEAT_SECONDS = 10.0


class Journal:
    """Rank 0's session file. Begins a new session when it is made; `update` is cheap and never waits."""

    def __init__(
        self, store: Store, attempt: int, world_size: int, device: str, total_steps: int, first_step: int = 0,
        pools: Mapping[str, int] = MappingProxyType({}),
    ) -> None:  # fmt: skip
        """`pools`: of the processes, how many are in which node pool."""
        self.store = store
        # A session begins with its process: start-up is paid for as well.
        started_at = datetime.fromtimestamp(psutil.Process().create_time(), UTC)
        self._session = Session(
            number=0, attempt=attempt, world_size=world_size, pools=dict(pools), device=device, first_step=first_step,
            step=first_step, total_steps=total_steps, stage="training", images_per_second=None, losses={},
            started_at=started_at, seen_at=datetime.now(UTC),
        )  # fmt: skip
        self.trouble: Callable[[], str] = str
        self.speed: Callable[[], Speed] = Speed
        """Asked at every write, both of them."""
        self._readings, self._unwritten = Readings(), False
        self._number = 0
        self._store_away = False
        self._news = threading.Event()
        self._closing = threading.Event()
        self._write()
        self._thread = threading.Thread(target=self._keep_writing, name="journal", daemon=True)
        self._thread.start()

    @property
    def restarts(self) -> int:
        """Sessions of this run before this one."""
        return max(0, self._number - 1)

    def update(
        self, step: int, losses: Mapping[str, float], images_per_second: float | None, stage: str = "training"
    ) -> None:
        """News for the next write, at most 2 s away."""
        finite = {name: value for name, value in losses.items() if math.isfinite(value)}  # JSON has no others
        update = {"step": step, "losses": finite, "images_per_second": images_per_second, "stage": stage}
        self._session = self._session.model_copy(update=update)
        self._news.set()

    def keep(self, readings: Readings) -> None:
        """All readings so far, for the next write."""
        self._readings, self._unwritten = readings, True
        self._news.set()

    def close(self, stage: str | None = None) -> None:
        """Write the last news, with the stage it ended in, and stop."""
        if stage is not None:
            self._session = self._session.model_copy(update={"stage": stage})
        self._closing.set()
        self._news.set()
        self._thread.join()
        self._write()

    def finish(self, outcome: Outcome, result: Result | None = None, *, patience_seconds: float = 300.0) -> None:
        """Write how the run ended, its result first: who sees the outcome finds the result and all readings.

        Tries again for `patience_seconds`, then raises StorageError.
        """
        if self._unwritten:
            self._insist(records.READINGS, self._readings.model_dump_json(indent=1), patience_seconds)
        if result is not None:
            self._insist(records.RESULT, result.model_dump_json(indent=1), patience_seconds)
        self._insist(records.OUTCOME, outcome.model_dump_json(indent=1), patience_seconds)

    def _insist(self, name: str, text: str, patience_seconds: float) -> None:
        insist(lambda: self.store.put(name, text.encode()), name, patience_seconds, longest_pause=30.0)

    def _keep_writing(self) -> None:
        while not self._closing.is_set():
            self._news.wait(HEARTBEAT_SECONDS)
            self._news.clear()
            self._write()
            self._closing.wait(WRITE_SECONDS)

    def _write(self) -> None:
        try:
            if not self._number:
                self._number = self._next_number()
            self._write_readings()
            session = self._session.model_copy(
                update={
                    "number": self._number, "trouble": self.trouble(), "speed": self.speed(),
                    "seen_at": datetime.now(UTC),
                }
            )  # fmt: skip
            self.store.put(records.session_name(self._number), session.model_dump_json(indent=1).encode())
        except StorageError as error:
            if not self._store_away:
                logger.warning("the session file cannot be written, training goes on: %s", error)
            self._store_away = True
        else:
            self._store_away = False

    def _write_readings(self) -> None:
        """Before the session, which says that there are any. Raises StorageError."""
        if not self._unwritten:
            return
        # In this order: `keep` may come in between.
        self._unwritten = False
        readings = self._readings
        try:
            self.store.put(records.READINGS, readings.model_dump_json(indent=1).encode())
        except StorageError:
            self._unwritten = True
            raise
        if readings.readings:
            self._session = self._session.model_copy(update={"last_reading": readings.readings[-1].step})

    def _next_number(self) -> int:
        names = [entry.name for entry in self.store.list(records.SESSIONS)]
        numbers = [name.removeprefix(records.SESSIONS).removesuffix(".json") for name in names]
        return max((int(number) for number in numbers if number.isdigit()), default=0) + 1
