"""The SQL of tokens."""

from collections.abc import Sequence
from datetime import datetime

from sqlalchemy import select, update
from sqlalchemy.orm import Session

from service.tables import Token


def by_id(session: Session, token_id: str) -> Token | None:
    return session.get(Token, token_id.replace("\0", ""))


def all_of(session: Session, project: str | None) -> Sequence[Token]:
    """Newest first; of one project, or all."""
    query = select(Token).order_by(Token.created_at.desc(), Token.id)
    return session.scalars(query.where(Token.project == project) if project else query).all()


def note_use(session: Session, token_id: str, now: datetime) -> None:
    session.execute(update(Token).where(Token.id == token_id).values(last_used_at=now))
