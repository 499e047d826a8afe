"""Migrations on both kinds of database, alone and in a race."""

import signal
import subprocess
import sys
import threading
from datetime import UTC, datetime
from typing import Any

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from sqlalchemy import inspect, select, text
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from service.db import MIGRATIONS, Database, NewerDatabase
from service.states import Scope
from service.tables import Attempt, Base, Experiment, Token, Trial
from tests.unit.service.bench import Bench


def test_migrations_make_the_tables_the_code_expects(database: Database) -> None:
    with database.engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, Base.metadata) == []


def downgrade(database: Database, revision: str) -> None:
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    with database.engine.connect() as connection:
        config.attributes["connection"] = connection
        command.downgrade(config, revision)


def test_experiments_from_before_there_were_projects_are_in_the_default_one(database: Database) -> None:
    downgrade(database, "0001")
    with database.write() as session:
        fill_as_0001(session)
    database.migrate()
    with database.read() as session:
        rows = session.execute(text("SELECT id, project, idempotency_key, name FROM experiments")).all()
        assert rows == [("e1", "default", "key", "old")]
        used = select(Experiment.name, Trial.seed, Attempt.number)
        used = used.join(Trial, Trial.experiment_id == Experiment.id).join(Attempt, Attempt.run_id == Trial.run_id)
        assert session.execute(used).all() == [("old", 7, 1)], "what refers to it still does"
    # One key, two projects; and what is referred to is still held.
    with database.write() as session:
        session.execute(text(INSERT_EXPERIMENT.format("id, project", "'e2', 'faces'")))
    for statement in INSERT_EXPERIMENT.format("id", "'e3'"), "DELETE FROM experiments WHERE id = 'e1'":
        with pytest.raises(IntegrityError), database.write() as session:
            session.execute(text(statement))
    downgrade(database, "0001")
    with database.read() as session:
        rows = session.execute(text("SELECT id, idempotency_key FROM experiments ORDER BY id")).all()
    assert rows == [("e1", "key"), ("e2", None)]
    database.migrate()


def test_runs_of_before_have_the_digests_of_today(bench: Bench, spec: dict[str, Any]) -> None:
    bench.submit(spec)
    private = bench.submit(spec | {"share": False})
    today = {run.id: (run.digest, run.pretraining, run.private_to) for run in bench.runs()}
    downgrade(bench.db, "0003")
    with bench.db.write() as session:
        session.execute(text("UPDATE runs SET digest = id"))
    bench.db.migrate()
    assert {run.id: (run.digest, run.pretraining, run.private_to) for run in bench.runs()} == today
    assert {private_to for _, _, private_to in today.values()} == {"", private}
    bench.submit(spec)
    assert len(bench.runs()) == len(today)


INSERT_EXPERIMENT = (
    "INSERT INTO experiments ({}, name, spec, created_at, idempotency_key, request_digest, concurrency, priority, "
    "cancel_reason, published, next_check_at) VALUES ({}, 'old', '{{}}', '2026-01-02 03:04:05', 'key', 'd', 1, 0, '', "
    "false, '2026-01-02 03:04:05')"
)


def fill_as_0001(session: Session) -> None:
    """One row in each table, as the first version wrote them."""
    at = "'2026-01-02 03:04:05'"
    session.execute(text(INSERT_EXPERIMENT.format("id", "'e1'")))
    session.execute(text("INSERT INTO arms VALUES (1, 'e1', 0, 'all', '{}', true)"))
    runs = (
        "id, digest, spec, placement, home_id, created_at, state, admitted, waiting_reason, cancel_reason, fruitless, "
        "reason, kind, stage, step, total_steps, losses, restarts, world_sizes, train_seconds, process_seconds, "
        "settled, next_check_at"
    )
    values = (
        f"'r1', 'd', '{{}}', '{{}}', 'e1', {at}, 'queued', false, '', '', 0, '', '', '', 0, 10, '{{}}', 0, '[]', 0, 0, "
        f"false, {at}"
    )
    session.execute(text(f"INSERT INTO runs ({runs}) VALUES ({values})"))
    session.execute(text("INSERT INTO trials VALUES (1, 'e1', 1, 7, 'r1')"))
    attempts = "run_id, number, state, confirmed, first_step, last_step, created_at, reason"
    session.execute(text(f"INSERT INTO attempts ({attempts}) VALUES ('r1', 1, 'running', true, 0, 0, {at}, '')"))


