"""GET /v1/lookup: what is meant by a name."""

from fastapi import APIRouter, Request

from service.api.auth import Reader
from service.api.refusals import responses
from service.errors import Ambiguous, NotFound
from service.experiments.lookup import look_up
from service.schemas.lookup import Found, Kind

router = APIRouter(prefix="/v1", tags=["lookup"])


@router.get("/lookup", responses=responses(NotFound, Ambiguous))
def lookup(
    request: Request,
    principal: Reader,
    name: str,
    kind: Kind | None = None,
) -> Found:
    """The experiment or run that is meant: by its id, by the beginning of one, or an experiment by its name.

    `kind`: the only kind that may be meant. What means several things is refused, with the newest of them.
    """
    state = request.app.state
    kinds = tuple(Kind) if kind is None else (kind,)
    return look_up(state.db, state.settings, name, kinds, project=principal.project)
