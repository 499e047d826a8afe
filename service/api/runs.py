"""GET /v1/runs: state, logs, checkpoints, curves, pictures and files."""

import json
import mimetypes
from collections.abc import AsyncIterator, Iterator
from typing import Annotated

import anyio
from fastapi import APIRouter, Header, Query, Request, Response
from fastapi.responses import PlainTextResponse, StreamingResponse

from service.api import cursors
from service.api.auth import Reader, Submitter
from service.api.cursors import Cursor
from service.api.ranges import part_of
from service.api.refusals import responses
from service.db import Database
from service.errors import (
    AlreadyEnded,
    Ambiguous,
    InvalidSpec,
    NoSuchRange,
    NotFound,
    NothingToRetry,
    Unavailable,
)
from service.experiments import actions
from service.runs import files, logs, repository, service
from service.runs.files import Opened
from service.schemas.base import ProjectName
from service.schemas.experiments import Part
from service.schemas.runs import Checkpoints, Histories, Pictures, RunDetail, RunFiles, RunList
from service.states import RunAction, RunState

router = APIRouter(prefix="/v1/runs", tags=["runs"])

# Of a file, read at a time: a request to S3 each. The threads that do it are not those that answer requests.
PIECE_BYTES, MAX_READS = 4 << 20, 8
FILE_KINDS = responses(NotFound, NoSuchRange, Unavailable) | {
    200: {"content": {"application/octet-stream": {}}},
    206: {"content": {"application/octet-stream": {}}, "description": "The part that was asked for"},
}

# Every follower waits in a thread; these are not the threads that answer requests.
MAX_FOLLOWERS = 100
LOG_KINDS = responses(NotFound) | {200: {"content": {"text/plain": {}, "text/event-stream": {}}}}


@router.get("", responses=responses(InvalidSpec))
def list_runs(
    request: Request,
    principal: Reader,
    experiment: Annotated[str | None, Query(pattern="^e[0-9a-f]+$")] = None,
    state: Annotated[list[RunState] | None, Query()] = None,
    limit: Annotated[int, Query(ge=1, le=1000)] = 200,
    cursor: Cursor = None,
    project: Annotated[ProjectName | None, Query()] = None,
    prefix: Annotated[str | None, Query(max_length=200)] = None,
) -> RunList:
    """Runs, newest first; of one experiment or project or all, in some states or all.

    `prefix`: those whose ids begin so.
    """
    context, before = request.app.state, cursors.position(cursor)
    with context.db.read() as session:
        found = repository.page(session, limit + 1, before, experiment, state or [], principal.within(project), prefix)
    runs = [service.summary(run, context.settings) for run in found[:limit]]
    return RunList(runs=runs, next_cursor=cursors.after(runs[-1]) if len(found) > limit else None)


@router.get("/{run_id}", responses=responses(NotFound))
def get_run(request: Request, run_id: str, principal: Reader) -> RunDetail:
    """A run with its spec, attempts, result, and the experiments that use it."""
    return service.detail(request.app.state.db, request.app.state.settings, run_id, principal.project)


@router.get("/{run_id}/logs", response_class=PlainTextResponse, responses=LOG_KINDS)
def get_logs(
    request: Request,
    run_id: str,
    follow: bool = False,
    attempt: Annotated[int | None, Query(ge=1)] = None,
    tail: Annotated[int | None, Query(ge=1, le=100_000)] = None,
) -> Response:
    """What the nodes printed. With `follow=true` server-sent events: one line each, then `end` with the run's state."""
    state = request.app.state
    if tail and not follow:
        return PlainTextResponse(logs.tail(state.db, state.launcher, run_id, attempt, tail))
    if not follow:
        return StreamingResponse(logs.text(state.db, state.launcher, run_id, attempt), media_type="text/plain")
    with state.db.read() as session:
        service.get(session, run_id)
    return StreamingResponse(
        _events(request, run_id), media_type="text/event-stream", headers={"Cache-Control": "no-store"}
    )


@router.get("/{run_id}/checkpoints", responses=responses(NotFound, Unavailable))
def get_checkpoints(request: Request, run_id: str) -> Checkpoints:
    """Complete checkpoints in the store, oldest first."""
    return service.checkpoints(request.app.state.db, request.app.state.settings, run_id)


@router.get("/{run_id}/metrics", responses=responses(NotFound, Unavailable))
def get_metrics(request: Request, run_id: str, name: Annotated[list[str] | None, Query()] = None) -> Histories:
    """Metric curves from MLflow, all or those named, one value a step."""
    return service.histories(request.app.state.db, request.app.state.tracker, run_id, name)


