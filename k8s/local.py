"""TorchX's local scheduler, with jobs that outlive the process that submitted them and are never started twice.

    <root>/<attempt>/job.json                the nodes' commands and variables; secrets are inherited, not written
    <root>/<attempt>/alive                   locked for as long as any part of the attempt lives
    <root>/<attempt>/pid                     of the supervisor, which stands for the attempt
    <root>/<attempt>/stop                    there once somebody has asked the attempt to stop
    <root>/<attempt>/exit.json               how the nodes ended
    <root>/<attempt>/node/<k>/combined.log   what node k printed

An attempt's folder appears in one rename, already locked, so there is no moment at which a second
submitter could start it again, and none at which an attempt being started looks lost.
"""

import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import Any

from torchx.schedulers.api import DescribeAppResponse, ListAppResponse, Scheduler, Stream, filter_regex
from torchx.schedulers.local_scheduler import COMBINED_LOG, CWDImageProvider
from torchx.schedulers.local_scheduler import LocalScheduler as TorchxLocalScheduler
from torchx.specs import AppDef, AppDryRunInfo, AppState
from torchx.specs.api import NONE

from k8s import supervisor

POLL_SECONDS = 0.2
# Read at a time from the end of a log.
TAIL_BYTES = 1 << 16
# As TorchX's structured error, which is JSON: the attempt is not to blame for its end.
KILLED = json.dumps({"cause": "killed from outside"})


class LocalScheduler(TorchxLocalScheduler):  # type: ignore[misc]  # TorchX ships no types
    """A TorchX scheduler over one folder; any number of processes may use the same one."""

    def __init__(self, session_name: str, root: Path) -> None:
        # Not TorchX's own constructor: it takes over SIGTERM and SIGINT of the whole process.
        Scheduler.__init__(self, "local", session_name)
        self.root = root.resolve()
        self._apps: dict[str, Any] = {}
        self._image_provider_class = CWDImageProvider
        self._extra_paths: list[str] = []
        self._base_log_dir = None
        self._ended: set[str] = set()

    def _get_app_log_dir(self, app_id: str, cfg: Any) -> str:
        return str(self.root / app_id)

    def _submit_dryrun(self, app: AppDef, cfg: Any) -> AppDryRunInfo[dict[str, Any]]:
        request = self._to_popen_request(app, cfg)
        # TorchX appends a random suffix to the name; an attempt is the same one whoever submits it.
        job: dict[str, Any] = json.loads(json.dumps(asdict(request)).replace(request.app_id, app.name))
        for nodes in job["role_params"].values():
            for node in nodes:
                del node["env"]["PATH"]  # inherited
        return AppDryRunInfo(job, lambda job: json.dumps(job, indent=2))

    def schedule(self, dryrun_info: AppDryRunInfo[dict[str, Any]]) -> str:
        """Start the attempt, or find that it has been started before. Returns its name."""
        job = dryrun_info.request
        name: str = job["app_id"]
        [nodes] = job["role_params"].values()
        self.root.mkdir(parents=True, exist_ok=True)
        aside = Path(tempfile.mkdtemp(prefix=".", dir=self.root))
        try:
            (aside / "job.json").write_text(json.dumps(nodes, indent=2))
            with (aside / "alive").open("wb") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                aside.rename(self.root / name)
                _start(self.root / name, lock.fileno())
        except OSError:
            # A folder of that name, which is not empty, refuses the rename: submitted before.
            if not (self.root / name).is_dir():
                raise
        finally:
            shutil.rmtree(aside, ignore_errors=True)
        return name

    def describe(self, app_id: str) -> DescribeAppResponse | None:
        """State of an attempt; None when it was never submitted."""
        folder = self.root / app_id
        if not folder.is_dir():
            return None
        state, message, cause = _state(folder)
        return DescribeAppResponse(app_id=app_id, state=state, num_restarts=0, msg=message, structured_error_msg=cause,
            ui_url=f"file://{folder}",
        )  # fmt: skip

    def list(self) -> list[ListAppResponse]:
        """Every attempt that was ever submitted."""
        return [ListAppResponse(app_id=folder.name, state=_state(folder)[0]) for folder in _folders(self.root)]

    def live(self) -> Sequence[str]:
        """Names of the attempts that live. One that has ended is looked at once: it never lives again."""
        alive = []
        for folder in _folders(self.root):
            if folder.name not in self._ended:
                if _is_alive(folder):
                    alive.append(folder.name)
                else:
                    self._ended.add(folder.name)
        return alive

    def _cancel_existing(self, app_id: str) -> None:
        _terminate(self.root / app_id)

    def close(self) -> None:
        """Nothing: attempts outlive the process that submitted them."""

    def log_iter(
        self,
        app_id: str,
        role_name: str,
        k: int = 0,
        regex: str | None = None,
        since: datetime | None = None,
        until: datetime | None = None,
        should_tail: bool = False,
        streams: Stream | None = None,
    ) -> Iterable[str]:
        """Lines node `k` printed. While following, an empty string says that there is nothing new yet."""
        folder = self.root / app_id
        lines = _lines(folder, folder / role_name / str(k) / COMBINED_LOG, should_tail)
        return filter_regex(regex, lines) if regex else lines

    def tail(self, app_id: str, role_name: str, k: int, count: int) -> Sequence[str]:
        """The last lines node `k` printed."""
        return _last_lines(self.root / app_id / role_name / str(k) / COMBINED_LOG, count)


