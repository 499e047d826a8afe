"""Real databases, run directories and a bench for the control plane (bench.py)."""

import glob
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text

from service.db import Database
from service.settings import Settings
from tests.unit.service.bench import Bench


@pytest.fixture(scope="session")
def postgres() -> Iterator[str]:
    """Address of a real PostgreSQL server, from Debian's packages."""
    found = sorted(glob.glob("/usr/lib/postgresql/*/bin"))
    if not found:
        pytest.skip("needs PostgreSQL: apt-get install postgresql")
    binaries = found[-1]
    # The server refuses to run as root, and may not look into pytest's own folders.
    user = "postgres" if os.getuid() == 0 else None
    folder = tempfile.mkdtemp(prefix="mcf-pg-", dir="/tmp")
    if user:
        shutil.chown(folder, user)
    run: Callable[..., Any] = lambda *command: subprocess.run(command, user=user, check=True, capture_output=True)  # noqa: E731
    run(f"{binaries}/initdb", "-D", f"{folder}/data", "-U", "mcf", "--auth=trust", "--no-sync")
    options = f"-k {folder} -c listen_addresses='' -c fsync=off -c max_connections=60"
    run(f"{binaries}/pg_ctl", "-D", f"{folder}/data", "-w", "-l", f"{folder}/log", "-o", options, "start")
    try:
        yield f"postgresql://mcf@/postgres?host={folder}"
    finally:
        run(f"{binaries}/pg_ctl", "-D", f"{folder}/data", "-m", "immediate", "stop")
        shutil.rmtree(folder)


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
    yield db
    db.engine.dispose()


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
