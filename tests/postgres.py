"""A real PostgreSQL server from Debian's packages."""

import glob
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


class NoPostgres(Exception):
    """It is not installed here."""


@contextmanager
def running_postgres() -> Iterator[str]:
    """Its address. Raises NoPostgres."""
    found = sorted(glob.glob("/usr/lib/postgresql/*/bin"))
    if not found:
        raise NoPostgres("needs PostgreSQL: apt-get install postgresql")
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
