"""DELETE /v1/experiments/{id}, restoring it, GET /v1/store, and /v1/projects: what is kept, for whom, and how much."""

from collections.abc import Sequence
from typing import Annotated

from fastapi import APIRouter, Depends, Path, Query, Request

from service import projects
from service.api.audit import about
from service.api.auth import MOST_TOGETHER, Admin, Require, Submitter
from service.api.body import PlainRoute
from service.api.refusals import responses
from service.errors import NotDeletable, NotFound, Unavailable
from service.experiments import service as experiments
from service.retention import service
from service.schemas.base import ProjectName
from service.schemas.experiments import ExperimentDetail
from service.schemas.retention import Deletion, JointDeletion, ProjectChanges, ProjectList, ProjectView, StoreCheck
from service.states import Scope

router = APIRouter(route_class=PlainRoute, prefix="/v1")

Picked = Annotated[Sequence[str], Query(alias="id", min_length=1, max_length=MOST_TOGETHER)]


@router.delete(
    "/experiments/{experiment_id}", tags=["experiments"], responses=responses(NotFound, NotDeletable, Unavailable)
)
def delete(
    request: Request,
    experiment_id: str,
    principal: Submitter,
    dry_run: bool = False,
    objects: bool = True,
    tracking: bool = False,
    undo_days: Annotated[float | None, Query(ge=0, le=3650, allow_inf_nan=False)] = None,
) -> Deletion:
    """Delete an experiment that has ended. Until `purge_at` it can be restored; then what only it uses is removed.

    `objects=false`: the directories of its runs stay in the store. `tracking=true`: its runs in MLflow are deleted,
    too. `undo_days`: another time to restore it. With `dry_run=true` nothing is done.
    """
    state = request.app.state
    if dry_run:
        return service.plan(
            state.db, state.settings, experiment_id, objects=objects, tracking=tracking, project=principal.project
        )
    return service.delete(
        state.db, state.settings, experiment_id, principal.signature, objects=objects, tracking=tracking,
        undo_days=undo_days, project=principal.project,
    )  # fmt: skip


@router.get("/deletion", tags=["experiments"], responses=responses(NotFound, NotDeletable, Unavailable))
def plan_together(request: Request, principal: Submitter, picked: Picked) -> JointDeletion:
    """What deleting several experiments together would free: a run that only they share counts once. Deletes nothing.

    `id`: an experiment that has ended; as often as there are experiments.
    """
    state = request.app.state
    return service.plan_together(state.db, state.settings, picked, project=principal.project)


@router.post(
    "/experiments/{experiment_id}/restore", tags=["experiments"], dependencies=[Depends(Require(Scope.SUBMIT))],
    responses=responses(NotFound),
)  # fmt: skip
def restore(request: Request, experiment_id: str) -> ExperimentDetail:
    """Take back a deletion whose time is not over. What is not deleted stays as it is."""
    state = request.app.state
    service.restore(state.db, experiment_id)
    return experiments.show(state.db, state.settings, experiment_id)


@router.get("/store", tags=["store"], responses=responses(Unavailable))
def check_store(request: Request, principal: Admin) -> StoreCheck:
    """What takes room in the store, by experiment, and what no run of this service has left there.

    Reads every name in the store: with millions of objects it takes minutes.
    """
    principal.expect_all("what the store holds")
    return service.check_store(request.app.state.db, request.app.state.settings)


@router.get("/projects", tags=["projects"])
def list_projects(request: Request, principal: Admin) -> ProjectList:
    """Projects with their limits, and what they have now."""
    with request.app.state.db.read() as session:
        return ProjectList(projects=projects.views(session, principal.project))


@router.patch("/projects/{name}", tags=["projects"])
def set_limits(
    request: Request, name: Annotated[ProjectName, Path()], changes: ProjectChanges, principal: Admin
) -> ProjectView:
    """Set limits of a project. Needs an admin of every project."""
    principal.expect_all("limits")
    about(request, changes)
    return projects.change(request.app.state.db, name, changes)
