"""Engine, sessions and migrations, for SQLite and PostgreSQL alike.

A session is short and never open while the network is waited for. `read()` sees one state of the database;
`write()` takes SQLite's write lock at its start, so two writers queue up instead of failing half-way.
"""

import contextlib
import fcntl
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, Engine, create_engine, event, make_url, text
from sqlalchemy.orm import Session

MIGRATIONS = Path(__file__).parent / "migrations"
# Any number that no other program uses in this database.
MIGRATION_LOCK, EXCLUSIVE_LOCK = 6301, 6302
# A service that is cut off in a transaction keeps its locks, and PostgreSQL would wait two hours for it; for one that
# is frozen, whose kernel still answers, it would wait for ever.
SILENT_SECONDS, FROZEN_SECONDS = 20, 60


class NewerDatabase(Exception):
    """A newer release has migrated the database; nothing of it is touched."""


class Database:
    """Sessions on one database."""

    def __init__(self, url: str) -> None:
        self.url = make_url(url)
        self.is_sqlite = self.url.get_backend_name() == "sqlite"
        self.engine = _sqlite(url) if self.is_sqlite else _postgresql(url)
        # NaN has no place in JSON, and PostgreSQL would refuse it long after who wrote it has gone.
        self._write_engine = self.engine.execution_options(immediate=True)

    @contextlib.contextmanager
    def read(self) -> Iterator[Session]:
        with Session(self.engine, expire_on_commit=False, autoflush=False) as session:
            yield session

    @contextlib.contextmanager
    def write(self) -> Iterator[Session]:
        """A transaction that is committed at the end, or not at all."""
        with Session(self._write_engine, expire_on_commit=False) as session, session.begin():
            yield session

    @contextlib.contextmanager
    def deciding(self) -> Iterator[Session]:
        """`write()` for what concerns many runs and experiments at once: one such transaction at a time, in all
        services together, so that two of them never wait for each other's rows in a circle.

        Others wait for one row at a time: that of a run, and after it the key alone of an experiment.
        """
        with self.write() as session:
            if not self.is_sqlite:  # write() holds SQLite's only write lock
                session.execute(text(f"SELECT pg_advisory_xact_lock({EXCLUSIVE_LOCK})"))
            yield session

    def migrate(self) -> None:
        """Bring the schema up to date; of several services starting together one does it, the others wait.

        Raises NewerDatabase.
        """
        config = Config()
        config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
        # To read the revision and write afterwards would fail at once, had another written between.
        with self._migration_lock(), self._write_engine.connect() as connection:
            config.attributes["connection"] = connection
            self._refuse_newer(config, connection)
            command.upgrade(config, "head")

    def _refuse_newer(self, config: Config, connection: Connection) -> None:
        has = MigrationContext.configure(connection).get_current_revision()
        connection.rollback()
        script = ScriptDirectory.from_config(config)
        if has is not None and has not in {revision.revision for revision in script.walk_revisions()}:
            raise NewerDatabase(
                f"The database is of a newer release of mcf: its schema is {has}, and this release knows "
                f"{script.get_current_head()} at most. Start the newer release again; or restore the dump from before "
                "the upgrade, and runs go on from what the store has (docs/backup.md)."
            )

    @contextlib.contextmanager
    def _migration_lock(self) -> Iterator[None]:
        if self.is_sqlite:
            if not self.url.database or self.url.database == ":memory:":
                yield
                return
            with Path(f"{self.url.database}.lock").open("w") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                yield
            return
        with self.engine.connect() as connection:
            connection.execute(text(f"SELECT pg_advisory_lock({MIGRATION_LOCK})"))
            try:
                yield
            finally:
                connection.execute(text(f"SELECT pg_advisory_unlock({MIGRATION_LOCK})"))
                connection.commit()

    def ping(self) -> None:
        with self.read() as session:
            session.execute(text("SELECT 1"))


def _postgresql(url: str) -> Engine:
    """Neither side waits for long for one that has silently gone: the service goes on with another connection, and the
    server takes back what a transaction had changed and locked."""
    idle = SILENT_SECONDS // 2
    keepalives = {"idle": idle, "interval": max(1, idle // 2), "count": 2}
    client = {f"keepalives_{name}": value for name, value in keepalives.items()}
    client |= {"tcp_user_timeout": SILENT_SECONDS * 1000, "connect_timeout": SILENT_SECONDS}
    server = {f"tcp_keepalives_{name}": str(value) for name, value in keepalives.items()}
    server |= {"idle_in_transaction_session_timeout": f"{FROZEN_SECONDS}s"}
    engine = create_engine(url, pool_pre_ping=True, pool_size=10, connect_args=client)

    @event.listens_for(engine, "connect")
    def _connect(connection: Any, _: object) -> None:
        # Not as options of the connection, which a pooler between would refuse.
        waiting = {"client_connection_check_interval": f"{idle}s"} if connection.info.server_version >= 140000 else {}
        with connection.cursor() as cursor:
            for name, value in (server | waiting).items():
                cursor.execute("SELECT set_config(%s, %s, false)", (name, value))
        connection.commit()

    return engine


def _sqlite(url: str) -> Engine:
    path = make_url(url).database
    if path and path != ":memory:":
        Path(path).parent.mkdir(parents=True, exist_ok=True)
    engine = create_engine(url, json_serializer=json.dumps, connect_args={"timeout": 30})

    @event.listens_for(engine, "connect")
    def _connect(connection: Any, _: object) -> None:
        # The driver would begin transactions behind our back, and too late.
        connection.isolation_level = None
        for pragma in "journal_mode=WAL", "busy_timeout=30000", "foreign_keys=ON", "synchronous=FULL":
            connection.execute(f"PRAGMA {pragma}")

    @event.listens_for(engine, "begin")
    def _begin(connection: Connection) -> None:
        immediate = connection.get_execution_options().get("immediate")
        connection.exec_driver_sql("BEGIN IMMEDIATE" if immediate else "BEGIN")

    return engine
