"""POST /v1/rebuild: a lost database, written anew from the store."""

from fastapi import APIRouter, Request

from service import rebuild as rebuilding
from service.api.auth import Admin
from service.api.refusals import responses
from service.errors import NotEmpty, Unavailable
from service.launching.port import LauncherAway
from service.schemas.rebuild import Rebuilt

router = APIRouter(prefix="/v1/rebuild", tags=["store"])


@router.post("", responses=responses(NotEmpty, Unavailable))
def rebuild(request: Request, principal: Admin) -> Rebuilt:
    """Write an empty database anew from what experiments and runs have left in the store.

    Tokens, webhooks, the audit and limits of projects are not in the store. Needs an admin of every project.
    """
    principal.expect_all("the whole database")
    state = request.app.state
    try:
        live = state.launcher.live()
    except LauncherAway as error:
        raise Unavailable(f"What runs is not known, so nothing was written: {error}") from error
    found = rebuilding.rebuild(state.db, state.settings, live)
    state.reconciler.wake()
    return found
