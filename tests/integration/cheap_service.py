"""`python cheap_service.py`: the service as it is, except that its attempts run cheap_trainer.py."""

import sys
from pathlib import Path

import uvicorn

from service.__main__ import _log_as_json
from service.app import create_app
from service.launching.local import LocalLauncher
from service.settings import Settings

CHEAP_TRAINER = (sys.executable, "-S", "-E", str(Path(__file__).with_name("cheap_trainer.py")))

if __name__ == "__main__":
    _log_as_json()
    settings = Settings()
    app = create_app(settings, LocalLauncher(settings, CHEAP_TRAINER))
    uvicorn.run(app, host=settings.host, port=settings.port, log_config=None, timeout_graceful_shutdown=1)
