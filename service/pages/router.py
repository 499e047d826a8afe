"""The page: experiments, an experiment, a run. Rendered here, kept fresh by htmx asking for the same again.

Reads through the same functions as the API, and shows a token what the API would. Included without dependencies: it
asks for the token itself, in a form, and its style sheet and script are open to all.
"""

from collections.abc import Callable, Coroutine
from hashlib import sha256
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import parse_qs

import anyio.to_thread
import jinja2
from fastapi import APIRouter, Depends, Query, Request, Response
from fastapi.responses import FileResponse, HTMLResponse, RedirectResponse
from fastapi.routing import APIRoute

from service.auth import COOKIE, Reader, Require, principal_of
from service.compare.service import comparison_of
from service.errors import ApiError, NotFound, Unauthorized, Unavailable
from service.experiments import repository, views
from service.experiments import service as experiments
from service.experiments.schemas import ProjectName
from service.pages.curves import curve
from service.runs import logs
from service.runs import service as runs
from service.tables import Scope
from service.text import age, duration, first_line, short

HERE = Path(__file__).parent
STATIC = {path.name: path for path in (HERE / "static").iterdir()}
NUM_EXPERIMENTS = 50
LOG_LINES = 200
MAX_FORM_BYTES = 4096

CURVES = (
    "loss/total", "loss/perceptual", "loss/pixel", "loss/contrastive", "lr", "grad_norm", "images_per_second",
    "world_size",
)  # fmt: skip
"""Metrics that are drawn, in this order, where the run has them."""

SECURITY = {
    "Content-Security-Policy": "default-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'",
    "Referrer-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",
}

_jinja = jinja2.Environment(
    loader=jinja2.FileSystemLoader(HERE / "templates"), autoescape=True, undefined=jinja2.StrictUndefined,
    trim_blocks=True, lstrip_blocks=True,
)  # fmt: skip
_jinja.filters |= {"age": age, "duration": duration, "short": short, "first_line": first_line}
# sanity/retrieval_top1 -> retrieval top1
_jinja.filters["metric"] = lambda name: name.rpartition("/")[2].replace("_", " ")


class PageRoute(APIRoute):
    """What the API answers with JSON, people get as a page: the token's form, or what went wrong."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def page(request: Request) -> Response:
            try:
                return await handle(request)
            except Unauthorized as error:
                # Who has sent none is asked for it; who has sent one is told what is wrong with it.
                problem = error.detail if COOKIE in request.cookies else ""
                return _page("token.html", 401, next=_path(request), problem=problem)
            except ApiError as error:
                return _page("error.html", error.status, error=error)

        return page


pages = APIRouter(route_class=PageRoute, dependencies=[Depends(Require(Scope.READ))], include_in_schema=False)
open_to_all = APIRouter(include_in_schema=False)


@pages.get("/")
def index(request: Request, principal: Reader, project: Annotated[ProjectName | None, Query()] = None) -> Response:
    state = request.app.state
    with state.db.read() as session:
        found = repository.page(session, NUM_EXPERIMENTS + 1, None, principal.within(project))
        shown = views.summaries(session, found[:NUM_EXPERIMENTS], state.settings)
    return _page(
        "index.html", experiments=shown, more=len(found) > NUM_EXPERIMENTS, project=project,
        tracking_uri=state.settings.tracking_uri,
    )  # fmt: skip


@pages.get("/experiments/{experiment_id}")
def experiment(request: Request, experiment_id: str) -> Response:
    state = request.app.state
    detail = experiments.show(state.db, state.settings, experiment_id)
    with state.db.read() as session:
        comparison = comparison_of(session, experiment_id, state.settings.tracking_uri)
    return _page("experiment.html", experiment=detail, comparison=comparison)


@pages.get("/runs/{run_id}")
def run(request: Request, run_id: str, principal: Reader) -> Response:
    state = request.app.state
    return _page("run.html", run=runs.detail(state.db, state.settings, run_id, principal.project))


@pages.get("/runs/{run_id}/curves")
def run_curves(request: Request, run_id: str) -> Response:
    state = request.app.state
    found = runs.histories(state.db, state.tracker, run_id, list(CURVES)).metrics
    charts = [chart for name in CURVES if name in found and (chart := curve(name, found[name]))]
    return _part(request, "curves.html", run_id, charts=charts)


@pages.get("/runs/{run_id}/picture")
def run_picture(request: Request, run_id: str) -> Response:
    state = request.app.state
    try:
        version = sha256(runs.picture(state.db, state.tracker, run_id)).hexdigest()[:12]
        missing = ""
    except (NotFound, Unavailable) as error:
        version, missing = "", error.detail
    return _part(request, "picture.html", run_id, version=version, missing=missing)


@pages.get("/runs/{run_id}/picture.png")
def run_picture_png(request: Request, run_id: str, v: Annotated[str, Query()] = "") -> Response:
    """`v` names the picture's content, so that a browser keeps what it has."""
    png = runs.picture(request.app.state.db, request.app.state.tracker, run_id)
    return Response(png, media_type="image/png", headers={"Cache-Control": "private, max-age=3600"})


