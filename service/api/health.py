"""Probes and metrics: open to who watches the service, without the token."""

import asyncio
import contextlib
import threading
from collections.abc import Callable
from concurrent.futures import Future

from fastapi import APIRouter, Request, Response
from sqlalchemy import func, select
from sqlalchemy.exc import SQLAlchemyError

from service.db import Database
from service.settings import Settings
from service.states import RunState
from service.tables import Run
from service.tracking import Tracker, TrackingAway
from service.version import VERSION
from trainer.store.objects import ObjectMissing, StorageError, open_store

router = APIRouter(tags=["health"])

# A probe gives up after a few seconds, and answers without what has not answered.
PROBE_SECONDS = 3.0


class Question:
    """Whether one dependency answers. It has a thread of its own, and is not asked again while it thinks.

    So one that hangs costs a single thread, however often it is probed, and holds up no other question.
    """

    def __init__(self, name: str, ask: Callable[[], str]) -> None:
        self.name, self._ask = name, ask
        self._asked: Future[str] | None = None
        self._lock = threading.Lock()

    def put(self) -> "Future[str]":
        """The answer to come: to this question, or to the one before that is not answered yet."""
        with self._lock:
            if self._asked is None or self._asked.done():
                self._asked = Future()
                threading.Thread(
                    target=self._answer, args=(self._asked,), name=f"ready {self.name}", daemon=True
                ).start()
            return self._asked

    def _answer(self, asked: "Future[str]") -> None:
        try:
            asked.set_result(self._ask())
        except BaseException as error:
            asked.set_exception(error)
            raise


def questions(db: Database, tracker: Tracker | None, settings: Settings) -> list[Question]:
    """What readiness is made of."""
    return [
        Question("database", lambda: _ask(db.ping)),
        Question("mlflow", lambda: _ask(tracker.ping) if tracker else "not configured"),
        Question("store", lambda: _ask(lambda: _touch(settings.store_uri))),
    ]


# Probes take no thread of those that answer requests: these may all be waiting for a store.
@router.get("/healthz")
async def healthz() -> dict[str, str]:
    """The process answers, and says its version."""
    return {"status": "ok", "version": VERSION}


@router.get("/readyz", responses={503: {"description": "The database does not answer"}})
async def readyz(request: Request, response: Response) -> dict[str, str]:
    """The database answers. Of MLflow and the store it is said whether they do: runs wait for them, requests do not."""
    asked = {question.name: asyncio.wrap_future(question.put()) for question in request.app.state.questions}
    await asyncio.wait(asked.values(), timeout=PROBE_SECONDS)
    told = {name: answer.result() if answer.done() else "no answer yet" for name, answer in asked.items()}
    ready = told["database"] == "ok"
    response.status_code = 200 if ready else 503
    return {"status": "ready" if ready else "not ready", **told}


@router.get("/metrics", response_class=Response, responses={200: {"content": {"text/plain": {}}}})
def metrics(request: Request) -> Response:
    """Prometheus metrics."""
    state = request.app.state
    with state.db.read() as session:
        counts = dict(session.execute(select(Run.state, func.count()).group_by(Run.state)).all())
    for name in RunState:
        state.telemetry.runs.labels(name.value).set(counts.get(name, 0))
    state.telemetry.tracking_up.set(0 if state.tracker is None or state.tracker.is_away else 1)
    return Response(state.telemetry.text(), media_type="text/plain; version=0.0.4; charset=utf-8")


def _ask(question: Callable[[], None]) -> str:
    try:
        question()
    except (SQLAlchemyError, TrackingAway, StorageError) as error:
        return str(error).partition("\n")[0]
    return "ok"


def _touch(store_uri: str) -> None:
    with contextlib.suppress(ObjectMissing):
        open_store(store_uri).get("ready")
