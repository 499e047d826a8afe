"""POST and GET /v1/experiments."""

from typing import Annotated, Any

from fastapi import APIRouter, Body, Depends, Header, Query, Request, Response

from service.api import cursors, examples
from service.api.audit import about
from service.api.auth import Reader, Require, Submitter
from service.api.body import PlainRoute, payload
from service.api.cursors import Cursor
from service.api.refusals import responses
from service.errors import (
    AlreadyEnded,
    BodyTooLarge,
    InvalidSpec,
    KeyReused,
    NotExtendable,
    NotFound,
    NothingToResume,
    NothingToRetry,
    TooManyQueued,
    Unavailable,
)
from service.experiments import actions, repository, service, views
from service.experiments import extend as extending
from service.experiments.curves import tracked_trials
from service.experiments.extend import Extension
from service.experiments.search import Search
from service.experiments.shelf import Shelf
from service.schemas.base import ProjectName
from service.schemas.experiments import (
    ArmCurves,
    Changes,
    ExperimentDetail,
    ExperimentList,
    ExperimentState,
    Part,
    Plan,
)
from service.states import DEFAULT_PROJECT, Scope
from service.tracking import TrackingAway

router = APIRouter(route_class=PlainRoute, prefix="/v1/experiments", tags=["experiments"])

Payload = Annotated[dict[str, Any], Depends(payload)]
Key = Annotated[str | None, Header(alias="Idempotency-Key", min_length=1, max_length=200, pattern="^[!-~]+$")]
Project = Annotated[ProjectName | None, Query()]
Some = Annotated[Part | None, Body()]
MAY_SUBMIT = [Depends(Require(Scope.SUBMIT))]


@router.post(
    "",
    status_code=201,
    response_model=ExperimentDetail | Plan,
    responses=responses(KeyReused, BodyTooLarge, InvalidSpec, TooManyQueued)
    | {200: {"model": Plan, "description": "With dry_run: what would be done"}},
    openapi_extra=examples.REQUEST_BODY,
)
def submit(
    request: Request,
    response: Response,
    principal: Submitter,
    body: Payload,
    idempotency_key: Key = None,
    dry_run: bool = False,
    project: Project = None,
) -> ExperimentDetail | Plan:
    """Submit an experiment: arms x seeds are expanded, checked as a whole, and queued.

    Runs that exist already (same spec digest) are shared and not trained again. The same Idempotency-Key with
    the same body returns the experiment it made before in the project. With `dry_run=true` nothing is written.
    The project is the token's where none is named.
    """
    state = request.app.state
    digest, home = service.request_digest(body), principal.within(project) or DEFAULT_PROJECT
    if idempotency_key and not dry_run and (replay := service.find_replay(state.db, home, idempotency_key, digest)):
        response.headers["Idempotency-Replayed"] = "true"
        return service.show(state.db, state.settings, replay.id)
    shelf = Shelf(state.db, state.settings, principal.project)
    resolved = service.check(body, shelf, state.pools, user_code=state.settings.user_code)
    if dry_run:
        response.status_code = 200
        return service.plan(state.db, resolved, state.settings, state.launcher, home)
    experiment_id = service.submit(state.db, resolved, idempotency_key, digest, project=home, by=principal.name)
    state.reconciler.wake()
    response.headers["Location"] = f"/v1/experiments/{experiment_id}"
    shown = service.show(state.db, state.settings, experiment_id)
    return shown.model_copy(update={"warnings": list(resolved.warnings)})


@router.get("", responses=responses(InvalidSpec))
def list_experiments(
    request: Request,
    principal: Reader,
    limit: Annotated[int, Query(ge=1, le=200)] = 50,
    cursor: Cursor = None,
    project: Project = None,
    state: Annotated[list[ExperimentState] | None, Query()] = None,
    search: Annotated[str, Query(max_length=200)] = "",
    name: Annotated[str | None, Query(max_length=200)] = None,
    prefix: Annotated[str | None, Query(max_length=200)] = None,
    deleted: bool = False,
) -> ExperimentList:
    """Experiments, newest first, with their runs by state and how far they are; of one project, or all.

    `state`: those in any of these states. `search`: those whose names hold it, or whose ids begin with it. `name`:
    those of that name. `prefix`: those whose ids begin with it. `deleted`: those that can be restored.
    """
    here = request.app.state
    before = cursors.position(cursor)
    asked = Search(principal.within(project), tuple(state or ()), search, name, prefix, deleted)
    with here.db.read() as session:
        found = repository.page(session, limit + 1, before, asked.conditions())
        summaries = views.summaries(session, found[:limit], here.settings)
    last = found[limit - 1] if len(found) > limit else None
    return ExperimentList(experiments=summaries, next_cursor=cursors.after(last) if last else None)


