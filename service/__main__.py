"""`python -m service`: the service, set up by MCF_* variables."""

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
    uvicorn.run(
        app, host=settings.host, port=settings.port, log_config=None, access_log=False,
        timeout_graceful_shutdown=SHUTDOWN_SECONDS,
    )  # fmt: skip
    return 0


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
