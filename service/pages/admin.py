"""Pages for admins: who did what, and what takes room in the store."""

from datetime import UTC, datetime
from typing import Annotated

from fastapi import APIRouter, Query, Request, Response

from service import audit
from service.api.auth import Admin
from service.errors import Unavailable
from service.pages.render import PageRoute, page
from service.retention import service as retention
from trainer.contract.frozen import MAX_INTEGER

router = APIRouter(route_class=PageRoute, include_in_schema=False)

MOST = 100


@router.get("/audit")
def show_audit(
    request: Request, principal: Admin, before: Annotated[int | None, Query(ge=1, le=MAX_INTEGER)] = None
) -> Response:
    with request.app.state.db.read() as session:
        found = audit.entries(session, MOST + 1, principal.project, before=before)
    older = found[MOST - 1].id if len(found) > MOST else None
    return page("audit.html", entries=found[:MOST], older=older, lately=datetime.now(UTC) - audit.PATIENCE)


@router.get("/store")
def show_store(request: Request, principal: Admin) -> Response:
    """At once without what takes long, which the page then asks for."""
    principal.expect_all("what the store holds")
    return page("store.html")


@router.get("/store/found")
def what_is_there(request: Request, principal: Admin) -> Response:
    principal.expect_all("what the store holds")
    state = request.app.state
    try:
        found, problem = retention.check_store(state.db, state.settings), ""
    except Unavailable as error:
        # Into the page that waits for it, which takes no refusal.
        found, problem = None, error.detail
    return page("store_found.html", found=found, problem=problem, most=MOST)
