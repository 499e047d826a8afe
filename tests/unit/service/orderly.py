"""Watches a database for transactions that could wait for each other's rows in a circle."""

import re
import sys
from collections import Counter
from pathlib import Path
from typing import Any

from sqlalchemy import event

import service
from service.db import EXCLUSIVE_LOCK, Database

SERVICE = str(Path(service.__file__).parent)
WRITES = re.compile(r"\s*(?:UPDATE|DELETE FROM) (\w+)")


def watch(db: Database) -> list[str]:
    """A growing list of the service's transactions that wrote several rows of a table, and neither decide
    (`Database.deciding`) nor have locked them without waiting (SKIP LOCKED)."""
    found: list[str] = []

    @event.listens_for(db.engine, "begin")
    def _begin(connection: Any) -> None:
        connection.info["written"], connection.info["may"] = Counter(), False

    @event.listens_for(db.engine, "after_cursor_execute")
    def _executed(connection: Any, cursor: Any, statement: str, parameters: Any, context: Any, many: bool) -> None:
        written = connection.info.get("written", Counter())
        if str(EXCLUSIVE_LOCK) in statement or "SKIP LOCKED" in statement:
            connection.info["may"] = True
        if match := WRITES.match(statement):
            written[match[1]] += len(parameters) if many else cursor.rowcount
            if written[match[1]] > 1 and not connection.info["may"] and _is_of_the_service():
                found.append(statement)

    return found


def _is_of_the_service() -> bool:
    """And neither a test's own nor a migration's: who writes is the first above the libraries."""
    frame = sys._getframe(1).f_back
    while frame:
        path = frame.f_code.co_filename
        if "/tests/" in path or path.startswith(f"{SERVICE}/migrations"):
            return False
        if path.startswith(SERVICE) and not path.endswith("/db.py"):
            return True
        frame = frame.f_back
    return False
