"""The page of a run; what may be slow to get is asked for by itself."""

from datetime import UTC, datetime
from typing import Annotated

from fastapi import APIRouter, Query, Request, Response

from service.api.auth import Reader
from service.errors import NotFound, Unavailable
from service.pages.curves import MAX_POINTS, curve
from service.pages.panels import with_errors
from service.pages.render import PageRoute, page, part, polled, slow
from service.pages.timeline import timeline
from service.runs import files, logs
from service.runs import service as runs
from service.states import Scope

router = APIRouter(route_class=PageRoute, prefix="/runs/{run_id}", include_in_schema=False)

LOG_LINES = 200

READ = (
    "probe/landmark_nme", "probe/accuracy", "sanity/retrieval_top1", "sanity/neighbour_nme", "sanity/psnr",
)  # fmt: skip
"""Metrics that are drawn first where they were measured while the run trained, too."""
CURVES = (
    "loss/total", "loss/perceptual", "loss/pixel", "loss/contrastive", "lr", "grad_norm", "images_per_second",
    "world_size",
)  # fmt: skip
"""Metrics that are drawn, in this order, where the run has them."""


@router.get("")
@polled
def run(request: Request, run_id: str, principal: Reader, said: str = "") -> Response:
    state = request.app.state
    detail = runs.detail(state.db, state.settings, run_id, principal.project)
    now = datetime.now(UTC)
    return page(
        "run.html", run=detail, said=said, timeline=timeline(detail, now), at=now,
        may_submit=principal.scope.includes(Scope.SUBMIT),
    )  # fmt: skip


@router.get("/curves")
@slow
def curves(request: Request, run_id: str) -> Response:
    state = request.app.state
    found = runs.sampled(state.db, state.tracker, run_id, (*READ, *CURVES), MAX_POINTS).metrics
    names = [*(name for name in READ if len(found.get(name, ())) > 1), *CURVES]
    charts = [chart for name in names if name in found and (chart := curve(name, found[name]))]
    return part(request, "curves.html", run_id, charts=charts)


@router.get("/picture")
@slow
def picture(request: Request, run_id: str) -> Response:
    state = request.app.state
    try:
        step, missing = runs.newest_picture(state.db, state.tracker, run_id), ""
    except (NotFound, Unavailable) as error:
        step, missing = None, error.detail
    return part(request, "picture.html", run_id, step=step, missing=missing)


@router.get("/picture.png")
def picture_png(request: Request, run_id: str, step: Annotated[int | None, Query(ge=0)] = None) -> Response:
    """Of a step, which stays as it is, so that a browser keeps it; or the newest one."""
    png = runs.picture(request.app.state.db, request.app.state.tracker, run_id, step)
    kept = "no-store" if step is None else "private, max-age=3600"
    return Response(with_errors(png), media_type="image/png", headers={"Cache-Control": kept})


@router.get("/checkpoints")
@slow
def checkpoints(request: Request, run_id: str) -> Response:
    state = request.app.state
    return part(request, "checkpoints.html", run_id, found=runs.checkpoints(state.db, state.settings, run_id))


@router.get("/files")
@slow
def fetchable(request: Request, run_id: str) -> Response:
    state = request.app.state
    return part(request, "files.html", run_id, found=files.listing(state.db, state.settings, run_id))


@router.get("/log")
@slow
def log(request: Request, run_id: str) -> Response:
    state = request.app.state
    return part(request, "log.html", run_id, text=logs.tail(state.db, state.launcher, run_id, None, LOG_LINES))
