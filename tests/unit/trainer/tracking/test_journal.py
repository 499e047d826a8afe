"""What a run says of itself, as its watcher reads it."""

import math
import threading
import time
from datetime import UTC, datetime
from pathlib import Path

import pytest

from trainer.contract import records
from trainer.contract.records import Outcome, Reading, Readings, Verdict
from trainer.store import rundir
from trainer.store.objects import DirectoryStore, StorageError
from trainer.tracking.journal import Journal

ENDED = Outcome(verdict=Verdict.SUCCEEDED, step=60, ended_at=datetime.now(UTC))


def test_a_session_is_readable_at_once_and_shows_the_last_news_after_closing(tmp_path: Path) -> None:
    store = DirectoryStore(str(tmp_path))
    for attempt in 1, 2:
        journal = Journal(store, attempt, world_size=2, device="cpu", total_steps=60, first_step=20)
        assert rundir.read_sessions(store)[-1].step == 20
        journal.update(40, {"loss/total": 1.5, "loss/bad": math.nan}, 100.0)
        journal.close(stage="done")
    assert journal.restarts == 1
    first, second = rundir.read_sessions(store)
    assert (first.number, first.attempt, second.number, second.attempt) == (1, 1, 2, 2)
    assert (second.step, second.stage, second.losses, second.images_per_second) == (
        40,
        "done",
        {"loss/total": 1.5},
        100,
    )
    assert second.process_seconds > 0


def test_a_store_that_is_away_costs_a_warning_and_comes_back(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "run").write_text("a file where the directory should be")
    store = DirectoryStore(str(tmp_path / "run"))
    journal = Journal(store, 1, world_size=1, device="cpu", total_steps=60)
    journal.update(1, {}, None)
    journal.close()
    journal._write()
    assert caplog.text.count("cannot be written") == 1
    (tmp_path / "run").unlink()
    journal._write()
    assert rundir.read_sessions(store)[0].number == 1


def test_an_outcome_is_insisted_on(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("in the way")
    store = DirectoryStore(str(tmp_path / "run"))
    journal = Journal(store, 1, world_size=1, device="cpu", total_steps=60)
    with pytest.raises(StorageError):
        journal.finish(ENDED, patience_seconds=0.1)
    threading.Timer(0.7, (tmp_path / "run").unlink).start()
    started = time.monotonic()
    journal.finish(ENDED, patience_seconds=10)
    assert 0.4 < time.monotonic() - started < 9
    journal.close()
    assert rundir.read_outcome(store) == ENDED


def test_a_run_directory_that_is_empty_or_spoilt_reads_as_such(tmp_path: Path) -> None:
    store = DirectoryStore(str(tmp_path))
    assert (rundir.read_outcome(store), rundir.read_result(store), rundir.read_sessions(store)) == (None, None, [])
    store.put(records.checkpoint_name(20) + records.COMMITTED, b"{")
    assert rundir.list_checkpoints(store) == []
    store.put(records.OUTCOME, b"{}")
    with pytest.raises(StorageError, match=r"outcome.json is not a Outcome"):
        rundir.read_outcome(store)


def test_readings_are_there_before_the_session_says_so_and_before_the_outcome(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("in the way")
    store = DirectoryStore(str(tmp_path / "run"))
    journal = Journal(store, 1, world_size=1, device="cpu", total_steps=60)
    reading = Reading(step=20, images_seen=40, probe=None, sanity=[], seconds=0.5)
    journal.keep(Readings(readings=(reading,)))  # waits for no store
    journal._write()
    (tmp_path / "run").unlink()
    for _ in range(100):  # its own thread may just be trying in vain
        journal._write()
        if rundir.read_readings(store).readings:
            break
        time.sleep(0.05)
    assert rundir.read_readings(store).readings == (reading,)
    assert rundir.read_sessions(store)[-1].last_reading == 20

    journal.keep(Readings(readings=(reading,), note="one is left out"))
    journal.finish(ENDED, patience_seconds=1)
    assert rundir.read_outcome(store) == ENDED
    assert rundir.read_readings(store).note == "one is left out"
    journal.close()
