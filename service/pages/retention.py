"""The pages on which an experiment is deleted, and taken back."""

from typing import Annotated

from fastapi import APIRouter, Depends, Request, Response
from fastapi.responses import RedirectResponse

from service.api.audit import about
from service.api.auth import Reader, Require, Submitter
from service.experiments import repository, views
from service.experiments.search import Search
from service.pages.manage import Fields, fields
from service.pages.render import PageRoute, page
from service.retention import service
from service.states import Scope

router = APIRouter(route_class=PageRoute, include_in_schema=False)
MAY_SUBMIT = [Depends(Require(Scope.SUBMIT))]
MOST = 200


@router.get("/experiments/{experiment_id}/delete", dependencies=MAY_SUBMIT)
def ask_before_deleting(request: Request, experiment_id: str, principal: Submitter) -> Response:
    state = request.app.state
    found = service.plan(
        state.db, state.settings, experiment_id, objects=True, tracking=False, project=principal.project
    )
    return page("delete.html", plan=found, days=state.settings.undo_days, most=20)


@router.post("/experiments/{experiment_id}/delete")
def delete(
    request: Request, experiment_id: str, principal: Submitter, form: Annotated[Fields, Depends(fields)]
) -> Response:
    state = request.app.state
    about(request, None, " ".join(name for name in ("keep_objects", "tracking") if name in form))
    service.delete(
        state.db, state.settings, experiment_id, principal.signature, objects="keep_objects" not in form,
        tracking="tracking" in form,
    )  # fmt: skip
    return RedirectResponse("/deleted", status_code=303)


@router.post("/experiments/{experiment_id}/restore", dependencies=MAY_SUBMIT)
def restore(request: Request, experiment_id: str) -> Response:
    service.restore(request.app.state.db, experiment_id)
    return RedirectResponse(f"/experiments/{experiment_id}", status_code=303)


@router.get("/deleted")
def deleted(request: Request, principal: Reader) -> Response:
    state = request.app.state
    with state.db.read() as session:
        found = repository.page(session, MOST, None, Search(principal.project, deleted=True).conditions())
        shown = views.summaries(session, found, state.settings)
    return page("deleted.html", experiments=shown, may_submit=principal.scope.includes(Scope.SUBMIT))
