"""/v1/webhooks: who is told when an experiment has ended, has failed, or waits. For admins alone."""

from typing import Annotated

from fastapi import APIRouter, Query, Request, Response

from service.api.auth import Admin
from service.api.body import PlainRoute
from service.api.refusals import responses
from service.errors import NotFound
from service.notify import repository, service
from service.schemas.base import ProjectName
from service.schemas.webhooks import (
    DeliveryList,
    DeliveryView,
    NewWebhook,
    Tried,
    WebhookCreated,
    WebhookList,
    WebhookView,
)

router = APIRouter(route_class=PlainRoute, prefix="/v1/webhooks", tags=["webhooks"])

SHOWN = 100


@router.post("", status_code=201)
def create(request: Request, response: Response, body: NewWebhook, principal: Admin) -> WebhookCreated:
    """Make a webhook. Its secret, to verify signatures with, is in this answer and never again."""
    webhook = service.create(request.app.state.db, body, principal.within(body.project), principal.name)
    response.headers["Location"] = f"/v1/webhooks/{webhook.id}"
    response.headers["Cache-Control"] = "no-store"
    return WebhookCreated(**service.view(webhook).model_dump(), secret=webhook.secret)


@router.get("")
def list_webhooks(
    request: Request, principal: Admin, project: Annotated[ProjectName | None, Query()] = None
) -> WebhookList:
    """All webhooks, newest first, also those that are switched off; a project's admin sees those of the project."""
    with request.app.state.db.read() as session:
        found = repository.all_of(session, principal.within(project))
    return WebhookList(webhooks=[service.view(webhook) for webhook in found])


@router.delete("/{webhook_id}", responses=responses(NotFound))
def delete(request: Request, webhook_id: str, principal: Admin) -> WebhookView:
    """Tell it nothing any more, also what it has not got yet."""
    return service.view(service.delete(request.app.state.db, webhook_id, principal.project))


@router.post("/{webhook_id}/test", responses=responses(NotFound))
def test(request: Request, webhook_id: str, principal: Admin) -> Tried:
    """Send it a test event now, and say what the receiver said. One that was switched off is on again if it is taken.

    Takes up to 10 s.
    """
    state = request.app.state
    answer = service.test(state.db, state.settings, webhook_id, principal.project)
    return Tried(
        ok=answer.is_ok, status=answer.status, error=answer.error, said=answer.said, seconds=round(answer.seconds, 3)
    )  # fmt: skip


@router.get("/{webhook_id}/deliveries", responses=responses(NotFound))
def list_deliveries(request: Request, webhook_id: str, principal: Admin) -> DeliveryList:
    """What it was told and is to be told, newest first: the last 100; those that are done are kept for 30 days."""
    with request.app.state.db.read() as session:
        webhook = service.get(session, webhook_id, principal.project)
        found = repository.deliveries(session, webhook.id, SHOWN)
    return DeliveryList(deliveries=[DeliveryView.model_validate(item, from_attributes=True) for item in found])
