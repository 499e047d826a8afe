"""The service: create_app() puts it together, lifespan runs it: migrate -> reconcile -> serve -> drain."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Mapping

import anyio
from fastapi import Depends, FastAPI
from fastapi_offline import FastAPIOffline

from k8s.pools import Pool, read_pools
from service import errors
from service.api import health, refusals
from service.api.audit import Audited
from service.api.audit import router as audit
from service.api.auth import Require
from service.api.body import Bounded
from service.api.comparison import router as comparison
from service.api.experiments import router as experiments
from service.api.lookup import router as lookup
from service.api.pools import router as pools
from service.api.rebuild import router as rebuild
from service.api.retention import router as retention
from service.api.runs import MAX_FOLLOWERS, MAX_READS
from service.api.runs import router as runs
from service.api.tokens import router as tokens
from service.api.versioned import Versioned
from service.api.webhooks import router as webhooks
from service.compare.answers import Answers
from service.compare.service import Comparisons
from service.costs import prices_of
from service.db import Database
from service.experiments.curves import Curves
from service.launching.local import LocalLauncher
from service.launching.port import Launcher
from service.pages import refusals as page_refusals
from service.pages.render import MAX_PAGES, MAX_SLOW_PARTS
from service.pages.router import router as pages
from service.pages.shared import Shared
from service.reconciler.loop import Reconciler
from service.reconciler.outside import Outside
from service.settings import Settings
from service.states import Scope
from service.telemetry import Telemetry
from service.tokens.service import Keyring
from service.tracking import Tracker
from service.version import VERSION

DESCRIPTION = "Ablations of face-representation pretraining: submit an experiment, get back a comparison."


def create_app(settings: Settings, launcher: Launcher | None = None) -> FastAPI:
    """The application. `launcher` stands in for TorchX with this machine's scheduler."""
    # /docs with its scripts from here: a cluster often reaches no CDN.
    app = FastAPIOffline(title="mcf", version=VERSION, description=DESCRIPTION, lifespan=_lifespan)
    state = app.state
    state.settings = settings
    state.db = Database(settings.database)
    state.keyring = Keyring(state.db)
    state.telemetry = Telemetry()
    state.pools = _pools(settings)
    state.launcher = launcher or _launcher(settings, state.pools)
    state.tracker = Tracker(settings.tracking_uri, settings.tracking_timeout_seconds) if settings.tracking_uri else None
    state.curves, state.comparisons = Curves(state.tracker), Comparisons(settings.tracking_uri, prices_of(settings))
    state.answers = Answers(state.comparisons)
    outside = Outside(settings, state.launcher, state.tracker)
    state.reconciler = Reconciler(state.db, settings, outside, state.telemetry)
    state.questions = health.questions(state.db, state.tracker, settings)
    state.stopping = asyncio.Event()
    state.transfers = anyio.CapacityLimiter(MAX_READS)
    state.polled = Shared()
    state.pages, state.slow_parts = anyio.CapacityLimiter(MAX_PAGES), anyio.CapacityLimiter(MAX_SLOW_PARTS)

    refusals.install(app)
    page_refusals.install(app)
    app.add_middleware(Audited)
    app.add_middleware(Bounded)
    app.add_middleware(Versioned)
    app.include_router(health.router)
    # To read is the least; what changes something demands more by itself.
    protected = [Depends(Require(Scope.READ))]
    refused = refusals.responses(errors.Unauthorized, errors.Forbidden)
    for router in lookup, experiments, comparison, runs, pools, tokens, audit, retention, rebuild, webhooks:
        app.include_router(router, dependencies=protected, responses=refused)
    app.include_router(pages)  # asks for the token by itself, in a form
    return app


def _pools(settings: Settings) -> Mapping[str, Pool] | None:
    """The node pools of the cluster; None where attempts are processes of this machine. Raises PoolsError."""
    return read_pools(settings.pools) if settings.scheduler != "local" and settings.pools else None


def _launcher(settings: Settings, pools: Mapping[str, Pool] | None) -> Launcher:
    if pools is None:
        return LocalLauncher(settings)
    from service.launching.cluster import ClusterLauncher  # its client takes a second to import

    return ClusterLauncher(settings, pools)


@contextlib.asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    state = app.state
    await asyncio.to_thread(state.db.migrate)
    state.followers = anyio.CapacityLimiter(MAX_FOLLOWERS)
    state.reconciler.start()
    try:
        yield
    finally:
        state.stopping.set()
        # Looks under way end; attempts go on without us, and the next start finds them.
        await asyncio.to_thread(state.reconciler.stop)
        state.db.engine.dispose()
