"""Migrations on both kinds of database, alone and in a race."""

import threading

from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from sqlalchemy import inspect, text

from service.db import MIGRATIONS, Database
from service.tables import Base


def test_migrations_make_the_tables_the_code_expects(database: Database) -> None:
    with database.engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, Base.metadata) == []


def test_migrations_can_be_taken_back(database: Database) -> None:
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    with database.engine.connect() as connection:
        config.attributes["connection"] = connection
        command.downgrade(config, "base")
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


def test_writers_wait_for_each_other_and_lose_nothing(database: Database) -> None:
    with database.write() as session:
        session.execute(text("CREATE TABLE counters (value INTEGER)"))
        session.execute(text("INSERT INTO counters VALUES (0)"))

    def count() -> None:
        for _ in range(25):
            with database.write() as session:
                database.exclusively(session)
                value = session.execute(text("SELECT value FROM counters")).scalar_one()
                session.execute(text("UPDATE counters SET value = :value"), {"value": value + 1})

    threads = [threading.Thread(target=count) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with database.read() as session:
        assert session.execute(text("SELECT value FROM counters")).scalar_one() == 100
