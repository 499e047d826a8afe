"""The page of a new experiment: a spec is written or pasted, checked meanwhile, and submitted.

The text is checked as the API checks a dry run. A key that is made with the form, and the text itself, are the
Idempotency-Key: who presses twice gets one experiment, who changes the text and submits it again gets another.
"""

import threading
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query, Request, Response
from fastapi.responses import RedirectResponse
from pydantic import TypeAdapter, ValidationError

from service.api.auth import Principal, Require, Submitter
from service.api.body import plain_object
from service.api.examples import EXAMPLES
from service.errors import ApiError, InvalidSpec, NotFound, TooManyQueued, Unavailable, UnreadableBody
from service.experiments import service as experiments
from service.experiments.search import projects
from service.experiments.shelf import Shelf
from service.experiments.written import as_yaml
from service.pages.forms import Form, new_key, sent, sent_file
from service.pages.render import PageRoute, page
from service.schemas.base import PROJECT_NAMES, ProjectName
from service.schemas.experiments import Plan
from service.states import DEFAULT_PROJECT, RunState, Scope
from trainer.contract import Problem
from trainer.resolve import Resolved

router = APIRouter(
    route_class=PageRoute, prefix="/new", include_in_schema=False, dependencies=[Depends(Require(Scope.SUBMIT))]
)

NAME_OF_PROJECT: TypeAdapter[str] = TypeAdapter(ProjectName)
AT_ONCE = threading.BoundedSemaphore(4)
"""Checks while somebody writes. A browser gives up one that is overtaken, but here it goes on to its end, and where
data is slow to list they would take all the threads that answer requests."""


@dataclass(frozen=True)
class Found:
    """What a check has found: problems, or what would be done."""

    detail: str = ""
    problems: Sequence[Problem] = ()
    plan: Plan | None = None
    is_busy: bool = False
    """Nothing was checked: others are being checked."""

    @property
    def num_new(self) -> int:
        return len(self.plan.launch_requests) if self.plan else 0

    @property
    def num_measured(self) -> int:
        """New runs that take the weights of others."""
        return sum(run.weights_of is not None for run in self.plan.runs) if self.plan else 0

    @property
    def num_shared(self) -> int:
        return len(self.plan.runs) - self.num_new if self.plan else 0

    @property
    def num_finished(self) -> int:
        """Of the shared ones."""
        return sum(run.already is RunState.SUCCEEDED for run in self.plan.runs) if self.plan else 0


@router.get("")
def new(
    request: Request, principal: Submitter, example: str = "", of: Annotated[str, Query(alias="from")] = ""
) -> Response:
    """Empty, with an example, or with the spec of an experiment."""
    again = None
    form = Form(key=new_key())
    if of:
        with request.app.state.db.read() as session:
            again = experiments.get(session, of, project=principal.project)
        form = replace(form, text=as_yaml(again.spec), project=again.project)
    elif example:
        if example not in EXAMPLES:
            raise NotFound(f"example: {example[:40]!r} was asked for; possible: {', '.join(EXAMPLES)}.")
        form = replace(form, text=as_yaml(EXAMPLES[example]["value"]))
    return _page(request, principal, form, again=again)


@router.post("/check")
def check(request: Request, principal: Submitter, form: Annotated[Form, Depends(sent)]) -> Response:
    """To a script the part that tells of it, to a browser without one the page."""
    if not AT_ONCE.acquire(blocking=False):
        found = Found(is_busy=True)
    else:
        try:
            found = _checked(request, principal, form)
        finally:
            AT_ONCE.release()
    if "hx-request" in request.headers:
        return page("new_found.html", found=found)
    return _page(request, principal, form, found)


@router.post("/file")
def take_file(request: Request, principal: Submitter, form: Annotated[Form, Depends(sent_file)]) -> Response:
    return _page(request, principal, form, Found(form.unread) if form.unread else None)


@router.post("")
def submit(request: Request, principal: Submitter, form: Annotated[Form, Depends(sent)]) -> Response:
    """A wrong spec is refused as a whole, and the text stays."""
    state = request.app.state
    try:
        payload, home = _read(form, principal)
        digest = experiments.request_digest(payload)
        key = f"page-{form.key}-{digest[:16]}"
        if replay := experiments.find_replay(state.db, home, key, digest):
            return RedirectResponse(f"/experiments/{replay.id}", status_code=303)
        resolved = _resolved(request, principal, payload)
        experiment_id = experiments.submit(state.db, resolved, key, digest, project=home, by=principal.name)
    except (InvalidSpec, UnreadableBody, TooManyQueued, Unavailable) as error:
        return _page(request, principal, form, Found(error.detail, error.problems), error.status)
    state.reconciler.wake()
    return RedirectResponse(f"/experiments/{experiment_id}", status_code=303)


def _checked(request: Request, principal: Principal, form: Form) -> Found:
    if not form.text.strip() and not form.unread:
        return Found()
    state = request.app.state
    try:
        payload, home = _read(form, principal)
        resolved = _resolved(request, principal, payload)
        return Found(plan=experiments.plan(state.db, resolved, state.settings, state.launcher, home))
    except ApiError as error:
        # Whatever it is: the page takes no other answer, and would go on showing what was found before.
        return Found(error.detail, error.problems)


def _read(form: Form, principal: Principal) -> tuple[dict[str, Any], str]:
    """The request, and the project it is for. Raises UnreadableBody, InvalidSpec, Forbidden."""
    if form.unread:
        raise UnreadableBody(form.unread)
    home = principal.within(form.project or None) or DEFAULT_PROJECT
    try:
        NAME_OF_PROJECT.validate_python(home)
    except ValidationError as error:
        problem = Problem(field="project", asked=repr(home[:80]), possible=PROJECT_NAMES)
        raise InvalidSpec(str(problem), problems=[problem]) from error
    return plain_object(form.text, is_yaml=True, name="What you have written"), home


def _resolved(request: Request, principal: Principal, payload: dict[str, Any]) -> Resolved:
    """Raises InvalidSpec."""
    state = request.app.state
    shelf = Shelf(state.db, state.settings, principal.project)
    return experiments.check(payload, shelf, state.pools, user_code=state.settings.user_code)


def _page(
    request: Request, principal: Principal, form: Form, found: Found | None = None, status: int = 200, **more: Any
) -> Response:
    known: Sequence[str] = []
    if principal.project is None:
        with request.app.state.db.read() as session:
            known = projects(session)
    return page(
        "new.html", status, form=form, found=found, projects=known, only=principal.project, examples=EXAMPLES,
        default_project=DEFAULT_PROJECT, **({"again": None} | more),
    )  # fmt: skip
