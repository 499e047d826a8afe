"""Readings: what the encoder is worth while it trains, within a declared share of the run's time.

The spec says when one is due, and the time that one takes says how many are made. No weight depends on either.
"""

import logging
import time
from collections.abc import Callable

from trainer.contract import RunSpec
from trainer.contract.ranking import RETRIEVAL
from trainer.contract.records import Metric, Reading, Readings
from trainer.evaluation.evaluate import NotFinite, Reader
from trainer.method.mcf import Mcf
from trainer.store.objects import Store
from trainer.store.rundir import read_readings, read_spec
from trainer.tracking.report import RankZero

logger = logging.getLogger(__name__)


class Watch:
    """Every rank's. What it decides and writes down, rank 0 does, the only one with a report."""

    def __init__(
        self, run: RunSpec, reader: Reader, total_steps: int, store: Store, earlier: Store | None,
        report: RankZero | None, clock: Callable[[], float] = time.monotonic,
    ) -> None:  # fmt: skip
        """`earlier`: a run of the same pretraining, whose readings count where it was measured in the same way.

        Raises StorageError on rank 0.
        """
        every = run.evaluation.every
        assert every, "a run that is not watched"
        self._run, self._reader, self._report, self._clock = run, reader, report, clock
        self._every, self._total_steps = every, total_steps
        self._pause = every.in_steps(run.batch.global_batch)
        self._factor: int | None = 1
        """Every so manyth reading is made; None = no more of them."""
        self.readings = Readings()
        if report:
            found = read_readings(store)
            if not found.readings and earlier and (before := read_spec(earlier)) and run.is_read_as(before):
                found = read_readings(earlier)
            self._keep(found)

    def due(self, step: int) -> bool:
        """Whether this step is to be read: for rank 0 to ask, before it asks the others to take part."""
        if self._report is None or step % self._pause or not 0 < step < self._total_steps:
            return False
        if known := self.readings.at(step):
            # Of an earlier session, or of an earlier run of these weights: the same step has the same numbers.
            self._tell(known)
            return False
        if self._factor is None or (a_step := self._report.speed.seconds_a_step) is None:
            return False
        made = self.readings.readings
        budget = self._every.share * a_step * self._total_steps - sum(reading.seconds for reading in made)
        # The first one is no measure: whatever starts with a run slows it down, by up to ten times.
        cost = min((reading.seconds for reading in made[1:]), default=0.0)
        if budget <= 0:
            cost = max(cost, made[0].seconds)
        index, count = step // self._pause, (self._total_steps - 1) // self._pause
        # It never falls again, so that readings stay evenly spaced and arms have steps in common.
        factor = thinned(index, count, cost, budget)
        if factor is None or factor > self._factor:
            self._say_what_is_left_out(factor, cost, step)
            self._factor = factor
        return self._factor is not None and index % self._factor == 0

    def read(self, step: int, model: Mcf) -> None:
        """Measure the model as it is after `step` steps. A collective: every rank calls it where one was due."""
        began = self._clock()
        found = self._reader.read(model)
        if self._report is None:
            return
        seconds = self._clock() - began
        self._report.speed.reading_seconds += seconds
        if isinstance(found, NotFinite):
            self._report.stalled = f"it diverges: after step {step} its {found.what} are not finite"
            logger.warning("%s", self._report.stalled)
            return
        probe, sanity = found
        seen = step * self._run.batch.global_batch
        reading = Reading(step=step, images_seen=seen, probe=probe, sanity=sanity, seconds=seconds)
        self._keep(self.readings.with_reading(reading))
        self._tell(reading)

    def _tell(self, reading: Reading) -> None:
        assert self._report
        self._report.reading(reading)
        words = stalled(
            self.readings.at(0), reading, self._every.stalled_after * self._total_steps, self._total_steps,
            self._run.evaluation.rank_by,
        )  # fmt: skip
        if words and not self._report.stalled:
            logger.warning("%s", words)
        self._report.stalled = words

    def _say_what_is_left_out(self, factor: int | None, cost: float, step: int) -> None:
        share = f"{100 * self._every.share:g} % of the run's time (evaluation.every.share)"
        if factor is None:
            words = f"from step {step} on nothing is read: a reading takes {cost:.2g} s, and {share} is used up"
        else:
            words = (
                f"a reading takes {cost:.2g} s; so that all take at most {share}, there is one every "
                f"{factor * self._pause} steps, and not every {self._pause}"
            )
        if words != self.readings.note:
            logger.warning("%s", words)
            self._keep(self.readings.model_copy(update={"note": words}))

    def _keep(self, readings: Readings) -> None:
        assert self._report
        self.readings = readings
        # By a thread of its own: the store may be away for a while.
        self._report.journal.keep(readings)


def thinned(index: int, count: int, cost: float, budget: float) -> int | None:
    """The smallest power of two so that the readings index, index + 1, ... count that are multiples of it cost no more
    than the budget; None where not one does."""
    factor = 1
    while (left := count // factor - (index - 1) // factor) > 0:
        if left * cost <= budget:
            return factor
        factor *= 2
    return None


def stalled(
    first: Reading | None, now: Reading, from_step: float, total_steps: int, rank_by: str | None = None
) -> str:  # fmt: skip
    """In words, that a run is no better than before its first step; empty where it is, or where it is too early."""
    if first is None or now.step < max(1, from_step):
        return ""
    before, after = ranking(first, rank_by), ranking(now, rank_by)
    if before is None or after is None or before.name != after.name:
        return ""
    gain = after.value - before.value if after.higher_is_better else before.value - after.value
    if gain > 0:
        return ""
    better = "higher" if after.higher_is_better else "lower"
    return (
        f"it has stalled: after step {now.step} of {total_steps} {after.name} is {_number(after)}, no better than the "
        f"{_number(before)} before the first step ({better} is better)"
    )


def _number(metric: Metric) -> str:
    return f"{metric.value:.4g} {metric.unit}".rstrip()


def ranking(reading: Reading, rank_by: str | None) -> Metric | None:
    """What arms are ranked by, as far as a reading has it: a stage's metric is measured at the end alone."""
    named = {metric.name: metric for metric in reading.metrics}
    return named.get(rank_by or "") or reading.probe or named.get(RETRIEVAL)
