"""Probes and metrics: open to who watches the service, without the token."""

import concurrent.futures
from collections.abc import Callable

from fastapi import APIRouter, Request, Response
from sqlalchemy import func, select
from sqlalchemy.exc import SQLAlchemyError

from service.settings import Settings
from service.states import RunState
from service.tables import Run
from service.tracking import Tracker, TrackingAway
from trainer.store.objects import ObjectMissing, StorageError, open_store

router = APIRouter(tags=["health"])

# A probe gives up after a few seconds; so does each thing it asks.
PROBE_SECONDS = 3.0
_asking = concurrent.futures.ThreadPoolExecutor(4, thread_name_prefix="ready")


@router.get("/healthz")
def healthz() -> dict[str, str]:
    """The process answers."""
    return {"status": "ok"}


@router.get("/readyz", responses={503: {"description": "The database does not answer"}})
def readyz(request: Request, response: Response) -> dict[str, str]:
    """The database answers. Of MLflow and the store it is said whether they do: runs wait for them, requests do not."""
    state = request.app.state
    asked = {
        "database": _asking.submit(_ask, state.db.ping),
        "mlflow": _asking.submit(_ask_tracker, state.tracker),
        "store": _asking.submit(_ask_store, state.settings),
    }
    concurrent.futures.wait(asked.values(), PROBE_SECONDS)
    told = {name: future.result() if future.done() else "no answer yet" for name, future in asked.items()}
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


def _ask_tracker(tracker: Tracker | None) -> str:
    return _ask(tracker.ping) if tracker else "not configured"


def _ask_store(settings: Settings) -> str:
    def ask() -> None:
        try:
            open_store(settings.store_uri).get("ready")
        except ObjectMissing:
            return

    return _ask(ask)