@router.get(
    "/{run_id}/picture",
    response_class=Response,
    responses=responses(NotFound, Unavailable) | {200: {"content": {"image/png": {}}}},
)
def get_picture(request: Request, run_id: str, step: Annotated[int | None, Query(ge=0)] = None) -> Response:
    """The panel of images, masked images and reconstructions of a step, or the newest one."""
    png = service.picture(request.app.state.db, request.app.state.tracker, run_id, step)
    return Response(png, media_type="image/png", headers={"Cache-Control": "max-age=5"})


@router.get("/{run_id}/pictures", responses=responses(NotFound, Unavailable))
def get_pictures(request: Request, run_id: str) -> Pictures:
    """Steps of which there is a panel."""
    steps = service.picture_steps(request.app.state.db, request.app.state.tracker, run_id)
    return Pictures(steps=steps)


@router.post("/{run_id}/{action}", responses=responses(NotFound, Ambiguous, AlreadyEnded, NothingToRetry, Unavailable))
def act(
    request: Request, run_id: str, action: RunAction, principal: Submitter,
    experiment: Annotated[str | None, Query(pattern="^e[0-9a-f]+$")] = None,
) -> RunDetail:  # fmt: skip
    """Cancel, pause, resume or retry one run; the rest of its experiment goes on.

    Where several experiments share it, say for which: for the others it goes on.
    """
    state = request.app.state
    of = actions.experiment_of(state.db, run_id, principal.project, experiment)
    actions.act(state.db, state.settings, of, action, principal.signature, Part(runs=[run_id]))
    state.reconciler.wake()
    return service.detail(state.db, state.settings, run_id, principal.project)


@router.get("/{run_id}/files", responses=responses(NotFound, Unavailable))
def get_files(request: Request, run_id: str) -> RunFiles:
    """What can be fetched of a run: encoder, checkpoints, result and records; and why some of it is not there."""
    return files.listing(request.app.state.db, request.app.state.settings, run_id)


@router.get("/{run_id}/files/{name:path}", response_class=StreamingResponse, responses=FILE_KINDS)
def get_file(
    request: Request,
    run_id: str,
    name: str,
    wanted: Annotated[str | None, Header(alias="Range")] = None,
    if_range: Annotated[str | None, Header(alias="If-Range")] = None,
) -> Response:
    """One of the files of a run, or with `Range: bytes=FROM-TO` a part of it. `name` is as /files lists it."""
    state = request.app.state
    found = files.open_file(state.db, state.settings, run_id, name)
    tag, size = f'"{found.version}"', found.file.bytes
    # A part of another file than the one that the rest is of would make a mixture.
    part = part_of(size, wanted) if if_range in (None, tag) else None
    start, length = part or (0, size)
    headers = {
        "Accept-Ranges": "bytes", "Cache-Control": "no-store", "Content-Length": str(length), "ETag": tag,
        "Content-Disposition": f'attachment; filename="{found.file.save_as}"', "X-Content-Type-Options": "nosniff",
    }  # fmt: skip
    if part:
        headers["Content-Range"] = f"bytes {start}-{start + length - 1}/{size}"
    kind = mimetypes.guess_type(name)[0] or "application/octet-stream"
    return StreamingResponse(
        _pieces(found, start, length, state.transfers), 206 if part else 200, headers, media_type=kind
    )


async def _pieces(found: Opened, start: int, length: int, transfers: anyio.CapacityLimiter) -> AsyncIterator[bytes]:
    """The next is read when the one before has been taken: of each transfer one is in memory."""
    for at in range(start, start + length, PIECE_BYTES):
        size = min(PIECE_BYTES, start + length - at)
        yield await anyio.to_thread.run_sync(found.read, at, size, limiter=transfers)


async def _events(request: Request, run_id: str) -> AsyncIterator[str]:
    state = request.app.state
    lines = logs.follow(state.db, state.launcher, run_id)
    quiet = 0
    while (line := await anyio.to_thread.run_sync(_next, lines, limiter=state.followers)) is not None:
        if await request.is_disconnected() or state.stopping.is_set():
            return
        quiet = 0 if line else quiet + 1
        if line:
            yield f"data: {json.dumps(line.rstrip())}\n\n"
        elif quiet % 50 == 0:
            yield ": waiting\n\n"  # so that proxies keep the connection
    ended = await anyio.to_thread.run_sync(_state, state.db, run_id)
    yield f"event: end\ndata: {json.dumps(ended)}\n\n"


def _state(db: Database, run_id: str) -> str:
    with db.read() as session:
        return service.get(session, run_id).state.value


def _next(lines: Iterator[str]) -> str | None:
    return next(lines, None)
