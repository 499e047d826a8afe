"""Tokens as the API takes and returns them."""

from datetime import datetime

from pydantic import ConfigDict, Field

from service.schemas.base import ProjectName, View
from service.states import Scope


class NewToken(View):
    model_config = ConfigDict(extra="forbid")

    name: str = Field(pattern=r"^[A-Za-z0-9]([A-Za-z0-9 ._@-]{0,61}[A-Za-z0-9])?$")
    """Whose it is, or what for; names may repeat."""
    scope: Scope
    """read; submit: read, and submit, cancel and retry; admin: submit, and make and revoke tokens."""
    project: ProjectName | None = None
    """The one project it is good for; None = every project, or that of the token it is made with."""
    expires_in_days: int | None = Field(None, ge=1, le=3650)
    """None = never."""


class TokenView(View):
    id: str
    name: str
    scope: Scope
    project: str | None
    created_at: datetime
    created_by: str = ""
    """Name of the token that it was made with; empty for what a release before has made."""
    expires_at: datetime | None
    revoked_at: datetime | None
    last_used_at: datetime | None
    """Within a minute; None = never."""


class TokenCreated(TokenView):
    secret: str
    """What requests carry. Shown here and never again."""


class TokenList(View):
    tokens: list[TokenView]


class Whoami(View):
    name: str
    scope: Scope
    project: str | None
    """None = every project."""
