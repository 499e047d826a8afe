"""What a person may do to an experiment on its page: the API's actions as forms, for the same tokens."""

from typing import Annotated
from urllib.parse import urlsplit

from fastapi import APIRouter, Depends, Header, Request, Response
from fastapi.responses import RedirectResponse

from service.auth import Require
from service.errors import Forbidden
from service.experiments import service as experiments
from service.pages.render import PageRoute, page
from service.tables import Scope


def from_our_own_page(request: Request, origin: Annotated[str, Header()] = "") -> None:
    """Refuse what another site's page has sent; where no token is asked for, no cookie would. Raises Forbidden."""
    # The host alone: behind an ingress that ends TLS the scheme is another one here than in the browser.
    if urlsplit(origin).netloc != request.headers.get("host"):
        raise Forbidden(f"This form was sent from {origin or 'nowhere'}, and is taken from this service's pages only.")


router = APIRouter(
    route_class=PageRoute, prefix="/experiments/{experiment_id}", include_in_schema=False,
    dependencies=[Depends(Require(Scope.SUBMIT))],
)  # fmt: skip
FORM = [Depends(from_our_own_page)]


@router.get("/cancel")
def ask_before_cancelling(request: Request, experiment_id: str) -> Response:
    state = request.app.state
    return page("cancel.html", experiment=experiments.show(state.db, state.settings, experiment_id))


@router.post("/cancel", dependencies=FORM)
def cancel(request: Request, experiment_id: str) -> Response:
    experiments.cancel(request.app.state.db, experiment_id)
    return _back(request, experiment_id)


@router.post("/retry", dependencies=FORM)
def retry(request: Request, experiment_id: str) -> Response:
    experiments.retry(request.app.state.db, request.app.state.settings, experiment_id)
    return _back(request, experiment_id)


def _back(request: Request, experiment_id: str) -> Response:
    """To the experiment's page by GET, so that reloading it does nothing again."""
    request.app.state.reconciler.wake()
    return RedirectResponse(f"/experiments/{experiment_id}", status_code=303)
