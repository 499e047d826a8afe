"""Making, revoking and recognising tokens.

A secret is `mcf_<id>_<43 characters>`: found by its id, compared by its digest. It is 256 random bits, so nobody finds
it by trying and its plain SHA-256 may be kept: slow hashes are for what people think of, and would slow every request.
"""

import hashlib
import hmac
import re
import secrets
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import structlog
from sqlalchemy.exc import SQLAlchemyError

from service.db import Database
from service.errors import NotFound
from service.states import Scope
from service.tables import Token
from service.tokens import repository

log = structlog.get_logger()

SECRET = re.compile(r"mcf_(t[0-9a-f]{10})_[A-Za-z0-9_-]{43}")

REMEMBERED = timedelta(seconds=5)
"""A token is looked up again after it: so long may another service go on to take one that was revoked here."""
NOTED = timedelta(minutes=1)
"""Between two notes of when a token was used."""


def utc_now() -> datetime:
    return datetime.now(UTC)


def create(
    db: Database, *, name: str, scope: Scope, project: str | None, expires_in_days: int | None, by: str = ""
) -> tuple[Token, str]:
    """A new token and its secret, which is nowhere else. `by`: name of the token that it is made with."""
    now = utc_now()
    token_id = f"t{secrets.token_hex(5)}"
    secret = f"mcf_{token_id}_{secrets.token_urlsafe(32)}"
    token = Token(
        id=token_id, name=name, digest=_digest(secret), scope=scope, project=project, created_at=now, created_by=by,
        expires_at=now + timedelta(days=expires_in_days) if expires_in_days else None,
    )  # fmt: skip
    with db.write() as session:
        session.add(token)
    return token, secret


def revoke(db: Database, token_id: str, project: str | None) -> Token:
    """From now on it is refused; doing it again is harmless. `project`: the only one to look in. Raises NotFound."""
    with db.write() as session:
        token = repository.by_id(session, token_id)
        if token is None or (project and token.project != project):
            raise NotFound(f"There is no token {token_id!r}. GET /v1/tokens lists all.")
        token.revoked_at = token.revoked_at or utc_now()
    return token


class Keyring:
    """Recognises secrets, with one statement at most, and none for a token that was seen a moment ago."""

    def __init__(self, db: Database, clock: Callable[[], datetime] = utc_now) -> None:
        self._db, self._clock = db, clock
        self._seen: dict[str, tuple[datetime, Token]] = {}

    def find(self, secret: str) -> Token | None:
        """The token, good or not (any more); None where it is none of ours."""
        if not (match := SECRET.fullmatch(secret)):
            return None
        token = self._load(match[1])
        # Digests are compared in constant time, so that answers do not tell how much of one is right.
        if token is None or not hmac.compare_digest(token.digest, _digest(secret)):
            return None
        self._note_use(token)
        return token

    def ended(self, token: Token) -> str:
        """Since when it is no longer good, in words; empty while it is."""
        if token.revoked_at:
            return f"was revoked at {token.revoked_at:%Y-%m-%d %H:%M} UTC"
        if token.expires_at and token.expires_at <= self._clock():
            return f"expired at {token.expires_at:%Y-%m-%d %H:%M} UTC"
        return ""

    def forget(self, token_id: str) -> None:
        self._seen.pop(token_id, None)

    def _load(self, token_id: str) -> Token | None:
        now = self._clock()
        at, token = self._seen.get(token_id, (None, None))
        # A clock that was set back must not keep a revoked token good.
        if at and timedelta(0) <= now - at < REMEMBERED:
            return token
        with self._db.read() as session:
            token = repository.by_id(session, token_id)
        if token:
            self._seen[token_id] = now, token
        return token

    def _note_use(self, token: Token) -> None:
        now = self._clock()
        if self.ended(token) or (token.last_used_at and now - token.last_used_at < NOTED):
            return
        token.last_used_at = now
        try:
            with self._db.write() as session:
                repository.note_use(session, token.id, now)
        except SQLAlchemyError as error:
            # Whoever has a good token is let in, noted or not.
            log.warning("the use of a token was not noted", token=token.id, error=str(error).partition("\n")[0])


def _digest(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()
