"""The pages on which an experiment is deleted, and taken back."""

from typing import Annotated
from urllib.parse import urlencode

from fastapi import APIRouter, Depends, Request, Response
from fastapi.responses import RedirectResponse

from service.api.audit import about
from service.api.auth import DELETE_TOGETHER, Reader, Require, Submitter
from service.api.retention import Picked
from service.experiments import repository, views
from service.experiments.search import Search
from service.pages.forms import Fields, fields
from service.pages.render import PageRoute, page
from service.retention import service
from service.schemas.retention import JointDeletion
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


@router.get(DELETE_TOGETHER, dependencies=MAY_SUBMIT)
def ask_before_deleting_together(request: Request, picked: Picked, principal: Submitter) -> Response:
    state = request.app.state
    found = service.plan_together(state.db, state.settings, picked, project=principal.project)
    return page("delete_together.html", plan=found, days=state.settings.undo_days, most=20, here=_address(found))


@router.post(DELETE_TOGETHER, dependencies=MAY_SUBMIT)
def delete_together(
    request: Request, picked: Picked, principal: Submitter, form: Annotated[Fields, Depends(fields)]
) -> Response:
    state = request.app.state
    about(request, None, " ".join(name for name in ("keep_objects", "tracking") if name in form))
    service.delete_together(
        state.db, state.settings, picked, principal.signature, objects="keep_objects" not in form,
        tracking="tracking" in form, project=principal.project,
    )  # fmt: skip
    return RedirectResponse("/deleted", status_code=303)


def _address(plan: JointDeletion) -> str:
    return f"{DELETE_TOGETHER}?{urlencode([('id', each.experiment_id) for each in plan.experiments])}"


@router.post("/experiments/{experiment_id}/restore", dependencies=MAY_SUBMIT)
def restore(request: Request, experiment_id: str) -> Response:
    """Who presses twice, or after somebody else, sees the experiment all the same."""
    service.restore(request.app.state.db, experiment_id)
    return RedirectResponse(f"/experiments/{experiment_id}", status_code=303)


@router.get("/deleted")
def deleted(request: Request, principal: Reader) -> Response:
    state = request.app.state
    with state.db.read() as session:
        found = repository.page(session, MOST, None, Search(principal.project, deleted=True).conditions())
        shown = views.summaries(session, found, state.settings)
    return page("deleted.html", experiments=shown, may_submit=principal.scope.includes(Scope.SUBMIT))
