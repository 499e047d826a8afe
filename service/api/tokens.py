"""POST, GET and DELETE /v1/tokens; GET /v1/whoami."""

from typing import Annotated

from fastapi import APIRouter, Depends, Query, Request, Response

from service.api.auth import Admin, Reader, Require
from service.api.body import PlainRoute
from service.api.refusals import responses
from service.errors import NotFound
from service.schemas.base import ProjectName
from service.schemas.tokens import NewToken, TokenCreated, TokenList, TokenView, Whoami
from service.states import Scope
from service.tokens import repository, service

router = APIRouter(route_class=PlainRoute, prefix="/v1", tags=["tokens"])
tokens = APIRouter(route_class=PlainRoute, prefix="/tokens", dependencies=[Depends(Require(Scope.ADMIN))])


@router.get("/whoami")
def whoami(principal: Reader) -> Whoami:
    """What the token of this request is good for."""
    return Whoami.model_validate(principal, from_attributes=True)


@tokens.post("", status_code=201)
def create(request: Request, response: Response, body: NewToken, principal: Admin) -> TokenCreated:
    """Make a token. Its secret is in this answer and never again."""
    project = principal.within(body.project)
    token, secret = service.create(
        request.app.state.db, name=body.name, scope=body.scope, project=project, expires_in_days=body.expires_in_days,
        by=principal.name,
    )  # fmt: skip
    response.headers["Location"] = f"/v1/tokens/{token.id}"
    response.headers["Cache-Control"] = "no-store"
    return TokenCreated(**TokenView.model_validate(token, from_attributes=True).model_dump(), secret=secret)


@tokens.get("")
def list_tokens(
    request: Request, principal: Admin, project: Annotated[ProjectName | None, Query()] = None
) -> TokenList:
    """All tokens, newest first, also those that are no longer good; a project's admin sees those of the project."""
    with request.app.state.db.read() as session:
        found = repository.all_of(session, principal.within(project))
    return TokenList(tokens=[TokenView.model_validate(token, from_attributes=True) for token in found])


@tokens.delete("/{token_id}", responses=responses(NotFound))
def revoke(request: Request, token_id: str, principal: Admin) -> TokenView:
    """Refuse it from now on: here at once, at other replicas within seconds. Doing it twice is harmless."""
    token = service.revoke(request.app.state.db, token_id, principal.project)
    request.app.state.keyring.forget(token.id)
    return TokenView.model_validate(token, from_attributes=True)


router.include_router(tokens)
