"""Webhooks as the API takes and returns them."""

from datetime import datetime
from urllib.parse import urlsplit

from pydantic import ConfigDict, Field, field_validator

from service.schemas.base import ProjectName, View
from service.states import Event, Form


class NewWebhook(View):
    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    url: str = Field(max_length=2000)
    """http:// or https://; what is sent there is a POST."""
    project: ProjectName | None = None
    """The one project whose experiments it is told of; null = every project, or that of the token it is made with."""
    events: list[Event] = Field(list(Event), min_length=1)
    """ended, failed, waiting."""
    waits_longer_than_minutes: float = Field(60.0, gt=0, le=100_000)
    """For `waiting`: told once a run has waited so long for a place or a node."""
    form: Form = Form.JSON
    """json, with all fields; slack, {"text": ...} as Slack's incoming webhooks take it."""

    @field_validator("url")
    @classmethod
    def _is_an_address(cls, url: str) -> str:
        parts = urlsplit(url)
        plain = url.isascii() and url.isprintable() and " " not in url
        # A port that is none raises ValueError by itself.
        if not (plain and parts.scheme in ("http", "https") and parts.hostname and parts.port != 0):
            raise ValueError("an address of ASCII letters that begins with http:// or https://")
        if parts.username is not None or parts.fragment:
            raise ValueError("an address without user, password or fragment")
        return url


class WebhookView(View):
    id: str
    project: str | None
    """null = every project."""
    host: str
    """Scheme and host of its address; the rest may be a secret, as with Slack's."""
    events: list[Event]
    waits_longer_than_minutes: float
    form: Form
    created_by: str
    created_at: datetime
    disabled_reason: str
    """Not empty = nothing is sent to it any more. A test that succeeds switches it on again."""


class WebhookCreated(WebhookView):
    secret: str
    """What deliveries are signed with. Shown here and never again."""


class WebhookList(View):
    webhooks: list[WebhookView]


class Tried(View):
    """What came of sending a test event."""

    ok: bool
    status: int | None
    """The receiver's answer as HTTP has it; null = there was none."""
    error: str
    said: str
    """How the answer's body begins."""
    seconds: float


class DeliveryView(View):
    id: str
    """As in the header Mcf-Delivery: who gets it twice can tell by it."""
    experiment_id: str
    event: Event
    run_id: str | None
    reason: str
    created_at: datetime
    attempts: int
    done_at: datetime | None
    """Taken, or given up: then `last_error` says why. null = to be sent, or sent again."""
    next_check_at: datetime
    """When it is sent next, if it is not done."""
    last_status: int | None
    last_error: str

    @property
    def became(self) -> str:
        """What became of it, in words."""
        if self.done_at is None:
            return "to be sent again" if self.attempts else "to be sent"
        return "given up" if self.last_error else "taken"


class DeliveryList(View):
    deliveries: list[DeliveryView]
