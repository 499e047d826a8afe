"""GET /v1/pools."""

from fastapi import APIRouter, Request

from service.errors import Unavailable, responses
from service.pools import service
from service.pools.schemas import PoolList

router = APIRouter(prefix="/v1/pools", tags=["pools"])


@router.get("", responses=responses(Unavailable))
def list_pools(request: Request) -> PoolList:
    """Node pools that a spec may name as `placement.pool`, and what is free there now."""
    state = request.app.state
    return PoolList(pools=service.views(state.db, state.launcher, state.pools))
