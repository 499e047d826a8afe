"""What a person may do to an experiment on its page: the API's actions as forms, for the same tokens."""

from typing import Annotated

import yaml
from fastapi import APIRouter, Depends, Request, Response
from fastapi.responses import RedirectResponse
from pydantic import ValidationError

from service import specfile
from service.api.auth import Require, Submitter
from service.errors import UnreadableBody
from service.experiments import actions
from service.experiments import extend as extending
from service.experiments import service as experiments
from service.experiments.extend import Extension
from service.experiments.service import MAX_RUNS_OF_EXPERIMENT
from service.experiments.shelf import Shelf
from service.pages.forms import Fields, fields, last
from service.pages.render import PageRoute, page
from service.states import Scope

router = APIRouter(
    route_class=PageRoute, prefix="/experiments/{experiment_id}", include_in_schema=False,
    dependencies=[Depends(Require(Scope.SUBMIT))],
)  # fmt: skip


@router.get("/cancel")
def ask_before_cancelling(request: Request, experiment_id: str) -> Response:
    state = request.app.state
    return page("cancel.html", experiment=experiments.show(state.db, state.settings, experiment_id))


@router.post("/cancel")
def cancel(request: Request, experiment_id: str, principal: Submitter) -> Response:
    actions.cancel(request.app.state.db, experiment_id, principal.signature)
    return _back(request, experiment_id)


@router.post("/pause")
def pause(request: Request, experiment_id: str, principal: Submitter) -> Response:
    actions.pause(request.app.state.db, experiment_id, principal.signature)
    return _back(request, experiment_id)


@router.post("/resume")
def resume(request: Request, experiment_id: str) -> Response:
    actions.resume(request.app.state.db, experiment_id)
    return _back(request, experiment_id)


@router.post("/retry")
def retry(request: Request, experiment_id: str) -> Response:
    actions.retry(request.app.state.db, request.app.state.settings, experiment_id)
    return _back(request, experiment_id)


@router.get("/extend")
def ask_for_seeds(request: Request, experiment_id: str) -> Response:
    state = request.app.state
    found = experiments.show(state.db, state.settings, experiment_id)
    asked = {**(found.spec["base"].get("evaluation") or {})}
    asked.pop("held_out", None)
    evaluation = yaml.safe_dump(asked, sort_keys=False) if asked else ""
    return page(
        "extend.html", experiment=found, seeds=max(len(arm.trials) for arm in found.arms), evaluation=evaluation
    )  # fmt: skip


def wanted(form: Annotated[Fields, Depends(fields)]) -> Extension:
    """Dependency: what one of the page's two forms asks for. Raises UnreadableBody."""
    if "evaluation" in form:
        try:
            return Extension(evaluation=specfile.evaluation_in(last(form, "evaluation"), "what you have written"))
        except specfile.UnreadableSpec as error:
            raise UnreadableBody(f"Go back and write what is to be measured as YAML: {error}.") from error
    text = last(form, "seeds")
    try:
        return Extension.model_validate_strings({"seeds": text})
    except ValidationError as error:
        raise UnreadableBody(
            f"Go back and enter the number of seeds in digits, from 1 to {MAX_RUNS_OF_EXPERIMENT}, not {text[:40]!r}."
        ) from error


@router.post("/extend")
def extend(
    request: Request, experiment_id: str, principal: Submitter, more: Annotated[Extension, Depends(wanted)]
) -> Response:
    state = request.app.state
    shelf = Shelf(state.db, state.settings, principal.project)
    extending.extend(state.db, experiment_id, more, shelf, state.pools, user_code=state.settings.user_code)
    return _back(request, experiment_id)


def _back(request: Request, experiment_id: str) -> Response:
    """To the experiment's page by GET, so that reloading it does nothing again."""
    request.app.state.reconciler.wake()
    return RedirectResponse(f"/experiments/{experiment_id}", status_code=303)
