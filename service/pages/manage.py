"""The page on which some runs of an experiment are cancelled, paused, resumed or retried, and what goes on is changed;
and the same for one run from its own page."""

from typing import Annotated

from fastapi import APIRouter, Depends, Request, Response
from fastapi.responses import RedirectResponse
from pydantic import ValidationError

from service.api.audit import about
from service.api.auth import Principal, Require, Submitter
from service.errors import UnreadableBody
from service.experiments import actions, service
from service.pages.forms import Fields, fields, last
from service.pages.render import PageRoute, page
from service.schemas.experiments import Changes, Part
from service.states import RunAction, Scope

router = APIRouter(route_class=PageRoute, include_in_schema=False, dependencies=[Depends(Require(Scope.SUBMIT))])


@router.get("/experiments/{experiment_id}/manage")
def manage(request: Request, experiment_id: str) -> Response:
    state = request.app.state
    found = service.show(state.db, state.settings, experiment_id)
    pools = found.spec["placement"]["pool"]
    return page(
        "manage.html", experiment=found, pools=sorted(state.pools) if state.pools is not None else None,
        pool=pools if isinstance(pools, str) else ", ".join(pools),
    )  # fmt: skip


@router.post("/experiments/{experiment_id}/manage")
def act_on_some(
    request: Request, experiment_id: str, principal: Submitter, form: Annotated[Fields, Depends(fields)]
) -> Response:
    chosen = {"arms": form.get("arm", []), "runs": form.get("run", [])}
    if not any(chosen.values()):
        raise UnreadableBody("Go back and choose arms or runs. Buttons for all of them are on the experiment's page.")
    part = Part.model_validate(chosen)
    action = _action(form)
    about(request, part, action)
    _act(request, experiment_id, action, part, principal)
    return _to(request, f"/experiments/{experiment_id}")


@router.post("/experiments/{experiment_id}/change")
def change(request: Request, experiment_id: str, form: Annotated[Fields, Depends(fields)]) -> Response:
    given = {name: last(form, name).strip() for name in form}
    asked = {name: text for name, text in given.items() if text or name == "gpu_hours"}
    try:
        changes = Changes.model_validate(
            asked
            | ({"gpu_hours": asked["gpu_hours"] or None} if "gpu_hours" in asked else {})
            | ({"pool": [name.strip() for name in asked["pool"].split(",")]} if "pool" in asked else {})
        )
    except ValidationError as error:
        told = "; ".join(f"{'.'.join(map(str, item['loc']))}: {item['msg']}" for item in error.errors())
        raise UnreadableBody(f"Go back and correct: {told}.") from error
    about(request, changes)
    actions.change(request.app.state.db, experiment_id, changes, request.app.state.pools)
    return _to(request, f"/experiments/{experiment_id}")


@router.post("/runs/{run_id}/{action}")
def act_on_run(request: Request, run_id: str, action: RunAction, principal: Submitter) -> Response:
    of = actions.experiment_of(request.app.state.db, run_id, principal.project, None)
    _act(request, of, action, Part(runs=[run_id]), principal)
    return _to(request, f"/runs/{run_id}")


def _act(request: Request, experiment_id: str, action: RunAction, part: Part, principal: Principal) -> None:
    state = request.app.state
    actions.act(state.db, state.settings, experiment_id, action, principal.signature, part)


def _action(form: Fields) -> RunAction:
    try:
        return RunAction(last(form, "action"))
    except ValueError as error:
        raise UnreadableBody(f"Choose one of {', '.join(RunAction)}.") from error


def _to(request: Request, path: str) -> Response:
    """By GET, so that reloading it does nothing again."""
    request.app.state.reconciler.wake()
    return RedirectResponse(path, status_code=303)