def _last_lines(path: Path, count: int) -> list[str]:
    """Of a file, however long: it is read from its end."""
    if not path.exists():
        return []
    data = b""
    with path.open("rb") as file:
        position = file.seek(0, os.SEEK_END)
        while position and data.count(b"\n") <= count:
            size = min(position, TAIL_BYTES)
            position -= size
            file.seek(position)
            data = file.read(size) + data
    lines = data.removesuffix(b"\n").split(b"\n") if data else []
    return [line.decode(errors="replace") + "\n" for line in lines[-count:]]


def stop_all(root: Path, grace_seconds: float) -> None:
    """Ask every attempt below `root` to checkpoint and stop; kill what is left after `grace_seconds`."""
    deadline = time.monotonic() + grace_seconds
    living = [folder for folder in _folders(root) if _is_alive(folder)]
    for folder in living:
        _terminate(folder)
    while living and time.monotonic() < deadline + 5:
        living = [folder for folder in living if _is_alive(folder)]
        if time.monotonic() > deadline:
            for folder in living:
                _terminate(folder, signal.SIGKILL)
        time.sleep(POLL_SECONDS)


def _start(folder: Path, lock: int) -> None:
    """Returns when the supervisor, which is nobody's child, has been started."""
    with (folder / "supervisor.log").open("wb") as output:
        subprocess.run(
            [sys.executable, "-I", supervisor.__file__, str(folder), str(lock)],
            stdin=subprocess.DEVNULL, stdout=output, stderr=output, pass_fds=[lock], start_new_session=True, check=True,
        )  # fmt: skip


def _folders(root: Path) -> list[Path]:
    return [folder for folder in root.iterdir() if not folder.name.startswith(".")] if root.is_dir() else []


def _is_alive(folder: Path) -> bool:
    with (folder / "alive").open("rb") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def _state(folder: Path) -> tuple[AppState, str, str]:
    """State, words for people, and KILLED where somebody outside of the attempt ended it."""
    # The lock is looked at first: exit.json is written before it is released.
    if _is_alive(folder):
        return AppState.RUNNING, "", NONE
    stopped = (folder / supervisor.STOP).exists()
    try:
        end = json.loads((folder / "exit.json").read_text())
    except FileNotFoundError:
        if stopped:
            return AppState.CANCELLED, "stopped", NONE
        return AppState.FAILED, "the supervisor was killed", KILLED
    codes = list(end["codes"].values())
    message = ", ".join(f"node {node} ended with {code}" for node, code in end["codes"].items())
    if 0 in codes and max(codes) == 0:
        # A node that was killed while another finished the work does not make the work undone.
        return AppState.SUCCEEDED, message, NONE
    if stopped:
        return AppState.CANCELLED, message, NONE
    # Node 0 hosts the rendezvous: the others end because it did.
    return AppState.FAILED, message, KILLED if end["codes"]["0"] < 0 else NONE


def _terminate(folder: Path, number: signal.Signals = signal.SIGTERM) -> None:
    # The process id is the supervisor's own only while the lock is held.
    if _is_alive(folder):
        # The file stays true when the signal comes before the supervisor listens, or kills it.
        (folder / supervisor.STOP).touch()
        with suppress(ProcessLookupError, FileNotFoundError):
            os.kill(int((folder / supervisor.PID).read_text()), number)


def _lines(folder: Path, path: Path, follow: bool) -> Iterator[str]:
    position, rest = 0, b""
    while True:
        alive = follow and _is_alive(folder)
        data = b""
        if path.exists():
            with path.open("rb") as file:
                file.seek(position)
                data = file.read()
        position += len(data)
        *lines, rest = (rest + data).split(b"\n")
        yield from (line.decode(errors="replace") + "\n" for line in lines)
        if not alive:
            break
        if not data:
            time.sleep(POLL_SECONDS)
            yield ""
    if rest:
        yield rest.decode(errors="replace") + "\n"