def test_migrations_can_be_taken_back(database: Database) -> None:
    downgrade(database, "base")
    assert inspect(database.engine).get_table_names() == ["alembic_version"]
    database.migrate()


def test_services_that_start_together_migrate_once(database: Database) -> None:
    with database.write() as session:
        for table in [*reversed(Base.metadata.sorted_tables)]:
            session.execute(text(f"DROP TABLE {table.name}"))
        session.execute(text("DROP TABLE alembic_version"))
    others = [Database(database.engine.url.render_as_string(hide_password=False)) for _ in range(3)]
    failures: list[Exception] = []

    def migrate(db: Database) -> None:
        try:
            db.migrate()
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=migrate, args=(db,)) for db in others]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    for db in others:
        db.engine.dispose()


def test_a_database_that_others_write_to_is_migrated(database: Database) -> None:
    with database.write() as session:
        session.execute(text("CREATE TABLE counters (value INTEGER)"))
        session.execute(text("INSERT INTO counters VALUES (0)"))
    ended = threading.Event()

    def count() -> None:
        while not ended.is_set():
            with database.write() as session:
                session.execute(text("UPDATE counters SET value = value + 1"))

    downgrade(database, "0012")
    writers = [threading.Thread(target=count) for _ in range(4)]
    for writer in writers:
        writer.start()
    try:
        database.migrate()
    finally:
        ended.set()
        for writer in writers:
            writer.join()


def test_writers_wait_for_each_other_and_lose_nothing(database: Database) -> None:
    with database.write() as session:
        session.execute(text("CREATE TABLE counters (value INTEGER)"))
        session.execute(text("INSERT INTO counters VALUES (0)"))

    def count() -> None:
        for _ in range(25):
            with database.deciding() as session:
                value = session.execute(text("SELECT value FROM counters")).scalar_one()
                session.execute(text("UPDATE counters SET value = :value"), {"value": value + 1})

    threads = [threading.Thread(target=count) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with database.read() as session:
        assert session.execute(text("SELECT value FROM counters")).scalar_one() == 100


FROZEN = """
import sys, time
from service import db
db.FROZEN_SECONDS = 2
held = db.Database(sys.argv[1])
with held.deciding():
    print("held", flush=True)
    time.sleep(600)
"""


def test_a_service_that_freezes_in_a_transaction_does_not_hold_up_the_others(postgres: str) -> None:
    # Its connection stays, as that of a pod on a node that has gone does: nobody would decide about any run any more.
    with subprocess.Popen([sys.executable, "-c", FROZEN, postgres], stdout=subprocess.PIPE) as frozen:
        try:
            assert frozen.stdout
            assert frozen.stdout.readline() == b"held\n"
            frozen.send_signal(signal.SIGSTOP)
            with Database(f"{postgres}&options=-c%20lock_timeout%3D30s").deciding():
                pass
        finally:
            frozen.kill()


def test_neither_side_waits_for_long_for_one_that_has_been_cut_off(postgres: str) -> None:
    made = Database(postgres)
    with made.read() as session:
        found = {
            name: session.execute(text(f"SHOW {name}")).scalar_one()
            for name in ("idle_in_transaction_session_timeout", "client_connection_check_interval")
        }
        raw = session.connection().connection.driver_connection
        assert raw
        asked = raw.info.get_parameters()
    assert found == {"idle_in_transaction_session_timeout": "1min", "client_connection_check_interval": "10s"}
    assert (asked["keepalives_idle"], asked["keepalives_count"], asked["tcp_user_timeout"]) == ("10", "2", "20000")


def test_times_are_in_utc_whatever_the_zone_of_the_connection(database: Database) -> None:
    if database.is_sqlite:
        pytest.skip("SQLite has no zones")
    at = datetime(2026, 1, 2, 3, 4, tzinfo=UTC)
    with database.write() as session:
        session.execute(text("SET TIME ZONE 'Asia/Kolkata'"))
        session.add(Token(id="t1", name="n", digest="d", scope=Scope.READ, created_at=at))
        session.flush()
        session.expire_all()
        found = session.get_one(Token, "t1").created_at
    assert f"{found:%H:%M} UTC" == "03:04 UTC"


def test_a_service_that_is_older_than_its_database_says_so_and_touches_nothing(bench: Bench) -> None:
    with bench.db.write() as session:
        session.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(NewerDatabase, match="its schema is 9999") as caught:
        bench.db.migrate()
    assert "restore the dump" in str(caught.value)
    with bench.db.write() as session:
        assert session.scalar(text("SELECT version_num FROM alembic_version")) == "9999"
