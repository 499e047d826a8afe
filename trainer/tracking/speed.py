"""How fast a session trains, and how long it waits for images: measured on rank 0, from the end of its first step on.

The first step is left out because in it networks are compiled and kernels are chosen.
"""

import logging
import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any, Generic, NamedTuple, TypeVar

import torch
from torch import nn

from trainer.contract import RunSpec
from trainer.contract.records import Speed
from trainer.method.flop import flop_an_image
from trainer.tracking.cards import card

logger = logging.getLogger(__name__)

Batch = TypeVar("Batch")
Mark = TypeVar("Mark")

# A session waits for images where it did so for this share of so many seconds, after its first steps: those find the
# loader with a full queue or with an empty one.
WAITS = 0.2
JUDGED_SECONDS = 30.0
FIRST_STEPS = 20


class Loading(NamedTuple):
    """Who decodes images on this node."""

    decoders: int
    """Processes; 0 where all images are in memory."""
    cores: float


class Speedometer:
    """Rank 0's. `compile_seconds` and `reading_seconds` are for whoever spends them to add to: none trained."""

    def __init__(
        self, images_a_step: int, loading: Loading, device: torch.device, at_peak: float | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:  # fmt: skip
        """`at_peak`: images/s if the cards did what they can at best."""
        self.images_a_step, self.loading, self.at_peak = images_a_step, loading, at_peak
        self.compile_seconds = self.reading_seconds = 0.0
        self.so_far = Speed()
        """Replaced at every step, and read by the journal's thread."""
        self.trouble = ""
        """What to do where training waits for images; empty where it does not."""
        self._clock = clock
        self._waits = _waits(device, clock)
        self._steps = 0
        self._began = self._waited = self._spent = 0.0
        """As they stood at the end of the first step."""
        self._told = Speed()
        self._judged: Speed | None = None
        self._warned = False

    def timed(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        """The same batches; how long each is waited for is added up."""
        return self._waits.timed(batches)

    def step(self) -> None:
        """A step has been taken."""
        now, waited = self._clock(), self._waits.seconds()
        self._steps += 1
        if self._steps == 1:
            self._began, self._waited, self._spent = now, waited, self._spent_otherwise
        seconds = max(0.0, now - self._began - (self._spent_otherwise - self._spent))
        images = (self._steps - 1) * self.images_a_step
        self.so_far = Speed(
            images=images, seconds=seconds, waiting_seconds=min(seconds, waited - self._waited),
            compile_seconds=self.compile_seconds, reading_seconds=self.reading_seconds,
            peak_share=images / seconds / self.at_peak if self.at_peak and seconds else None,
        )  # fmt: skip
        self._judge()

    @property
    def seconds_a_step(self) -> float | None:
        """None before it is known."""
        steps = self._steps - 1
        return self.so_far.seconds / steps if steps > 0 else None

    @property
    def _spent_otherwise(self) -> float:
        return self.compile_seconds + self.reading_seconds

    def since_last(self) -> dict[str, float]:
        """Metrics of the steps since this was last asked; without a speed where there are none but the first."""
        now, before, self._told = self.so_far, self._told, self.so_far
        # Logged where something was compiled: of a run that compiles nothing it would be a row of zeros.
        found = {"compile_seconds": now.compile_seconds} if now.compile_seconds else {}
        if (seconds := now.seconds - before.seconds) <= 0:
            return found
        found["images_per_second"] = (now.images - before.images) / seconds
        found["waiting_share"] = (now.waiting_seconds - before.waiting_seconds) / seconds
        if self.at_peak:
            found["peak_share"] = found["images_per_second"] / self.at_peak
        return found

    def end(self) -> None:
        """The last step has been taken: nothing is waited for any more."""
        self._judged, self.trouble = None, ""

    def _judge(self) -> None:
        if self._steps == FIRST_STEPS:
            self._judged = self.so_far
        if self._judged is None or (seconds := self.so_far.seconds - self._judged.seconds) < JUDGED_SECONDS:
            return
        share = (self.so_far.waiting_seconds - self._judged.waiting_seconds) / seconds
        rate = (self.so_far.images - self._judged.images) / seconds
        self._judged = self.so_far
        self.trouble = _words(self.loading, share, rate) if share > WAITS else ""
        if self.trouble and not self._warned:
            self._warned = True
            logger.warning("%s", self.trouble)


def images_at_peak(run: RunSpec, teacher: nn.Module | None, device: torch.device, workers: int) -> float | None:
    """Images/s if so many GPUs like this one did what they can at best; None where that is not known."""
    found = card(torch.cuda.get_device_name(device)) if device.type == "cuda" else None
    if found is None or (peak := found.peak(run.precision)) is None:
        return None
    try:
        return workers * peak / flop_an_image(run, teacher)
    # A teacher may be any network of timm's, and no run ends for want of this figure.
    except Exception as error:
        logger.warning("the share of the card's peak is not known, as the FLOP cannot be counted: %s", error)
        return None


def _words(loading: Loading, share: float, rate: float) -> str:
    waits = f"training waits for images {100 * share:.0f} % of the time"
    if not loading.decoders:
        return (
            f"{waits}, although they are in memory: the {loading.cores:g} cores of the node have other work; give the "
            "pool more of them for each worker (cpu)"
        )
    return (
        f"{waits}: {loading.decoders} decoding processes on {loading.cores:g} cores of each node keep up with "
        f"{rate:.0f} images/s in all; give the pool more cores for each worker (cpu; docs/pools.md says how many), or "
        "store the images smaller"
    )


class Waits(Generic[Mark]):
    """Seconds in which there was nothing to do, because a batch was not there yet."""

    def __init__(self, mark: Callable[[], Mark], between: Callable[[Mark, Mark], float | None]) -> None:
        """`mark`: of a moment; `between`: seconds from one to a later one, None while they are not known."""
        self._mark, self._between = mark, between
        self._unknown: deque[tuple[Mark, Mark]] = deque()
        self._seconds = 0.0

    def timed(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        while True:
            before = self._mark()
            try:
                batch = next(batches)
            except StopIteration:
                return
            self._unknown.append((before, self._mark()))
            yield batch

    def seconds(self) -> float:
        """So far, as much of it as is known."""
        while self._unknown and (seconds := self._between(*self._unknown[0])) is not None:
            self._seconds += seconds
            self._unknown.popleft()
        return self._seconds


def _waits(device: torch.device, clock: Callable[[], float]) -> Waits[Any]:
    if device.type == "cuda":
        # By the GPU's own clock: while this thread waits, the GPU may have work in its queue, and then nothing is lost.
        return Waits(_event, _gpu_seconds)
    return Waits(clock, lambda before, after: after - before)


def _event() -> torch.cuda.Event:
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event


def _gpu_seconds(before: torch.cuda.Event, after: torch.cuda.Event) -> float | None:
    return before.elapsed_time(after) / 1000 if after.query() else None
