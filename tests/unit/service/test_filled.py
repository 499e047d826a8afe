"""A database of 10,000 runs and 100,000 attempts is brought up to date while others read and write it."""

import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import func, insert, select, text

from service.db import Database
from service.states import AttemptState, RunState
from service.tables import Arm, Attempt, Experiment, Run, Trial
from tests.unit.service.test_db import downgrade

pytestmark = pytest.mark.slow

EXPERIMENTS, RUNS, ATTEMPTS = 200, 50, 10
"""Of each experiment so many runs, of each run so many attempts."""
# The last release before day two.
BEFORE = "0010"
NOW = datetime(2026, 11, 1, tzinfo=UTC)


def fill(db: Database) -> None:
    spec = {"seeds": RUNS, "placement": {"pool": "local", "priority": 0}, "base": {}, "share": True}
    ids = [f"e{number:010x}" for number in range(EXPERIMENTS)]
    runs = [(f"r{number:012x}", ids[number // RUNS]) for number in range(EXPERIMENTS * RUNS)]
    with db.write() as session:
        session.execute(insert(Experiment), [
            {"id": id, "name": f"n{n}", "spec": spec, "created_at": NOW + timedelta(minutes=n), "request_digest": "d",
             "concurrency": 1, "priority": 0, "next_check_at": NOW, "published": True}
            for n, id in enumerate(ids)
        ])  # fmt: skip
        session.execute(insert(Arm), [
            {"id": n + 1, "experiment_id": id, "position": 0, "name": "all", "levels": {}, "is_baseline": True}
            for n, id in enumerate(ids)
        ])  # fmt: skip
        session.execute(insert(Run), [
            {"id": id, "digest": id * 4, "spec": {"data": {"uri": "x"}, "seed": n}, "placement": {}, "home_id": home,
             "created_at": NOW, "total_steps": 10, "step": 10, "state": RunState.SUCCEEDED, "settled": True,
             "next_check_at": NOW, "result": {"steps": 10}, "sessions": [{"attempt": 1}] * 5}
            for n, (id, home) in enumerate(runs)
        ])  # fmt: skip
        session.execute(insert(Trial), [
            {"experiment_id": home, "arm_id": n // RUNS + 1, "seed": n % RUNS, "run_id": id}
            for n, (id, home) in enumerate(runs)
        ])  # fmt: skip
        session.execute(insert(Attempt), [
            {"run_id": id, "number": number, "state": AttemptState.SUCCEEDED, "first_step": 0, "created_at": NOW,
             "reason": "", "log_tail": "the last lines that it printed\n" * 3}
            for id, _ in runs for number in range(1, ATTEMPTS + 1)
        ])  # fmt: skip


def test_others_go_on_while_a_filled_database_is_migrated(database: Database) -> None:
    fill(database)
    downgrade(database, BEFORE)
    stop, did, errors = threading.Event(), [0, 0], list[str]()

    def repeat(place: int, what: Callable[[Any], object]) -> None:
        # As a replica of the release before does, by the columns that it knows.
        while not stop.is_set():
            try:
                with database.read() if place == 0 else database.write() as session:
                    what(session)
                did[place] += 1
            except Exception as error:
                errors.append(f"{type(error).__name__}: {error}")
            time.sleep(0.01)

    reads = text("SELECT id, state, reason FROM runs WHERE home_id = 'e0000000003'")
    writes = text("UPDATE runs SET waiting_reason = 'seen' WHERE id = 'r000000000007'")
    replicas = [
        threading.Thread(target=repeat, args=(place, lambda session, asked=asked: session.execute(asked)))
        for place, asked in enumerate((reads, writes))
    ]
    for replica in replicas:
        replica.start()
    try:
        database.migrate()
    finally:
        stop.set()
        for replica in replicas:
            replica.join()
    assert errors == []
    assert all(did), "both went on"
    with database.read() as session:
        counts = [
            session.scalar(select(func.count()).select_from(table)) for table in (Experiment, Run, Trial, Attempt)
        ]
        run = session.get_one(Run, "r000000000007")
    assert counts == [EXPERIMENTS, EXPERIMENTS * RUNS, EXPERIMENTS * RUNS, EXPERIMENTS * RUNS * ATTEMPTS]
    assert (run.waiting_reason, run.pause_reason, run.checkpoints_kept) == ("seen", "", None)
