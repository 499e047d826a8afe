"""How fast a session trains and what it waits for, by a clock that is set."""

import logging
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
import torch

from trainer.contract import RunSpec
from trainer.contract.records import Session, Speed
from trainer.store.objects import DirectoryStore
from trainer.store.rundir import read_sessions
from trainer.tracking import speed
from trainer.tracking.journal import Journal
from trainer.tracking.log import RunLog
from trainer.tracking.report import RankZero
from trainer.tracking.speed import FIRST_STEPS, Loading, Speedometer

CPU = torch.device("cpu")
DECODING = Loading(decoders=3, cores=4)


class Training:
    """Steps of 10 images, each after a batch that takes `wait` seconds and before `work` seconds."""

    def __init__(self, loading: Loading = DECODING, at_peak: float | None = None) -> None:
        self.now, self.wait, self.work = 100.0, 0.5, 1.5
        self.speed = Speedometer(10, loading, CPU, at_peak, clock=lambda: self.now)
        self.batches = self.speed.timed(self._load())

    def _load(self) -> Iterator[int]:
        for number in range(10_000):
            self.now += self.wait
            yield number

    def steps(self, count: int) -> None:
        for _ in range(count):
            next(self.batches)
            self.now += self.work
            self.speed.step()


def test_speed_and_waiting_are_those_of_the_steps_after_the_first() -> None:
    training = Training(at_peak=50.0)
    training.wait, training.work = 1000.0, 1000.0
    training.steps(1)
    assert training.speed.since_last() == {}, "of one step there is only the slow start"
    training.wait, training.work = 0.5, 1.5
    training.steps(4)
    assert training.speed.so_far == Speed(images=40, seconds=8.0, waiting_seconds=2.0, peak_share=0.1)
    assert training.speed.since_last() == {"images_per_second": 5.0, "waiting_share": 0.25, "peak_share": 0.1}
    training.wait = 0.0
    training.steps(2)
    assert training.speed.since_last()["waiting_share"] == 0.0
    assert training.speed.so_far.waiting_seconds == 2.0


def test_compiling_is_told_apart_from_training_whenever_it_happens() -> None:
    training = Training()
    training.speed.compile_seconds = 60.0
    training.now += 60
    training.steps(2)
    training.speed.compile_seconds += 30.0
    training.now += 30
    training.steps(1)
    found = training.speed.so_far
    assert (found.seconds, found.compile_seconds) == (4.0, 90.0)
    assert training.speed.since_last() == {"compile_seconds": 90.0, "images_per_second": 5.0, "waiting_share": 0.25}


def test_a_run_that_waits_for_images_says_so_once_in_the_log_and_for_as_long_as_it_lasts_on_its_page(
    caplog: pytest.LogCaptureFixture,
) -> None:
    training = Training()
    training.steps(FIRST_STEPS + 14)
    assert not training.speed.trouble, "28 seconds after its first steps nobody can tell"
    with caplog.at_level(logging.WARNING):
        training.steps(100)
    told = training.speed.trouble
    assert told.startswith("training waits for images 25 % of the time: 3 decoding processes on 4 cores of each node")
    assert "keep up with 5 images/s" in told
    assert caplog.text.count("training waits for images") == 1
    training.wait = 0.0
    training.steps(60)
    assert not training.speed.trouble
    training.wait = 0.5
    training.steps(60)
    assert training.speed.trouble
    training.speed.end()
    assert not training.speed.trouble


def test_where_images_are_in_memory_it_does_not_blame_decoding() -> None:
    training = Training(Loading(0, 4))
    training.steps(FIRST_STEPS + 20)
    assert "although they are in memory" in training.speed.trouble


def test_a_gpu_with_work_in_its_queue_waits_for_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    class Event:
        """Recorded when the GPU gets there: at once after the thread, or later where it has work to do."""

        thread, gpu = 0.0, 10.0

        def __init__(self, enable_timing: bool) -> None:
            assert enable_timing

        def record(self) -> None:
            self.at = max(Event.thread, Event.gpu)

        def query(self) -> bool:
            return Event.thread >= self.at

        def elapsed_time(self, other: "Event") -> float:
            return 1000 * (other.at - self.at)

    def load() -> Iterator[int]:
        for seconds in 4.0, 9.0:
            Event.thread += seconds
            yield 0

    monkeypatch.setattr(torch.cuda, "Event", Event)
    waits = speed._waits(torch.device("cuda"), lambda: pytest.fail("the thread's clock"))
    batches = waits.timed(load())
    next(batches)
    assert waits.seconds() == 0.0
    next(batches)
    # From 10 s on the GPU had nothing to do; the second batch came at 13 s.
    assert waits.seconds() == 3.0


def test_a_session_of_before_there_was_a_speed_can_be_read() -> None:
    at = datetime.now(UTC).isoformat()
    old = {
        "number": 1, "attempt": 1, "world_size": 2, "device": "cpu", "first_step": 0, "step": 3, "total_steps": 9,
        "stage": "training", "images_per_second": 5.0, "losses": {}, "started_at": at, "seen_at": at,
    }  # fmt: skip
    assert Session.model_validate(old).speed == Speed()


def test_a_session_tells_both_what_mlflow_and_what_loading_wants_of_somebody(tmp_path: Path, tiny_run: RunSpec) -> None:
    store = DirectoryStore(str(tmp_path))
    log, training = RunLog(None, None, attempt=1), Training()
    journal = Journal(store, 1, world_size=1, device="cpu", total_steps=9)
    report = RankZero(tiny_run, log, journal, world_size=1, steps=range(9), draw=None, speed=training.speed)
    log.trouble, training.speed.trouble = "the run was deleted", "training waits for images"
    report.step(1, {"total": 1.0})
    journal.close()
    [session] = read_sessions(store)
    assert session.trouble == "the run was deleted; training waits for images"
    report.step(9, {"total": 1.0})
    assert training.speed.trouble == "", "evaluation waits for no images"
