"""Where a page of a list ends, as text: lists are newest first, and rows of one moment by id."""

from datetime import UTC, datetime
from typing import Annotated, Protocol

from fastapi import Query

from service.errors import InvalidSpec

Cursor = Annotated[str | None, Query(pattern=r"^[0-9T:.+-]+Z?_[er][0-9a-f]+$", max_length=64)]
Position = tuple[datetime, str]
"""When a row was made, and its id."""


class Row(Protocol):
    @property
    def id(self) -> str: ...
    @property
    def created_at(self) -> datetime: ...


class InvalidCursor(InvalidSpec):
    pass


def after(row: Row) -> str:
    """The cursor of the page that follows this row."""
    return f"{row.created_at.isoformat()}_{row.id}".replace("+00:00", "Z")


def position(cursor: str | None) -> Position | None:
    """Raises InvalidCursor."""
    if cursor is None:
        return None
    at, _, last = cursor.rpartition("_")
    try:
        return datetime.fromisoformat(at).astimezone(UTC), last
    except (ValueError, OverflowError) as error:
        raise InvalidCursor(
            f"cursor {cursor!r} is not the next_cursor of any page; leave it out for the first page"
        ) from error
