"""A lost database is written anew from the store, and a restored one that is older than the store goes on after it."""

import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import event, insert, select, text, update

from service.compare.service import comparison_of
from service.db import Database
from service.errors import NotEmpty
from service.experiments import actions, repository
from service.experiments import service as experiments
from service.experiments.extend import Extension, extend
from service.experiments.search import Search
from service.rebuild import rebuild
from service.record import unrecorded
from service.retention import service as retention
from service.schemas.experiments import Part
from service.settings import Settings
from service.states import RunState
from service.tables import Experiment, Run
from tests.unit.service.bench import Bench
from tests.unit.service.test_reconciler import finish_all
from tests.unit.service.test_retention import ended
from trainer.store.objects import open_store
from trainer.weights.sources import FILES_ONLY

NOW = datetime(2026, 11, 1, tzinfo=UTC)


@pytest.fixture
def empty(settings: Settings) -> Iterator[Database]:
    db = Database(f"sqlite:///{settings.work_dir}/anew.db")
    db.migrate()
    yield db
    db.engine.dispose()


def tables(bench: Bench) -> dict[str, Any]:
    """All that is shown of every experiment and run, number by number; not when rows of the database were written."""
    found: dict[str, Any] = {}
    with bench.db.read() as session:
        wanted = [Search(deleted=deleted).conditions() for deleted in (False, True)]
        both = [experiment for asked in wanted for experiment in repository.page(session, 100, None, asked)]
        for experiment in both:
            id = experiment.id
            found[id] = experiments.show(bench.db, bench.settings, id).model_dump(mode="json")
            comparison = comparison_of(session, id, "http://mlflow").model_dump(mode="json", exclude={"made_at"})
            found[f"table of {id}"] = comparison
        columns = (
            Run.id, Run.digest, Run.pretraining, Run.private_to, Run.state, Run.step, Run.total_steps, Run.result,
            Run.restarts, Run.world_sizes, Run.sessions, Run.process_seconds, Run.weights_of, Run.home_id,
            Run.created_at, Run.placement, Run.spec,
        )  # fmt: skip
        for row in session.execute(select(*columns).order_by(Run.id)):
            found[row.id] = tuple(row)
    return found


@pytest.mark.parametrize("database", ["sqlite", "postgresql"], indirect=True)
def test_a_lost_database_is_written_anew_number_by_number_and_goes_on(
    bench: Bench, empty: Database, spec: dict[str, Any]
) -> None:
    first = ended(bench, spec)
    extend(bench.db, first, Extension(seeds=3), FILES_ONLY, None)
    finish_all(bench)
    ended(bench, spec | {"name": "shares", "factors": {"mask_ratio": [0.75, 0.6]}})
    ended(bench, spec | {"name": "own", "share": False, "seeds": 1})
    base = spec["base"] | {"evaluation": {"rank_by": "sanity/psnr"}}
    in_rounds = {"base": base, "name": "rounds", "seeds": {"rounds": [3, 5], "futility": 0.0}}
    bench.submit(spec | in_rounds)
    for _ in range(3):
        finish_all(bench)
        bench.go(3)
    deleted = ended(bench, spec | {"name": "deleted", "factors": {"mask_ratio": [0.3]}})
    retention.delete(bench.db, bench.settings, deleted, "ann", objects=True, tracking=False)
    cancelled = bench.submit(spec | {"name": "cancelled", "factors": {"mask_ratio": [0.2]}})
    bench.go(3)
    actions.cancel(bench.db, cancelled, "bob")
    bench.go(6)
    failed = bench.submit(spec | {"name": "failed", "factors": {"mask_ratio": [0.1]}})
    bench.go(3)
    for name in bench.cluster.live():
        bench.cluster.fail(name)
    bench.go(4)
    live = bench.submit(spec | {"name": "live", "factors": {"mask_ratio": [0.4, 0.45]}, "concurrency": 3})
    bench.go(3)
    actions.cancel(bench.db, live, "ann", Part(runs=[bench.runs()[-1].id]))
    for name in bench.cluster.live():
        bench.cluster.train(name, 4)
    bench.go(6)
    before = tables(bench)
    bench.reconciler.stop()

    anew = Bench(empty, bench.settings)
    anew.cluster, anew.clock = bench.cluster, bench.clock
    anew.start()
    told = rebuild(empty, bench.settings, bench.cluster.live())
    assert (told.experiments, told.skipped) == (8, [])
    with pytest.raises(NotEmpty):
        rebuild(empty, bench.settings, bench.cluster.live())
    anew.go(3)
    after = tables(anew)
    assert after.keys() == before.keys()
    for id in before:
        assert after[id] == before[id], id
    finish_all(anew)
    assert experiments.show(anew.db, anew.settings, live).state == "succeeded"
    assert experiments.show(anew.db, anew.settings, failed).state == "failed"
    assert set(bench.cluster.submissions.values()) == {1}, "nothing is trained again"
    # And what is done to it from here on is done as before.
    actions.retry(anew.db, anew.settings, failed)
    finish_all(anew)
    retention.delete(anew.db, anew.settings, first, "ann", objects=True, tracking=False, undo_days=0)
    anew.go(3, seconds=40)
    assert not [entry for entry in open_store(anew.settings.store_uri).list("experiments/") if first in entry.name]
    anew.reconciler.stop()


