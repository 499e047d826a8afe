"""Who asks, and what they may. A route demands a scope with `Depends(Require(Scope.READ))`.

The token comes in the header; browsers carry it in a cookie that no script can read. A token of one project finds
the experiments of that project and the runs they use, everything else is not there: for addresses with an
{experiment_id} or a {run_id} that is seen to here, lists and submissions ask `Principal.within`.
"""

import hmac
from dataclasses import dataclass
from typing import Annotated
from urllib.parse import urlsplit

from fastapi import Depends, Request
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from starlette.datastructures import State

from service import audit
from service.errors import Forbidden, Unauthorized
from service.experiments import service as experiments
from service.experiments.actions import SOMEBODY
from service.runs import service as runs
from service.states import Scope
from service.tables import AuditEntry, Token
from trainer.store.loopback import LOOPBACK

COOKIE = "mcf_token"
ONLY_LOOKS = ("GET", "HEAD", "OPTIONS")

BEARER = HTTPBearer(auto_error=False, description="A token from `mcf token create`, or the service's MCF_TOKEN.")


@dataclass(frozen=True)
class Principal:
    """Who asks."""

    name: str
    scope: Scope
    project: str | None = None
    """None = every project."""
    token_id: str = ""
    """Empty = MCF_TOKEN, or nobody is asked for one."""

    @property
    def signature(self) -> str:
        """Who it was, in `cancelled by ...`."""
        return SOMEBODY if self is LOCAL else self.name

    def within(self, asked: str | None) -> str | None:
        """The project a request is about: the one asked for, else the token's; None = every one. Raises Forbidden."""
        if self.project and asked not in (None, self.project):
            raise Forbidden(
                f"The request is for project {asked!r}, but the token {self.name!r} belongs to project "
                f"{self.project!r}. Leave the project out, or send a token of that project."
            )
        return asked or self.project

    def expect_all(self, what: str) -> None:
        """Raises Forbidden for a token of one project."""
        if self.project:
            raise Forbidden(
                f"This is about {what}, of all projects together, and the token {self.name!r} belongs to project "
                f"{self.project!r}. Ask an admin of every project."
            )


LOCAL = Principal("local", Scope.ADMIN)
"""Whoever reaches a service without MCF_TOKEN, which listens on loopback only."""
FIRST = Principal("MCF_TOKEN", Scope.ADMIN)


def principal_of(state: State, secret: str) -> Principal:
    """Whose secret it is. Raises Unauthorized."""
    first = state.settings.token
    if not first:
        return LOCAL
    if hmac.compare_digest(secret.encode(), first.get_secret_value().encode()):
        return FIRST
    if not secret:
        raise Unauthorized(
            "This service needs a token: send the header `Authorization: Bearer ...`, or open / in a browser and "
            "enter it there. An admin creates one with `mcf token create`."
        )
    token: Token | None = state.keyring.find(secret)
    if token is None:
        raise Unauthorized("This token is not known to the service. An admin creates one with `mcf token create`.")
    if ended := state.keyring.ended(token):
        raise Unauthorized(f"The token {token.name!r} ({token.id}) {ended}. Ask an admin for a new one.")
    return Principal(token.name, token.scope, token.project, token.id)


@dataclass(frozen=True)
class Require:
    """Dependency of every route that is not open to all. Raises Unauthorized, Forbidden, NotFound."""

    scope: Scope

    def __call__(
        self, request: Request, bearer: Annotated[HTTPAuthorizationCredentials | None, Depends(BEARER)]
    ) -> Principal:
        # A route may demand more than its router does; who asks is looked up once.
        principal: Principal | None = getattr(request.state, "principal", None)
        if principal is None:
            refuse_other_sites(request)
            _refuse_other_names(request)
            secret = bearer.credentials if bearer else request.cookies.get(COOKIE, "")
            principal = principal_of(request.app.state, secret)
            _write_down(principal, request)
            _refuse_what_is_not_there_for(principal, request)
            request.state.principal = principal
        if not principal.scope.includes(self.scope):
            raise Forbidden(
                f"This needs the scope {self.scope.value}, but the token {principal.name!r} has "
                f"{principal.scope.value}. Ask an admin: `mcf token create NAME --scope {self.scope.value}`."
            )
        return principal