@pages.get("/runs/{run_id}/checkpoints")
def run_checkpoints(request: Request, run_id: str) -> Response:
    state = request.app.state
    return _part(request, "checkpoints.html", run_id, found=runs.checkpoints(state.db, state.settings, run_id))


@pages.get("/runs/{run_id}/log")
def run_log(request: Request, run_id: str) -> Response:
    state = request.app.state
    return _part(request, "log.html", run_id, text=logs.text(state.db, state.launcher, run_id, None, LOG_LINES))


@open_to_all.get("/login")
def ask_for_token() -> Response:
    """The form by itself, for who wants to go on with another token."""
    return _page("token.html", next="/", problem="")


@open_to_all.post("/login")
async def login(request: Request) -> Response:
    """The token from the form into a cookie that no script can read and no other site can use."""
    body = b""
    async for chunk in request.stream():
        body += chunk
        if len(body) > MAX_FORM_BYTES:
            return _page("token.html", 413, next="/", problem="That is longer than any token.")
    form = {name: values[-1] for name, values in parse_qs(body.decode("utf-8", "replace")).items()}
    token, target = form.get("token", ""), form.get("next", "/")
    try:
        await anyio.to_thread.run_sync(principal_of, request.app.state, token)
    except Unauthorized as error:
        return _page("token.html", 401, next=target, problem=error.detail)
    # Only to a page of ours: //other.site would be another one.
    safe = target if target.startswith("/") and not target.startswith(("//", "/\\")) else "/"
    answer = RedirectResponse(safe, status_code=303)
    # TLS mostly ends at an ingress, which says so in a header; who makes that up keeps only themselves out.
    secure = "https" in (request.url.scheme, request.headers.get("x-forwarded-proto"))
    answer.set_cookie(COOKIE, token, httponly=True, samesite="strict", secure=secure)
    return answer


@open_to_all.get("/static/{name}")
def static(name: str) -> Response:
    if name not in STATIC:
        raise NotFound(f"There is no file {name!r}.")
    return FileResponse(STATIC[name], headers={"Cache-Control": "max-age=3600", "X-Content-Type-Options": "nosniff"})


router = APIRouter()
router.include_router(pages)
router.include_router(open_to_all)


def _part(request: Request, template: str, run_id: str, **values: Any) -> Response:
    """A part of the run's page that is asked for by itself: MLflow and the store may be slow, the page is not."""
    state = request.app.state
    with state.db.read() as session:
        is_live = not runs.get(session, run_id).state.is_final
    return _page(template, run_id=run_id, is_live=is_live, **values)


def _page(template: str, status: int = 200, **values: Any) -> HTMLResponse:
    return HTMLResponse(_jinja.get_template(template).render(**values), status, SECURITY)


def _path(request: Request) -> str:
    """Where to go on after the token; a part of a page is no place to go to."""
    return "/" if "hx-request" in request.headers else request.url.path
