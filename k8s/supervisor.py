"""One attempt on this machine: starts its nodes, passes signals on, writes down how they ended.

Run as `python supervisor.py DIR`, by path and with the standard library only, so that it starts in a
moment. It lives in a session of its own and outlives the service that started it. It is born holding an
exclusive lock on DIR/alive, and its nodes inherit the lock: the attempt lives exactly as long as the lock
is held, whatever happens to process ids. When it dies, its nodes die with it.

The temporary files of its nodes go into a folder of their own: torch and multiprocessing remove theirs only in
processes that end in peace.
"""

import ctypes
import fcntl
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

# From SIGTERM to SIGKILL: a worker finishes its step and writes a checkpoint within it.
GRACE_SECONDS = 60.0
# Agent 0 hosts the rendezvous store: without it the others cannot re-form, and get this long to find out.
WITHOUT_STORE_SECONDS = 45.0
POLL_SECONDS = 0.1
# What belongs to the service alone, or would change what the nodes do behind the spec's back.
NOT_INHERITED = (
    "MCF_TOKEN",
    "MCF_DATABASE_URL",
    "LOGLEVEL",
    "MLFLOW_HTTP_REQUEST_TIMEOUT",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES",
)
PR_SET_PDEATHSIG = 1
STOP = "stop"
PID = "pid"
TEMPORARY = "mcf-tmp-"
# A folder is locked a moment after it is made.
LOCKED_WITHIN_SECONDS = 60.0
# Of a folder for temporary files: multiprocessing binds sockets below it, and the path of one has at most 107 bytes.
LONGEST_PATH = 74


def main() -> int:
    folder, lock = Path(sys.argv[1]), int(sys.argv[2])
    if os.fork():
        return 0  # who started us waits for this process only, and has no child to reap
    stopping = _Stopping()
    signal.signal(signal.SIGTERM, stopping.request)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # In this order: who finds no process id yet has left the file.
    _write(folder / PID, os.getpid())
    stopping.requested = stopping.requested or (folder / STOP).exists()
    nodes = json.loads((folder / "job.json").read_text())
    port = _free_port()
    processes: list[subprocess.Popen[bytes]] = []
    with temporary_folder() as temporary:
        for index, node in enumerate(nodes):
            if not stopping.requested:
                processes.append(_start(node, index, port, lock, temporary))
        _watch(processes, stopping)
    codes = {str(index): process.returncode for index, process in enumerate(processes)}
    _write(folder / "exit.json", {"codes": codes})
    return 0


@contextmanager
def temporary_folder() -> Iterator[dict[str, str]]:
    """Variables with which programs leave their temporary files in a folder that is removed in the end.

    One that a killed process has left is removed by the next.
    """
    everybodys = Path(tempfile.gettempdir())
    for left in everybodys.glob(f"{TEMPORARY}*"):
        with suppress(OSError):  # in use, another user's, or gone
            if time.time() - left.stat().st_mtime > LOCKED_WITHIN_SECONDS:
                os.close(_locked(left))
                shutil.rmtree(left)
    folder = Path(tempfile.mkdtemp(prefix=TEMPORARY))
    lock = _locked(folder)
    fits = len(os.fsencode(folder)) <= LONGEST_PATH
    try:
        yield {"TMPDIR": str(folder)} if fits else {}
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(lock)


def _locked(folder: Path) -> int:
    """A descriptor that holds the folder while it is open. Raises OSError when another process holds it."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(handle)
        raise
    return handle


class _Stopping:
    requested = False

    def request(self, signum: int, frame: object) -> None:
        self.requested = True


def _start(
    node: dict[str, Any], index: int, port: int, lock: int, temporary: dict[str, str]
) -> "subprocess.Popen[bytes]":
    log = Path(node["combined"])
    log.parent.mkdir(parents=True, exist_ok=True)
    environment = {name: value for name, value in os.environ.items() if name not in NOT_INHERITED}
    environment |= temporary
    environment |= {"PYTHONUNBUFFERED": "1", "PET_LOCAL_ADDR": "127.0.0.1", "GLOO_SOCKET_IFNAME": "lo"}
    # Told to stop, an agent would kill its workers after 30 s.
    environment["TORCH_ELASTIC_SHUTDOWN_TIMEOUT"] = f"{GRACE_SECONDS:.0f}"
    environment |= node["env"]
    environment["PET_RDZV_ENDPOINT"] = f"127.0.0.1:{port}"
    if "PET_RDZV_CONF" in environment:
        environment["PET_RDZV_CONF"] += f",is_host={'true' if index == 0 else 'false'}"
    parent = os.getpid()
    with log.open("ab") as output:
        try:
            return subprocess.Popen(
                node["args"], env=environment, cwd=node["cwd"], stdin=subprocess.DEVNULL, stdout=output, stderr=output,
                process_group=0, pass_fds=[lock], preexec_fn=lambda: _die_with(parent),  # noqa: PLW1509  # one thread
            )  # fmt: skip
        except OSError as error:
            output.write(f"cannot start {node['args'][0]}: {error}\n".encode())
            return subprocess.Popen(["false"])


def _die_with(parent: int) -> None:
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it died before the line above
        os.kill(os.getpid(), signal.SIGKILL)


def _watch(processes: "list[subprocess.Popen[bytes]]", stopping: _Stopping) -> None:
    """Returns when every node has ended."""
    told = False
    kill_at = float("inf")
    while any(process.poll() is None for process in processes):
        now = time.monotonic()
        if kill_at == float("inf") and processes[0].poll() is not None:
            kill_at = now + WITHOUT_STORE_SECONDS
        if stopping.requested and not told:
            told = True
            kill_at = now + GRACE_SECONDS
            _signal(processes, signal.SIGTERM)
        if now > kill_at:
            _signal(processes, signal.SIGKILL)
        time.sleep(POLL_SECONDS)


def _signal(processes: "list[subprocess.Popen[bytes]]", number: signal.Signals) -> None:
    for process in processes:
        if process.poll() is None:
            # SIGTERM to the agent alone, which stops its workers in order; SIGKILL to all of them.
            if number == signal.SIGKILL:
                os.killpg(process.pid, number)
            else:
                process.send_signal(number)


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def _write(path: Path, content: object) -> None:
    aside = path.with_suffix(".aside")
    aside.write_text(json.dumps(content))
    aside.replace(path)


if __name__ == "__main__":
    sys.exit(main())
