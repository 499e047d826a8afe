"""Processes of tests, forked from one that has loaded what they need: torch alone takes seconds of CPU at each start.

    forks.start("trainer.main", "--spec", "spec.json", env={...}, output=log)       like subprocess.Popen
    forks.run("service.cli.main:app", "list", env={...})                            like subprocess.run

A fork is a real process with a pid, signals and an interpreter of its own, and ends as `python -m` does. What it must
not rely on is reading the environment while it imports (trainer/elastic/peers.py does: start an agent, whose workers
are forked from a process of its own).
"""

import atexit
import contextlib
import gc
import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import traceback
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import IO, NoReturn

ROOT = Path(__file__).resolve().parents[1]
LOADED = (
    "torch._dynamo", "trainer.main", "trainer.elastic.agent", "trainer.elastic.rendezvous",
    "trainer.evaluation.measure", "torch.distributed.run", "service.cli.main",
)  # fmt: skip
MAX_REQUEST = 1 << 20


class Forked:
    """A process as `subprocess.Popen` shows one."""

    def __init__(self, pid: int, status: int, command: list[str]) -> None:
        self.pid, self.args = pid, command
        self.returncode: int | None = None
        self._status = status

    def poll(self) -> int | None:
        return self._look(0)

    def wait(self, timeout: float | None = None) -> int:
        """Exit code. Raises subprocess.TimeoutExpired."""
        if (code := self._look(timeout)) is None:
            raise subprocess.TimeoutExpired(self.args, timeout or 0)
        return code

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def _look(self, seconds: float | None) -> int | None:
        if self.returncode is None and select.select([self._status], [], [], seconds)[0]:
            said = os.read(self._status, 64)
            os.close(self._status)
            if not said:
                raise RuntimeError(f"the process that {self.args} was forked from has gone")
            self.returncode = os.waitstatus_to_exitcode(int(said))
        return self.returncode


class Forks:
    """The process that others are forked from, started when the first is asked for."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._socket: socket.socket | None = None

    def start(
        self, entry: str, *arguments: str, output: IO[bytes] | int, errors: IO[bytes] | int | None = None,
        env: Mapping[str, str] | None = None, cwd: Path | str = ROOT,
    ) -> Forked:  # fmt: skip
        """Run MODULE or MODULE:FUNCTION with these arguments in a session of its own; errors go where output goes."""
        if self._socket is None:
            self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.forks", str(theirs.fileno())], pass_fds=[theirs.fileno()], cwd=ROOT,
                env={**os.environ, "OMP_NUM_THREADS": "1"}, stdin=subprocess.DEVNULL,
            )  # fmt: skip
            theirs.close()
        asked = {
            "entry": entry, "arguments": arguments, "env": dict(os.environ if env is None else env), "cwd": str(cwd),
        }  # fmt: skip
        ours, status = os.pipe()
        files = [output if isinstance(output, int) else output.fileno()]
        files.append(files[0] if errors is None else errors if isinstance(errors, int) else errors.fileno())
        socket.send_fds(self._socket, [json.dumps(asked).encode()], [status, *files])
        os.close(status)
        pid = int(self._socket.recv(64))
        return Forked(pid, ours, [entry, *arguments])

    def run(
        self, entry: str, *arguments: str, env: Mapping[str, str] | None = None, cwd: Path | str = ROOT,
        timeout: float = 240, merged: bool = False,
    ) -> "subprocess.CompletedProcess[str]":  # fmt: skip
        """To its end, with what it has written; `merged`: errors in the output. Raises subprocess.TimeoutExpired."""
        with contextlib.ExitStack() as stack:
            files = [stack.enter_context(open(os.memfd_create(name), "rb+")) for name in ("stdout", "stderr")]
            output, errors = files[0], files[0] if merged else files[1]
            process = self.start(entry, *arguments, output=output, errors=errors, env=env, cwd=cwd)
            try:
                code = process.wait(timeout)
            finally:
                process.kill()
            texts = []
            for file in files:
                file.seek(0)
                texts.append(file.read().decode())
        return subprocess.CompletedProcess(process.args, code, *texts)

    def close(self) -> None:
        if self._process and self._socket:
            self._socket.close()
            self._process.wait(30)
            self._socket = self._process = None


forks = Forks()


def serve(connection: socket.socket) -> tuple[str, list[str]] | None:
    """Fork whatever is asked for until the other end closes; in a child, returns what it is to run."""
    wake, woken = os.pipe()
    for end in wake, woken:
        os.set_blocking(end, False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(woken)
    running: dict[int, int] = {}
    while True:
        ready, _, _ = select.select([connection, wake], [], [])
        if wake in ready:
            with contextlib.suppress(BlockingIOError):
                os.read(wake, 4096)
            for pid in list(running):
                if (ended := os.waitpid(pid, os.WNOHANG))[0]:
                    os.write(status := running.pop(pid), str(ended[1]).encode())
                    os.close(status)
        if connection in ready:
            message, files, _, _ = socket.recv_fds(connection, MAX_REQUEST, 3)
            if not message:
                return None
            status, output, errors = files
            if (pid := os.fork()) == 0:
                signal.set_wakeup_fd(-1)
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                for inherited in (connection.detach(), wake, woken, status, *running.values()):
                    os.close(inherited)
                return become(json.loads(message), output, errors)
            running[pid] = status
            os.close(output)
            os.close(errors)
            connection.send(str(pid).encode())


def become(asked: Mapping[str, object], output: int, errors: int) -> tuple[str, list[str]]:
    """Be the process that was asked for, but for its program."""
    os.setsid()
    os.environ.clear()
    os.environ.update(asked["env"])  # type: ignore[call-overload]
    os.chdir(str(asked["cwd"]))
    os.dup2(output, 1)
    os.dup2(errors, 2)
    os.close(output)
    if errors != output:
        os.close(errors)
    return str(asked["entry"]), list(asked["arguments"])  # type: ignore[call-overload]


def run(entry: str, arguments: list[str]) -> NoReturn:
    """What `python -m` does, but for the seconds in which an interpreter with torch is taken apart."""
    module, _, function = entry.partition(":")
    # What click calls the program by.
    sys.modules["__main__"].__package__ = None
    sys.argv = [module, *arguments]
    code: object = 1
    try:
        code = getattr(import_module(module), function or "main")()
    except SystemExit as end:
        code = end.code
    except BaseException:
        traceback.print_exc()
    if isinstance(code, str):
        sys.stderr.write(code + "\n")
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code if isinstance(code, int) else code is not None)


if __name__ == "__main__":
    for module in LOADED:
        import_module(module)
    # What is loaded is never collected, so that forks share its memory.
    gc.freeze()
    if request := serve(socket.socket(fileno=int(sys.argv[1]))):
        run(*request)
    os._exit(0)
