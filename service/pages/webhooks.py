"""The pages of webhooks: who is told of what, what has arrived; one is added, tested and deleted. For admins alone."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request, Response
from fastapi.responses import RedirectResponse
from pydantic import ValidationError

from service.api.auth import Admin, Principal, Require
from service.experiments.search import projects
from service.notify import repository, service
from service.pages.forms import Fields, fields, last
from service.pages.render import PageRoute, page
from service.schemas.base import PROJECT_NAMES
from service.schemas.webhooks import DeliveryView, NewWebhook
from service.states import Event, Form, Scope

router = APIRouter(
    route_class=PageRoute, prefix="/webhooks", include_in_schema=False, dependencies=[Depends(Require(Scope.ADMIN))]
)

SHOWN = 100
DEFAULTS = {name: asked.get_default(call_default_factory=True) for name, asked in NewWebhook.model_fields.items()}
THERE_ALREADY = "another address, project or event: a webhook above is told the same there already"
POSSIBLE = {"project": PROJECT_NAMES, "events": f"one or more of {', '.join(Event)}"}
"""In words where the schema has a pattern or a length."""


@dataclass(frozen=True)
class Typed:
    """What stands in the form, right or wrong."""

    url: str = ""
    project: str = ""
    events: Sequence[str] = tuple(DEFAULTS["events"])
    waits_longer_than_minutes: str = f"{DEFAULTS['waits_longer_than_minutes']:g}"
    form: str = DEFAULTS["form"]
    problems: Mapping[str, str] = field(default_factory=dict)
    """Field -> what is possible there."""


@router.get("")
def show_all(request: Request, principal: Admin) -> Response:
    return _list(request, principal, Typed())


@router.post("")
def create(request: Request, principal: Admin, form: Annotated[Fields, Depends(fields)]) -> Response:
    """The secret is in this answer and never again. What is refused is shown beside what was typed."""
    typed = Typed(
        last(form, "url").strip(), last(form, "project").strip(), form.get("events", []),
        last(form, "waits_longer_than_minutes").strip(), last(form, "form"),
    )  # fmt: skip
    try:
        wanted = NewWebhook.model_validate({
            "url": typed.url, "project": typed.project or None, "events": typed.events, "form": typed.form,
            "waits_longer_than_minutes": typed.waits_longer_than_minutes,
        })  # fmt: skip
    except ValidationError as error:
        return _list(request, principal, replace(typed, problems=_problems(error)), 422)
    project = principal.within(wanted.project)
    made = service.create_once(request.app.state.db, wanted, project, principal.name)
    if made is None:
        # Sent twice, or the page with the secret was loaded again: two would tell everything twice.
        return _list(request, principal, replace(typed, problems={"url": THERE_ALREADY}), 422)
    answer = _list(request, principal, Typed(), 201, made=made)
    answer.headers["Location"] = f"/webhooks/{made.id}"
    return answer


@router.get("/{webhook_id}")
def show(request: Request, webhook_id: str, principal: Admin) -> Response:
    return _one(request, webhook_id, principal)


@router.post("/{webhook_id}/test")
def test(request: Request, webhook_id: str, principal: Admin) -> Response:
    """Takes up to 10 s."""
    state = request.app.state
    tried = service.test(state.db, state.settings, webhook_id, principal.project)
    return _one(request, webhook_id, principal, tried=tried)


@router.get("/{webhook_id}/delete")
def ask_before_deleting(request: Request, webhook_id: str, principal: Admin) -> Response:
    with request.app.state.db.read() as session:
        found = service.get(session, webhook_id, principal.project)
        number, _ = repository.to_be_sent(session, [found.id]).get(found.id, (0, None))
    return page("webhook_delete.html", webhook=service.view(found), to_be_sent=number)


@router.post("/{webhook_id}/delete")
def delete(request: Request, webhook_id: str, principal: Admin) -> Response:
    service.delete(request.app.state.db, webhook_id, principal.project)
    return RedirectResponse("/webhooks", status_code=303)


def _problems(error: ValidationError) -> dict[str, str]:
    found = {str(item["loc"][0]): item["msg"] for item in error.errors()}
    plain = {name: said.removeprefix("Value error, ").removeprefix("Input should be ") for name, said in found.items()}
    return {name: POSSIBLE.get(name, said) for name, said in plain.items()}


def _list(request: Request, principal: Principal, typed: Typed, status: int = 200, **more: Any) -> Response:
    with request.app.state.db.read() as session:
        found = repository.all_of(session, principal.project)
        ids = [webhook.id for webhook in found]
        told, waiting = repository.newest(session, ids), repository.to_be_sent(session, ids)
        known = projects(session) if principal.project is None else []
    return page(
        "webhooks.html", status, webhooks=[service.view(webhook) for webhook in found],
        told={id: DeliveryView.model_validate(item, from_attributes=True) for id, item in told.items()},
        waiting=waiting, typed=typed, events=list(Event), forms=list(Form), projects=known, only=principal.project,
        **({"made": None} | more),
    )  # fmt: skip


def _one(request: Request, webhook_id: str, principal: Principal, **more: Any) -> Response:
    with request.app.state.db.read() as session:
        webhook = service.get(session, webhook_id, principal.project)
        found = repository.deliveries(session, webhook.id, SHOWN)
    return page(
        "webhook.html", webhook=service.view(webhook), most=SHOWN,
        deliveries=[DeliveryView.model_validate(item, from_attributes=True) for item in found],
        **({"tried": None} | more),
    )  # fmt: skip
