"""GET /v1/pools and /v1/queue."""

from typing import Annotated

from fastapi import APIRouter, Query, Request

from service.api.auth import Reader
from service.api.refusals import responses
from service.errors import Unavailable
from service.pools import service
from service.schemas.base import ProjectName
from service.schemas.pools import PoolList, Queue

router = APIRouter(prefix="/v1", tags=["pools"])


@router.get("/pools", responses=responses(Unavailable))
def list_pools(request: Request) -> PoolList:
    """Node pools that a spec may name as `placement.pool`, and what is free there now."""
    state = request.app.state
    return PoolList(pools=service.views(state.db, state.settings, state.launcher, state.pools))


@router.get("/queue")
def get_queue(request: Request, principal: Reader, project: Annotated[ProjectName | None, Query()] = None) -> Queue:
    """Runs that train, and runs that wait in the order in which they get a place, each with its reason."""
    return service.queue(request.app.state.db, request.app.state.settings, principal.within(project))
