"""What rank 0 tells the world of a run's progress: metrics and pictures to MLflow, its session to the store."""

import logging
import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Protocol

from trainer.contract import RunSpec, records
from trainer.contract.records import Reading, Unsent
from trainer.store.objects import StorageError, insist
from trainer.tracking.journal import Journal
from trainer.tracking.log import RunLog
from trainer.tracking.speed import Speedometer

# The result's losses are means over so many logged steps.
LAST_LINES = 5
# All ranks wait meanwhile, with their GPUs: what MLflow does not take within seconds the service sends.
MLFLOW_PATIENCE_SECONDS = 5.0
# Of a run that ends otherwise than well: who has asked it to end, or starts it again, waits.
STORE_PATIENCE_SECONDS = 10.0

logger = logging.getLogger(__name__)


class Report(Protocol):
    """What the training loop says after every step."""

    def step(self, step: int, losses: Mapping[str, float], **more: float) -> None:
        """`step` steps are done; `losses` and `more` belong to the last of them."""

    def state_dict(self) -> Mapping[str, Any]:
        """What has not been confirmed, or will be needed again, for the checkpoint."""


class Silent:
    """Ranks other than 0."""

    def step(self, step: int, losses: Mapping[str, float], **more: float) -> None:
        pass

    def state_dict(self) -> Mapping[str, Any]:
        return {}


class RankZero:
    """Rank 0: logs every log_steps, draws a picture every picture_steps, keeps the session file fresh."""

    def __init__(
        self, run: RunSpec, log: RunLog, journal: Journal, *,
        world_size: int, steps: range, draw: Callable[[], bytes] | None, speed: Speedometer,
    ) -> None:  # fmt: skip
        self.run, self.log, self.journal, self.draw, self.speed = run, log, journal, draw, speed
        self.stalled = ""
        """That the run has learnt nothing, in words; empty where it has."""
        journal.trouble = lambda: "; ".join(filter(None, (self.stalled, log.trouble, speed.trouble)))
        journal.speed = lambda: speed.so_far
        self.world_size, self.total_steps = world_size, steps.stop
        self._losses: list[Mapping[str, float]] = []

    def step(self, step: int, losses: Mapping[str, float], **more: float) -> None:
        cadence, last_step = self.run.cadence, step == self.total_steps
        self.speed.step()
        if step % cadence.log_steps == 0 or last_step:
            self._log(step, losses, more)
        if self.draw and (step % cadence.picture_steps == 0 or last_step):
            self.log.picture(step, self.draw())
        if last_step:
            self.speed.end()

    def reading(self, reading: Reading) -> None:
        """Log what was measured of the encoder at a step, again where the step is taken again."""
        values = {name: value for metric in reading.metrics for name, value in metric.logged.items()}
        self.log.metrics(reading.step, values)

    def state_dict(self) -> Mapping[str, Any]:
        return {"log": self.log.state_dict(), "losses": self._losses}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.log.load_state_dict(state["log"])
        self._losses = state["losses"]

    def mean_losses(self) -> dict[str, float]:
        """Means over the last logged steps, by whichever session; empty before the first."""
        names = self._losses[-1] if self._losses else ()
        return {name: sum(line[name] for line in self._losses) / len(self._losses) for name in names}

    def leave_unsent(self, patience_seconds: float, mlflow_seconds: float = MLFLOW_PATIENCE_SECONDS) -> None:
        """Put what MLflow has not taken into the run's directory. Nothing is logged after that. Raises StorageError."""
        store, (rows, files) = self.journal.store, self.log.hand_over(mlflow_seconds)
        if not (rows or files):
            return
        logger.warning("%d rows and %d files are left for the service to send to MLflow", len(rows), len(files))
        for name, data in files:
            insist(partial(store.put, records.UNSENT_FILES + name, data), name, patience_seconds)
        finite = [(step, at, {name: x for name, x in row.items() if math.isfinite(x)}) for step, at, row in rows]
        text = Unsent(rows=finite, files=[name for name, _ in files]).model_dump_json().encode()
        insist(partial(store.put, records.UNSENT, text), records.UNSENT, patience_seconds)

    def close(self, stage: str) -> None:
        """Write what is left, at the end of a run or because somebody asks the process to end."""
        self._close(stage, MLFLOW_PATIENCE_SECONDS)

    def abandon(self) -> None:
        """Write what is left, on an error: without a wait for MLflow, as the others wait for the next start."""
        self._close(None, 0.0)

    def _close(self, stage: str | None, mlflow_seconds: float) -> None:
        self.journal.close(stage)
        try:
            # Also where a checkpoint has it: a run that is cancelled never comes back to that.
            self.leave_unsent(STORE_PATIENCE_SECONDS, mlflow_seconds)
        except StorageError as error:
            logger.warning("what MLflow has not taken is lost, as the store is away, too: %s", error)

    def _log(self, step: int, losses: Mapping[str, float], more: Mapping[str, float]) -> None:
        speed = self.speed.since_last()
        self._losses = [*self._losses, dict(losses)][-LAST_LINES:]
        self.journal.update(step, losses, speed.get("images_per_second"))
        metrics = {f"loss/{name}": value for name, value in losses.items()}
        self.log.metrics(step, {
            **metrics, **more, **speed, "world_size": self.world_size, "restarts": self.journal.restarts,
            "images_seen": step * self.run.batch.global_batch,
        })  # fmt: skip
