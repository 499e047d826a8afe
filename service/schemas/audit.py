"""The audit as the API returns it."""

from datetime import datetime

from service.schemas.base import View


class AuditView(View):
    id: int
    """Counts up."""
    at: datetime
    token_id: str
    """Empty = MCF_TOKEN, a service that asks nobody for a token, or what the service does by itself."""
    name: str
    """Of the token; of what the service does by itself the rule, such as `rule of project faces`."""
    project: str | None
    """Of the token; null = every project. Of what the service does by itself, the experiment's."""
    action: str
    """Such as `experiments.cancel`."""
    object: str
    """Id of what it was done to."""
    asked: str
    """What of it: the query, or the body of a request that names arms, runs or changes."""
    address: str
    """Where it came from; behind a proxy also what that one says. Empty = the service did it by itself."""
    status: int | None
    """HTTP status of the answer; null = the service was stopped before it could answer."""


class AuditList(View):
    entries: list[AuditView]
