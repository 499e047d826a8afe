"""The audit as the API returns it."""

from datetime import datetime

from service.schemas.base import View


class AuditView(View):
    id: int
    """Counts up."""
    at: datetime
    token_id: str
    """Empty = MCF_TOKEN, or a service that asks nobody for a token."""
    name: str
    """Of the token."""
    project: str | None
    """Of the token; null = every project."""
    action: str
    """Such as `experiments.cancel`."""
    object: str
    """Id of what it was done to."""
    asked: str
    """What of it: the query, or the body of a request that names arms, runs or changes."""
    address: str
    """Where it came from; behind a proxy also what that one says."""
    status: int | None
    """HTTP status of the answer; null = the service was stopped before it could answer."""


class AuditList(View):
    entries: list[AuditView]
