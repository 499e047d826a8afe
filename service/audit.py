"""The audit: who asked for what, when, from where, and what came of it. Entries are added and never taken away.

An entry is written before a request is answered for, and completed with the status of its answer. So what was done is
in it, whenever the service is killed: an entry without a status was begun by a service that did not come to its end.

What the service does to an experiment by itself has an entry, too, written in the transaction that does it.
"""

import itertools
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

import structlog
from sqlalchemy import select, update
from sqlalchemy.orm import Session

from service.db import Database
from service.tables import AuditEntry, Experiment

log = structlog.get_logger()

# Longer than any request takes: an entry without an answer was then begun by a service that is gone.
PATIENCE = timedelta(minutes=15)
AT_ONCE = 20
"""Requests that change something, at most, that `state` tells apart from their ends."""
DONE = 200
"""Status of what the service has done by itself: what a request would have got."""


def begin(db: Database, entry: AuditEntry) -> int:
    """Its number. Raises what the database raises: what cannot be written down is not done."""
    entry.at = datetime.now(UTC)
    # What comes from outside may be as long as it likes.
    entry.object, entry.address = _within(entry.object, 200), _within(entry.address, 200)
    entry.action = _within(entry.action, 63)
    entry.asked = _within(entry.asked, 1000)
    # One after the other, so that numbers come in their order, and who reads on after a number misses none.
    with db.deciding() as session:
        session.add(entry)
        session.flush()
        return entry.id


def complete(db: Database, number: int, status: int, *, made: str = "", asked: str = "") -> None:
    """With the answer. `made`: id of what it has made; `asked`: what it was about, where the address does not say."""
    values = {"status": status} | ({"object": made[:200]} if made else {}) | ({"asked": asked[:1000]} if asked else {})
    with db.write() as session:
        entry = session.scalar(
            update(AuditEntry).where(AuditEntry.id == number).values(**values).returning(AuditEntry)
        )  # fmt: skip
    assert entry
    tell(entry)


def by_service(
    session: Session, experiment: Experiment, who: str, action: str, asked: str, now: datetime
) -> AuditEntry:  # fmt: skip
    """What no request has asked for; to be called in `deciding()`, as numbers come in their order, and told after it.

    `who`: the rule; `action`: as a person's; `asked`: what the rule says. Of no token and no address, and complete.
    """
    entry = AuditEntry(
        at=now, token_id="", name=_within(who, 63), project=experiment.project, action=action, object=experiment.id,
        asked=_within(asked, 1000), address="", status=DONE,
    )  # fmt: skip
    session.add(entry)
    return entry


def state(session: Session) -> tuple[tuple[int, int | None], ...]:
    """Another one after whatever anybody has changed, through whichever replica; while it is changed and after it."""
    newest = select(AuditEntry.id, AuditEntry.status).order_by(AuditEntry.id.desc()).limit(AT_ONCE)
    return tuple((number, status) for number, status in session.execute(newest))


def tell(entry: AuditEntry) -> None:
    """Once it is written, for who collects the service's log."""
    log.info(
        "audit", number=entry.id, by=entry.name, token=entry.token_id, action=entry.action, object=entry.object,
        asked=entry.asked, status=entry.status, address=entry.address,
    )  # fmt: skip


def entries(
    session: Session, limit: int, project: str | None, *, before: int | None = None, after: int | None = None
) -> Sequence[AuditEntry]:
    """Newest first; those `after` a number oldest first, for who reads on. `project`: of the tokens of this one."""
    order = AuditEntry.id.asc() if after is not None else AuditEntry.id.desc()
    query = select(AuditEntry).order_by(order).limit(limit)
    if project:
        query = query.where(AuditEntry.project == project)
    if before is not None:
        query = query.where(AuditEntry.id < before)
    if after is not None:
        query = query.where(AuditEntry.id > after)
    found = session.scalars(query).all()
    if after is None:
        return found
    # Whoever reads on would never hear of an answer that is still to come.
    young = datetime.now(UTC) - PATIENCE
    return list(itertools.takewhile(lambda entry: entry.status is not None or entry.at < young, found))


def _within(text: str, length: int) -> str:
    return text.replace("\0", "")[:length]
