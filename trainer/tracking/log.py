"""Metrics and pictures to MLflow, without ever holding up training.

One thread owns MLflow. Rows wait in a bounded buffer until MLflow has confirmed them: an outage costs at
most the oldest of the buffer, and `log_rows_dropped` counts them. Unconfirmed rows travel in the checkpoint
(`state_dict`), so a killed process loses none. MLflow appends what is logged twice, so on every (re)connection
the steps it already has are asked for and skipped: a batch whose answer was lost, and rows that an attempt
now dead had logged beyond the checkpoint, stand there once. Skipping is right because training is
deterministic: the same step has the same numbers.

The only module of the trainer that writes to MLflow. Its import takes seconds, so the thread does it.
"""

import logging
import os
import tempfile
import threading
import time
from collections import deque
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from trainer.contract.records import REFERENCE, witness
from trainer.tracking.refusals import deleted, is_refusal
from trainer.tracking.system import SystemMetrics

logger = logging.getLogger(__name__)

SEND_SECONDS = 2.0
LONGEST_PAUSE_SECONDS = 15.0
# A row is 10 to 20 numbers: days of a usual cadence, in a few megabytes.
MAX_ROWS = 20_000
MAX_FILES = 50
MAX_METRICS_A_BATCH = 1000  # MLflow's own limit: one batch is one request, kept whole or not at all

CLIENT_SETTINGS = {
    # The thread has its own patience; MLflow's default is minutes a call.
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
    "MLFLOW_DISABLE_TELEMETRY": "true",
}


class Row(NamedTuple):
    """Numbers of one step. The time is part of it: MLflow tells a repeated row by step, value and time."""

    step: int
    time_ms: int
    values: dict[str, float]

    @property
    def witness(self) -> str:
        """The metric whose history shows whether MLflow has this row."""
        return witness(self.values)