def test_a_record_that_cannot_be_read_is_left_out_and_told(bench: Bench, empty: Database, spec: dict[str, Any]) -> None:
    good = ended(bench, spec)
    open_store(bench.settings.store_uri).put("experiments/e0123456789.json", b"{}")
    told = rebuild(empty, bench.settings, bench.cluster.live())
    assert (told.experiments, [item.name for item in told.skipped]) == (1, ["experiments/e0123456789.json"])
    with empty.read() as session:
        assert list(session.scalars(select(Experiment.id))) == [good]


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
@pytest.mark.parametrize("attempts", [0, 1, 2])
def test_a_dump_that_is_older_than_what_runs_starts_nothing_twice(
    bench: Bench, spec: dict[str, Any], tmp_path: Path, attempts: int
) -> None:
    """Restored from before the attempts that live now."""
    experiment = bench.submit(spec)
    for number in range(attempts):
        bench.go(5)
        for name in bench.cluster.live():
            bench.cluster.train(name, 2 + number)
            bench.cluster.end(name)
    with closing(sqlite3.connect(tmp_path / "mcf.db")) as source, closing(sqlite3.connect(tmp_path / "dump")) as dump:
        source.backup(dump)
    bench.go(8)
    lives = bench.cluster.live()
    assert {name.rpartition("-")[2] for name in lives} == {str(attempts + 1)}
    for name in lives:
        bench.cluster.train(name, 5)
    bench.go(2)
    bench.reconciler.stop()
    bench.db.engine.dispose()
    for path in tmp_path.glob("mcf.db*"):
        path.unlink()
    shutil.copy(tmp_path / "dump", tmp_path / "mcf.db")
    bench.start()
    bench.go(10, seconds=10)
    assert bench.cluster.live() == lives, "what lives is found again, and nothing else is started"
    finish_all(bench)
    assert bench.states() == {RunState.SUCCEEDED: 4}
    assert experiments.show(bench.db, bench.settings, experiment).state == "succeeded"
    assert set(bench.cluster.submissions.values()) == {1}


@pytest.mark.parametrize("is_measured", [False, True])
def test_of_ten_thousand_experiments_those_to_record_are_found_by_an_index(
    database: Database, is_measured: bool
) -> None:
    # What the tables hold decides for PostgreSQL whether it uses an index, once it has measured them.
    rows = [
        {
            "id": f"e{number:010x}", "name": "x", "spec": {"seeds": 1}, "created_at": NOW, "request_digest": "d",
            "concurrency": 1, "priority": 0, "next_check_at": NOW, "published": True, "revision": 3, "recorded": 3,
        }
        for number in range(10_000)
    ]  # fmt: skip
    asked: list[tuple[str, Any]] = []

    def note(conn: object, cursor: object, statement: str, parameters: Any, *rest: object) -> None:
        asked.append((statement, parameters))

    with database.write() as session:
        session.execute(insert(Experiment), rows)
        session.execute(update(Experiment).where(Experiment.id == rows[77]["id"]).values(recorded=-1))
        if is_measured:
            session.execute(text("ANALYZE experiments"))
    with database.read() as session:
        event.listen(database.engine, "before_cursor_execute", note)
        assert [(found.id, revision) for found, revision in unrecorded(session, 5)] == [(rows[77]["id"], 3)]
        event.remove(database.engine, "before_cursor_execute", note)
        [(statement, parameters)] = [item for item in asked if item[0].startswith("SELECT")]
        explain = "EXPLAIN QUERY PLAN" if database.is_sqlite else "EXPLAIN"
        plan = str(session.connection().exec_driver_sql(f"{explain} {statement}", parameters).all())
    assert "experiments_unrecorded" in plan, plan
