"""Making webhooks, deleting them, and sending one a test."""

import secrets
from datetime import UTC, datetime
from urllib.parse import urlsplit

import structlog
from sqlalchemy.orm import Session

from service.db import Database
from service.errors import NotFound
from service.notify import messages, repository
from service.notify.posting import Answer, post
from service.schemas.webhooks import NewWebhook, WebhookView
from service.settings import Settings
from service.tables import Webhook

log = structlog.get_logger()


def create(db: Database, wanted: NewWebhook, project: str | None, by: str) -> Webhook:
    """With its secret, which signs what is sent. `by`: name of the token that it is made with."""
    webhook = _new(wanted, project, by)
    with db.write() as session:
        session.add(webhook)
    return webhook


def create_once(db: Database, wanted: NewWebhook, project: str | None, by: str) -> Webhook | None:
    """None, and none made, where one is told the same at the same address already."""
    webhook = _new(wanted, project, by)
    # One after the other: a form that is sent twice comes twice at once.
    with db.deciding() as session:
        if any(_is_twin(webhook, other) for other in repository.all_of(session, project)):
            return None
        session.add(webhook)
    return webhook


def _is_twin(one: Webhook, other: Webhook) -> bool:
    same = "project", "url", "form", "waits_longer_than_minutes"
    return set(one.events) == set(other.events) and all(getattr(one, name) == getattr(other, name) for name in same)


def _new(wanted: NewWebhook, project: str | None, by: str) -> Webhook:
    return Webhook(
        id=f"w{secrets.token_hex(5)}", project=project, url=wanted.url, secret=f"mcfwh_{secrets.token_urlsafe(32)}",
        events=[event.value for event in dict.fromkeys(wanted.events)], form=wanted.form, created_by=by,
        waits_longer_than_minutes=wanted.waits_longer_than_minutes, created_at=datetime.now(UTC), disabled_reason="",
    )  # fmt: skip


def get(session: Session, webhook_id: str, project: str | None) -> Webhook:
    """`project`: the only one to look in. Raises NotFound."""
    webhook = session.get(Webhook, webhook_id.replace("\0", ""))
    if webhook is None or (project and webhook.project != project):
        raise NotFound(f"There is no webhook {webhook_id!r}. GET /v1/webhooks lists all.")
    return webhook


def delete(db: Database, webhook_id: str, project: str | None) -> Webhook:
    """With all it was told and was to be told. Raises NotFound."""
    with db.deciding() as session:
        webhook = get(session, webhook_id, project)
        session.expunge(webhook)
        repository.remove(session, webhook_id)
    return webhook


def test(db: Database, settings: Settings, webhook_id: str, project: str | None) -> Answer:
    """Send it a test now. One that is switched off is on again if it takes it. Raises NotFound."""
    with db.read() as session:
        webhook = get(session, webhook_id, project)
    now, delivery = datetime.now(UTC), f"d{secrets.token_hex(8)}"
    body = messages.example(delivery, webhook.project, webhook.form, settings.public_url, now)
    answer = post(webhook.url, webhook.secret, delivery, messages.TEST, body, int(now.timestamp()))
    log.info("webhook tested", webhook=webhook.id, status=answer.status, error=answer.error)
    if answer.is_ok and webhook.disabled_reason:
        with db.write() as session:
            get(session, webhook_id, project).disabled_reason = ""
    return answer


def view(webhook: Webhook) -> WebhookView:
    parts = urlsplit(webhook.url)
    fields = {name: getattr(webhook, name) for name in WebhookView.model_fields if name != "host"}
    return WebhookView(**fields, host=f"{parts.scheme}://{parts.netloc}")