class RunLog:
    """What rank 0 writes into one MLflow run. Without a run id it writes nothing and says so once."""

    def __init__(self, tracking_uri: str | None, run_id: str | None, *, attempt: int, max_rows: int = MAX_ROWS) -> None:
        self.max_rows = max_rows
        self.dropped = 0
        """Rows and files given up because the buffer was full or MLflow refused them."""
        self.trouble = ""
        """What somebody has to see to before MLflow takes the log again; empty where it does, or is only away."""
        self._rows: deque[Row] = deque()
        self._files: deque[tuple[str, bytes]] = deque()
        self._lock = threading.Lock()
        self._wake = threading.Event()
        self._closing = threading.Event()
        self._system = SystemMetrics()
        self._thread: threading.Thread | None = None
        if run_id is None:
            logger.info("no MLFLOW_RUN_ID: nothing is logged to MLflow")
            return
        self._connection = Connection(tracking_uri, run_id, tags={"mcf.attempt": str(attempt)})
        self._thread = threading.Thread(target=self._keep_sending, name="mlflow", daemon=True)
        self._thread.start()

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        """Log numbers of one step, once. Rows of training also get the machine's load. Never waits for MLflow."""
        if self._thread is None:
            return
        row = Row(step, int(time.time() * 1000), dict(values))
        if REFERENCE in values:
            row.values.update(self._system.sample(), log_rows_dropped=self.dropped)
        with self._lock:
            self._rows.append(row)
            self._shorten()

    def picture(self, step: int, png: bytes) -> None:
        """Log a picture under pictures/. Never waits for MLflow."""
        self.artifact(f"pictures/step-{step:06d}.png", png)

    def artifact(self, name: str, data: bytes) -> None:
        """Log a small file under its name; a later one of the same name replaces it. Never waits for MLflow."""
        if self._thread is None:
            return
        with self._lock:
            self._files.append((name, data))
            self._shorten()

    def state_dict(self) -> dict[str, Any]:
        """What MLflow has not confirmed yet, for the checkpoint."""
        with self._lock:
            return {"rows": [tuple(row) for row in self._rows], "files": list(self._files), "dropped": self.dropped}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what the attempt that wrote the checkpoint could not confirm."""
        if self._thread is None:
            return
        with self._lock:
            self.dropped += state["dropped"]
            self._rows.extendleft(Row(*row) for row in reversed(state["rows"]))
            self._files.extendleft((name, data) for name, data in reversed(state["files"]))
            self._shorten()

    def close(self, deadline_seconds: float) -> int:
        """Send what is left, for at most that long. Returns how many rows and files MLflow did not get."""
        if self._thread is None:
            return 0
        self._closing.set()
        self._wake.set()
        if not (self._rows or self._files):
            return 0
        self._thread.join(deadline_seconds)
        left = len(self._rows) + len(self._files)
        if left:
            logger.warning("MLflow did not take %d rows and files within %.0f s", left, deadline_seconds)
        return left

    def hand_over(self, deadline_seconds: float) -> tuple[list[Row], list[tuple[str, bytes]]]:
        """Close it, and give away what MLflow did not get. What is on its way may arrive twice, and counts once."""
        self.close(deadline_seconds)
        with self._lock:
            rows, files = list(self._rows), list(self._files)
            self._rows.clear()
            self._files.clear()
        return rows, files

    def _shorten(self) -> None:
        while len(self._rows) > self.max_rows:
            self._rows.popleft()
            self.dropped += 1
        while len(self._files) > MAX_FILES:
            self._files.popleft()
            self.dropped += 1

    def _keep_sending(self) -> None:
        failures = 0
        while True:
            try:
                self._send_all()
            # Whatever MLflow, its server or the network come up with, training does not stop for it.
            except Exception as error:
                trouble = self._connection.trouble(error)
                if failures == 0 or trouble != self.trouble:
                    logger.warning("training goes on and the log waits: %s", trouble or f"MLflow is away: {error}")
                self.trouble = trouble
                self._connection.lost()
                failures += 1
            else:
                if failures:
                    logger.warning("MLflow is back")
                failures, self.trouble = 0, ""
            if self._closing.is_set() and not (self._rows or self._files):
                return
            if self._closing.is_set():
                time.sleep(SEND_SECONDS if failures else 0)
            else:
                self._wake.wait(min(SEND_SECONDS * 2**failures, LONGEST_PAUSE_SECONDS))

    def _send_all(self) -> None:
        self._connection.open()
        while batch := self._next_batch():
            self._confirm(batch, self._connection.send_rows(batch))
        while self._files:
            with self._lock:
                name, data = self._files[0]
            self._connection.send_file(name, data)
            with self._lock:
                if self._files and self._files[0][0] == name:
                    self._files.popleft()

    def _next_batch(self) -> list[Row]:
        """The oldest rows, as many as fit into one request."""
        batch: list[Row] = []
        with self._lock:
            size = 0
            for row in self._rows:
                size += len(row.values)
                if batch and size > MAX_METRICS_A_BATCH:
                    break
                batch.append(row)
        return batch

    def _confirm(self, batch: Iterable[Row], accepted: bool) -> None:
        # By identity: the buffer may have lost its oldest rows while the batch was under way.
        done = {id(row) for row in batch}
        with self._lock:
            while self._rows and id(self._rows[0]) in done:
                self._rows.popleft()
                self.dropped += not accepted


class Connection:
    """One MLflow run, over connections that come and go. Used by the log's thread alone."""

    def __init__(self, tracking_uri: str | None, run_id: str, *, tags: Mapping[str, str]) -> None:
        self.tracking_uri = tracking_uri
        self.run_id = run_id
        self.tags = tags
        self._client: Any = None
        self._is_open = False
        self._logged: dict[str, set[int]] = {}

    def open(self) -> None:
        """Connect where no connection stands. Raises whatever MLflow raises."""
        if self._is_open:
            return
        for name, value in CLIENT_SETTINGS.items():
            os.environ.setdefault(name, value)
        from mlflow.entities import RunTag  # seconds of import, on this thread instead of before the first step
        from mlflow.tracking import MlflowClient

        self._client = self._client or MlflowClient(tracking_uri=self.tracking_uri)
        tags = [RunTag(name, value) for name, value in self.tags.items()]
        self._client.log_batch(self.run_id, tags=tags, synchronous=True)
        self._is_open = True

    def lost(self) -> None:
        """Forget what MLflow is known to have: what was under way may have arrived or not."""
        self._is_open = False
        self._logged.clear()

    def trouble(self, error: Exception) -> str:
        """What somebody has to see to; empty where MLflow is only away."""
        if not is_refusal(error):
            return ""
        with suppress(Exception):
            if words := deleted(self._client, error):
                return words
        return f"MLflow refuses what the run logs: {error}"

    def send_rows(self, rows: list[Row]) -> bool:
        """Log the rows that MLflow does not have; False when it refuses them for good."""
        from mlflow.entities import Metric
        from mlflow.exceptions import MlflowException

        new = []
        for row in rows:
            logged = self._logged_steps(row.witness)
            if row.step not in logged:
                logged.add(row.step)
                new.append(row)
        metrics = [Metric(name, value, row.time_ms, row.step) for row in new for name, value in row.values.items()]
        if not metrics:
            return True
        try:
            self._client.log_batch(self.run_id, metrics=metrics, synchronous=True)
        except MlflowException as error:
            # Of a run that was deleted, too, which may be restored.
            if error.error_code != "INVALID_PARAMETER_VALUE" or deleted(self._client, error):
                raise
            logger.warning("MLflow refuses %d rows: %s", len(new), error)
            return False
        return True

    def send_file(self, name: str, data: bytes) -> None:
        folder, _, file = name.rpartition("/")
        with tempfile.TemporaryDirectory(prefix="mcf-log-") as scratch:
            path = Path(scratch, file)
            path.write_bytes(data)
            self._client.log_artifact(self.run_id, str(path), folder or None)

    def _logged_steps(self, metric: str) -> set[int]:
        if metric not in self._logged:
            history = self._client.get_metric_history(self.run_id, metric)
            self._logged[metric] = {entry.step for entry in history}
        return self._logged[metric]