Reader = Annotated[Principal, Depends(Require(Scope.READ))]
Submitter = Annotated[Principal, Depends(Require(Scope.SUBMIT))]
Admin = Annotated[Principal, Depends(Require(Scope.ADMIN))]


DELETE_TOGETHER = "/delete"
"""The page on which several experiments are deleted; its form names them in the address (pages/retention.py)."""
MOST_TOGETHER = 200
MADE = {"POST": "create", "PATCH": "change", "PUT": "set", "DELETE": "delete"}


def _write_down(principal: Principal, request: Request) -> None:
    """What is to change something gets an entry in the audit before it does; api/audit.py completes it."""
    route = request.scope["route"]
    # Of routes that know it: at any other address the word changes nothing.
    is_dry = "dry_run" in {asked.name for asked in route.dependant.query_params}
    if request.method in ONLY_LOOKS or (is_dry and request.query_params.get("dry_run") == "true"):
        return
    path = route.path.removeprefix("/v1")
    if path in ("/new/check", "/new/file"):  # a form that is being filled in
        return
    # /experiments/{experiment_id}/cancel is experiments.cancel, and /experiments is experiments.create.
    what, *rest = path.strip("/").split("/")
    last = rest[-1] if rest else ""
    if last == "{action}":
        last = request.path_params["action"]
    if path == DELETE_TOGETHER:
        last = "delete"
    verb = MADE[request.method] if not last or last.startswith("{") else last
    ids = list(request.path_params.values())[:1] or [""]
    if path == DELETE_TOGETHER:
        # As if each were deleted by itself.
        what, ids = "experiments", list(dict.fromkeys(request.query_params.getlist("id")))[:MOST_TOGETHER] or [""]
    forwarded = request.headers.get("x-forwarded-for")
    address = request.client.host if request.client else ""
    request.state.audit_makes = verb == "create" or what == "new"
    request.state.audit = [
        audit.begin(
            request.app.state.db,
            AuditEntry(
                token_id=principal.token_id, name=principal.name, project=principal.project,
                action="experiments.create" if what == "new" else f"{what}.{verb}", object=id,
                asked=request.url.query, address=f"{address} for {forwarded}" if forwarded else address,
            ),
        )
        for id in ids
    ]  # fmt: skip


def refuse_other_sites(request: Request) -> None:
    """What the page of another site makes a browser send: a service without tokens would take it from everybody."""
    origin = request.headers.get("origin")
    if request.method in ONLY_LOOKS or origin is None:
        return
    # The host alone: behind an ingress that ends TLS the scheme is another one here than in the browser.
    if urlsplit(origin).netloc != request.headers.get("host"):
        raise Forbidden(f"A page of {origin} sent this request; the service accepts it only from its own pages.")


def _refuse_other_names(request: Request) -> None:
    """Without a token only the address protects the service, and a page may give its own name this address.

    A browser then takes both for one site. It still says which name it asked for.
    """
    host = request.headers.get("host", "")
    if not request.app.state.settings.token and urlsplit(f"//{host}").hostname not in LOOPBACK:
        raise Forbidden(
            f"This service has no token, so it answers only as {', '.join(LOOPBACK)}, not as {host!r}. Use one of "
            "these names, or start it with MCF_TOKEN."
        )


def _refuse_what_is_not_there_for(principal: Principal, request: Request) -> None:
    if principal.project is None:
        return
    with request.app.state.db.read() as session:
        if experiment_id := request.path_params.get("experiment_id"):
            experiments.get(session, experiment_id, project=principal.project)
        if run_id := request.path_params.get("run_id"):
            runs.get(session, run_id, project=principal.project)
