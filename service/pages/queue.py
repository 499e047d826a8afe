"""The page of the queue: what the pools have free, what trains, and what waits for what."""

from fastapi import APIRouter, Request, Response

from service.api.auth import Reader
from service.errors import Unavailable
from service.pages.render import PageRoute, page, polled
from service.pools import service as pools
from service.schemas.pools import PoolView

router = APIRouter(route_class=PageRoute, prefix="/queue", include_in_schema=False)


@router.get("")
@polled
def queue(request: Request, principal: Reader) -> Response:
    state = request.app.state
    found: list[PoolView] = []
    try:
        found, missing = pools.views(state.db, state.settings, state.launcher, state.pools), ""
    except Unavailable as error:
        missing = error.detail
    return page(
        "queue.html", queue=pools.queue(state.db, state.settings, principal.project), pools=found, missing=missing,
        priced=any(pool.price for pool in found),
    )  # fmt: skip
