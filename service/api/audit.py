"""GET /v1/audit, and how requests get into it: Require begins an entry, Audited completes it with the answer."""

from typing import Annotated

import anyio.to_thread
import structlog
from fastapi import APIRouter, Query, Request, Response
from pydantic import BaseModel
from sqlalchemy.exc import SQLAlchemyError
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service import audit
from service.api.auth import Admin
from service.db import Database
from service.schemas.audit import AuditList, AuditView
from trainer.contract.frozen import MAX_INTEGER

log = structlog.get_logger()
router = APIRouter(prefix="/v1/audit", tags=["audit"])

LINES = "application/x-ndjson"


@router.get("", response_model=AuditList, responses={200: {"content": {LINES: {}}}})
def get_audit(
    request: Request,
    principal: Admin,
    limit: Annotated[int, Query(ge=1, le=1000)] = 200,
    before: Annotated[int | None, Query(ge=1, le=MAX_INTEGER)] = None,
    after: Annotated[int | None, Query(ge=0, le=MAX_INTEGER)] = None,
) -> Response | AuditList:
    """Who asked for what, newest first; an admin of one project sees what was done with the tokens of the project.

    `before`: entries before this number. `after`: those that followed, oldest first. With `Accept:
    application/x-ndjson` one JSON object a line, for a collector, which asks again with `after` the last number.
    """
    with request.app.state.db.read() as session:
        found = audit.entries(session, limit, principal.project, before=before, after=after)
    views = [AuditView.model_validate(entry, from_attributes=True) for entry in found]
    if LINES in request.headers.get("accept", ""):
        return Response("".join(f"{view.model_dump_json()}\n" for view in views), media_type=LINES)
    return AuditList(entries=views)


class Audited:
    """Middleware: the entries that Require has begun get the status of the answer, before anybody hears of it."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        is_complete = False

        async def complete(status: int, headers: dict[bytes, bytes]) -> None:
            nonlocal is_complete
            state = scope.get("state", {})
            if is_complete or not (numbers := state.get("audit")):
                return
            is_complete = True
            made = headers.get(b"location", b"").decode().rpartition("/")[2] if state["audit_makes"] else ""
            for number in numbers:
                await anyio.to_thread.run_sync(
                    _complete, scope["app"].state.db, number, status, made, state.get("asked", "")
                )

        async def completing(message: Message) -> None:
            if message["type"] == "http.response.start":
                await complete(message["status"], dict(message["headers"]))
            await send(message)

        try:
            await self.app(scope, receive, completing)
        except Exception:
            await complete(500, {})
            raise


def about(request: Request, asked: BaseModel | None, what: str = "") -> None:
    """What of its body a request's entry is to tell; `what`: of a form that has several buttons."""
    request.state.asked = f"{what} {asked.model_dump_json(exclude_unset=True) if asked else ''}".strip()


def _complete(db: Database, number: int, status: int, made: str, asked: str) -> None:
    try:
        audit.complete(db, number, status, made=made, asked=asked)
    except SQLAlchemyError:
        # It is done, and its entry is there: without a status, as if the service had been stopped here.
        log.exception("an entry of the audit was not completed", number=number)
