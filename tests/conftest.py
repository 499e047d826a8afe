"""Real parts for tests: faces, an MLflow server, an S3 server. Each is started once a session, on a free port."""

import contextlib
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterator
from pathlib import Path

import boto3
import hypothesis
import pytest
from PIL import Image, ImageDraw

from tests.forks import forks
from tests.leftovers import Leftovers

# Files in which one worker would still be when all others are done; these come first, the longest before the others.
LONGEST = (
    "test_page", "test_up", "test_elastic", "test_stages", "test_disturbed", "test_service", "test_training",
    "test_data_commands", "test_worlds", "test_client", "test_tracking", "test_mlflow_log", "test_blocked",
    "test_reconciler", "test_api", "test_torchx_plugins", "test_teachers", "test_fitting", "test_access",
)  # fmt: skip
LEFTOVERS = pytest.StashKey[Leftovers]()
LEFT = pytest.StashKey[list[str]]()
TEMPORARY = pytest.StashKey[str]()
SHARED = Path(os.environ.get("MCF_SHARED", Path(__file__).resolve().parents[2] / "shared"))
BIN = Path(sys.executable).parent


# A loaded machine is no fault of a property. CI has a profile of its own, with the same cases each time.
if "CI" not in os.environ:
    hypothesis.settings.register_profile("desk", deadline=None)
    hypothesis.settings.load_profile("desk")


def pytest_configure(config: pytest.Config) -> None:
    # Not in the workers of pytest-xdist: what they have left is looked for when they are gone.
    if not hasattr(config, "workerinput"):
        config.stash[LEFTOVERS] = Leftovers()
        # Processes that are killed leave their temporary files, and tests kill many. pytest's own are kept for a while.
        os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", tempfile.gettempdir())
        config.stash[TEMPORARY] = os.environ["TMPDIR"] = tempfile.mkdtemp(prefix="mcf-tests-")
        tempfile.tempdir = None


def pytest_unconfigure(config: pytest.Config) -> None:
    if TEMPORARY in config.stash:
        shutil.rmtree(config.stash[TEMPORARY], ignore_errors=True)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    place = {name: number for number, name in enumerate(LONGEST)}
    items.sort(key=lambda item: place.get(item.path.stem, len(place)))


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """A session that leaves something behind has failed."""
    if LEFTOVERS in session.config.stash:
        session.config.stash[LEFT] = left = session.config.stash[LEFTOVERS].found()
        if left:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    if left := config.stash.get(LEFT, []):
        terminalreporter.section("left behind by the tests, which is a failure", red=True)
        for line in left:
            terminalreporter.write_line(line)


@pytest.fixture(scope="session", autouse=True)
def cache_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """No test finds what another one, or its user, has left in ~/.cache/mcf."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MCF_CACHE_DIR", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session", autouse=True)
def ended() -> Iterator[None]:
    """At the end nobody is left to be forked from, and nothing in memory that the next run would have removed."""
    yield
    forks.close()
    from trainer.state import hostcopy

    for base in hostcopy._bases():
        hostcopy._sweep(base)


@pytest.fixture(scope="session")
def faces() -> Path:
    """305 real faces with pseudo-landmarks."""
    folder = SHARED / "data" / "faces"
    if not folder.is_dir():
        pytest.skip(f"needs the shared test faces, which are not at {folder}")
    return folder


@pytest.fixture(scope="session")
def tiny_faces(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """48 drawn faces of 48x48 pixels, each different: enough to train on where no real ones are needed."""
    folder = tmp_path_factory.mktemp("faces")
    draw_faces(folder, 48)
    return folder


def draw_faces(folder: Path, count: int, size: int = 48) -> None:
    for number in range(count):
        rng = random.Random(number)
        image = Image.new("RGB", (size, size), tuple(rng.randrange(256) for _ in range(3)))
        pen = ImageDraw.Draw(image)
        x, y = rng.randrange(16, 32), rng.randrange(16, 32)
        skin = tuple(rng.randrange(256) for _ in range(3))
        pen.ellipse((x - 14, y - 16, x + 14, y + 16), fill=skin)
        for side in -6, 6:
            pen.ellipse((x + side - 2, y - 6, x + side + 2, y - 2), fill="black")
        pen.arc((x - 6, y, x + 6, y + 10), 20, 160, fill="black", width=2)
        image.save(folder / f"face{number:03d}.png")


@pytest.fixture(scope="session")
def mlflow_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Address of a real MLflow server."""
    folder = tmp_path_factory.mktemp("mlflow")
    with running_mlflow(folder, free_port()) as url:
        yield url


@contextlib.contextmanager
def running_mlflow(folder: Path, port: int) -> Iterator[str]:
    """An MLflow server with its state in `folder`, so that it can be killed and started again there."""
    command = [
        sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1",
        "--backend-store-uri", f"sqlite:///{folder}/mlflow.db", "--artifacts-destination", str(folder / "artifacts"),
    ]  # fmt: skip
    env = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    with running(command, folder / "server.log", f"http://127.0.0.1:{port}/health", env=env, seconds=120):
        yield f"http://127.0.0.1:{port}"


@pytest.fixture(scope="session")
def _s3_endpoint(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("s3")
    port = free_port()
    command = [str(BIN / "rclone"), "serve", "s3", "--addr", f"127.0.0.1:{port}", "--auth-key", "mcf,mcf-secret-key"]
    (folder / "data" / "mcf").mkdir(parents=True)
    with running([*command, str(folder / "data")], folder / "server.log", f"http://127.0.0.1:{port}", seconds=30):
        yield f"http://127.0.0.1:{port}"


@pytest.fixture
def s3_server(_s3_endpoint: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """An s3:// address of its own on a real S3 server, reachable through the usual AWS variables."""
    for name, value in s3_environment(_s3_endpoint).items():
        monkeypatch.setenv(name, value)
    from trainer.store import objects

    objects._s3.cache_clear()
    boto3.setup_default_session()
    return f"s3://mcf/{uuid.uuid4().hex}"


def s3_environment(endpoint: str) -> dict[str, str]:
    return {
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_ACCESS_KEY_ID": "mcf",
        "AWS_SECRET_ACCESS_KEY": "mcf-secret-key",
        "AWS_REGION": "us-east-1",
    }


@contextlib.contextmanager
def running(
    command: list[str], log: Path, url: str, *, seconds: float, env: dict[str, str] | None = None
) -> Iterator["subprocess.Popen[bytes]"]:
    """A server process in a group of its own, up when `url` answers, gone with its children afterwards."""
    with log.open("ab") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output, env=env, start_new_session=True)
    try:
        wait_until_up(process, url, log, seconds)
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def wait_until_up(process: "subprocess.Popen[bytes]", url: str, log: Path, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            urllib.request.urlopen(url, timeout=2).close()
            return
        except urllib.error.HTTPError:
            return  # an answer, if not a welcome
        except OSError:
            if process.poll() is not None:
                break
            time.sleep(0.2)
    raise RuntimeError(f"{url} did not come up:\n{log.read_text()[-2000:]}")


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port
