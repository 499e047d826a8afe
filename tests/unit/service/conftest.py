"""Real databases, run directories and a bench for the control plane (bench.py)."""

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text

from service.db import Database
from service.settings import Settings
from tests.postgres import NoPostgres, running_postgres
from tests.unit.service.bench import Bench
from tests.unit.service.orderly import watch


@pytest.fixture(scope="session")
def postgres() -> Iterator[str]:
    """Address of a real PostgreSQL server."""
    with ExitStack() as stack:
        try:
            address = stack.enter_context(running_postgres())
        except NoPostgres as error:
            pytest.skip(str(error))
        yield address


@pytest.fixture(params=["sqlite", "postgresql"])
def database(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Database]:
    """An empty, migrated database of either kind."""
    if request.param == "sqlite":
        db = Database(f"sqlite:///{tmp_path}/mcf.db")
    else:
        db = Database(request.getfixturevalue("postgres"))
        with db.write() as session:
            session.execute(text("DROP SCHEMA public CASCADE"))
            session.execute(text("CREATE SCHEMA public"))
    db.migrate()
    disorderly = [] if db.is_sqlite else watch(db)  # SQLite has one writer at a time
    yield db
    db.engine.dispose()
    assert not disorderly, "one of two such transactions that meet would be given up as a deadlock"


@pytest.fixture
def spec(tiny_faces: Path) -> dict[str, Any]:
    """A request: two arms of two seeds; change what matters."""
    return {
        "name": "bench",
        "base": {
            "preset": "tiny", "data": {"uri": str(tiny_faces)}, "teacher": "none",
            "schedule": {"unit": "steps", "length": 10, "warmup": 1},
        },
        "factors": {"mask_ratio": [0.75, 0.5]},
        "seeds": 2,
        "concurrency": 100,
    }  # fmt: skip


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(work_dir=tmp_path, max_concurrent_runs=100, reconcile_threads=16)


@pytest.fixture
def bench(database: Database, settings: Settings) -> Iterator[Bench]:
    made = Bench(database, settings)
    yield made
    made.reconciler.stop()