@router.get("/{experiment_id}", responses=responses(NotFound))
def get_experiment(request: Request, experiment_id: str) -> ExperimentDetail:
    """An experiment with its arms and the run of every seed."""
    return service.show(request.app.state.db, request.app.state.settings, experiment_id)


@router.get("/{experiment_id}/curves", responses=responses(NotFound, Unavailable))
def get_curves(
    request: Request, experiment_id: str, name: str = "loss/total", arm: Annotated[list[str] | None, Query()] = None
) -> ArmCurves:
    """One metric of every arm, or of those named: mean over the seeds and their range, at most 120 points an arm."""
    state = request.app.state
    with state.db.read() as session:
        trials = tracked_trials(session, experiment_id)
    try:
        found = state.curves.of([trial for trial in trials if arm is None or trial.arm in arm], name)
    except TrackingAway as error:
        raise Unavailable(str(error)) from error
    return ArmCurves(metric=name, arms=found)


@router.patch("/{experiment_id}", dependencies=MAY_SUBMIT, responses=responses(NotFound, AlreadyEnded, InvalidSpec))
def change(request: Request, experiment_id: str, changes: Changes) -> ExperimentDetail:
    """Other priority, concurrency, cap or pool for the runs that have not ended."""
    state = request.app.state
    about(request, changes)
    actions.change(state.db, experiment_id, changes, state.pools)
    return _after(request, experiment_id)


@router.post(
    "/{experiment_id}/cancel", dependencies=MAY_SUBMIT, responses=responses(NotFound, AlreadyEnded, InvalidSpec)
)
def cancel(request: Request, experiment_id: str, principal: Submitter, part: Some = None) -> ExperimentDetail:
    """Stop the runs that no other experiment wants; each writes a checkpoint first. Doing it twice is harmless.

    Of `arms` and `runs` that are named; without any, the whole experiment.
    """
    about(request, part)
    actions.cancel(request.app.state.db, experiment_id, principal.signature, part or actions.WHOLE)
    return _after(request, experiment_id)


@router.post(
    "/{experiment_id}/pause", dependencies=MAY_SUBMIT, responses=responses(NotFound, AlreadyEnded, InvalidSpec)
)
def pause(request: Request, experiment_id: str, principal: Submitter, part: Some = None) -> ExperimentDetail:
    """What trains writes a checkpoint and makes room; nothing of it starts until it is resumed.

    Runs that another experiment wants go on. Doing it twice is harmless.
    """
    about(request, part)
    actions.pause(request.app.state.db, experiment_id, principal.signature, part or actions.WHOLE)
    return _after(request, experiment_id)


@router.post(
    "/{experiment_id}/resume", dependencies=MAY_SUBMIT, responses=responses(NotFound, NothingToResume, InvalidSpec)
)
def resume(request: Request, experiment_id: str, part: Some = None) -> ExperimentDetail:
    """Queue what is paused again; it goes on from its checkpoints."""
    about(request, part)
    actions.resume(request.app.state.db, experiment_id, part or actions.WHOLE)
    return _after(request, experiment_id)


@router.post(
    "/{experiment_id}/retry", dependencies=MAY_SUBMIT, responses=responses(NotFound, NothingToRetry, Unavailable)
)
def retry(request: Request, experiment_id: str, part: Some = None) -> ExperimentDetail:
    """Queue the failed runs again, from their last checkpoints. What has finished is not touched.

    Of `arms` and `runs` that are named also those that were cancelled.
    """
    state = request.app.state
    about(request, part)
    actions.retry(state.db, state.settings, experiment_id, part or actions.WHOLE)
    return _after(request, experiment_id)


@router.post(
    "/{experiment_id}/extend",
    dependencies=MAY_SUBMIT,
    responses=responses(NotFound, NotExtendable, BodyTooLarge, InvalidSpec),
)
def extend(request: Request, experiment_id: str, more: Extension, principal: Submitter) -> ExperimentDetail:
    """Add seeds, levels of factors, or measurements. What has been trained is not trained again.

    Doing it twice is harmless.
    """
    state = request.app.state
    shelf = Shelf(state.db, state.settings, principal.project)
    about(request, more)
    extending.extend(state.db, experiment_id, more, shelf, state.pools, user_code=state.settings.user_code)
    return _after(request, experiment_id)


def _after(request: Request, experiment_id: str) -> ExperimentDetail:
    state = request.app.state
    state.reconciler.wake()
    return service.show(state.db, state.settings, experiment_id)
