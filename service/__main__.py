"""`python -m service`: the service, set up by MCF_* variables."""

import gc
import logging
import sys
from typing import Any

import structlog
import uvicorn
from pydantic import ValidationError

from k8s.pools import NoCluster, PoolsError
from service.app import create_app
from service.db import NewerDatabase
from service.settings import Settings
from trainer.store import objects

# Longer than load balancers and ingresses keep a line to us that nobody uses (60 s mostly): who closes it must not be
# the one that does not know whether a request is on its way.
KEEP_ALIVE_SECONDS = 75
# So many more objects than before, and the young ones are looked through: a page of a thousand runs makes that many.
YOUNG_OBJECTS = 10_000
# After it, log followers are cut off; they reconnect to the next service.
SHUTDOWN_SECONDS = 3


def main() -> int:
    try:
        settings = Settings()
    except ValidationError as error:
        for problem in error.errors():
            field = "_".join(map(str, ("MCF", *problem["loc"]))).upper()
            sys.stderr.write(f"{field}: {problem['msg']}\n" if problem["loc"] else f"{problem['msg']}\n")
        return 2
    _log_as_json()
    objects.patience = objects.Patience(connect_seconds=2, read_seconds=5, tries=2)
    try:
        app = create_app(settings)
        # Here and not only where it is served, so that what is wrong is said in words and not in a traceback.
        app.state.db.migrate()
    except (PoolsError, NoCluster, NewerDatabase) as error:
        sys.stderr.write(f"{error}\n")
        return 2
    _collect_less()
    uvicorn.run(
        app, host=settings.host, port=settings.port, log_config=None, access_log=False,
        timeout_graceful_shutdown=SHUTDOWN_SECONDS, timeout_keep_alive=KEEP_ALIVE_SECONDS,
    )  # fmt: skip
    return 0


def _collect_less() -> None:
    """Looking for garbage stops everybody who waits for an answer. What is loaded by now stays, and looking through all
    of it took 0.3 s each time, a quarter of what it took to make pages (docs/scale.md)."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(YOUNG_OBJECTS)


def _log_as_json() -> None:
    """One JSON object a line, for our own records and for those of libraries."""
    shared: list[Any] = [structlog.stdlib.add_log_level, structlog.processors.TimeStamper(fmt="iso", utc=True)]
    formatter = structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=[structlog.stdlib.add_logger_name, *shared],
        processors=[
            structlog.stdlib.ProcessorFormatter.remove_processors_meta,
            structlog.processors.format_exc_info,
            structlog.processors.JSONRenderer(),
        ],
    )
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler()
    handler.setFormatter(formatter)
    logging.basicConfig(level=logging.INFO, handlers=[handler])
    # httpx2 would tell the addresses of webhooks, and those are secrets.
    for noisy in "torchx", "botocore", "alembic", "mlflow", "urllib3", "httpx2":
        logging.getLogger(noisy).setLevel(logging.WARNING)


if __name__ == "__main__":
    sys.exit(main())
