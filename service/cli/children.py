"""The programs `mcf up` keeps running: started, watched until they answer, started again when they die, stopped."""

import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from service.cli.guard import GRACE_SECONDS, die_with_parent
from trainer.store.loopback import LOOPBACK

MAX_RESTART_PAUSE_SECONDS = 30.0
# A program that lived this long was healthy: its next death is a new story, told from the first short wait.
HEALTHY_SECONDS = 60.0
# Whoever waits for longer is told for what.
SAY_AFTER_SECONDS = 15.0
# Other programs' settings, which a shell may hold for something else; what ours need is given to them by name.
FOREIGN = ("AWS_", "MLFLOW_", "RCLONE_")
NEXT_DOOR = ",".join(LOOPBACK)
_direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def clean_environment(env: Mapping[str, str], *, keep: Collection[str] = ()) -> dict[str, str]:
    """The environment without other programs' settings but those in `keep`, and without a proxy before this machine."""
    foreign = tuple(prefix for prefix in FOREIGN if prefix not in keep)
    clean = {name: value for name, value in env.items() if not name.startswith(foreign)}
    for name in "no_proxy", "NO_PROXY":
        clean[name] = ",".join(filter(None, [env.get(name), NEXT_DOOR]))
    return clean


@dataclass
class Child:
    """One program. All methods are for the thread that called start: the kernel ties a child's life to it."""

    name: str
    command: list[str]
    env: dict[str, str]
    """The whole environment of the program."""
    log: Path
    probe: str
    """URL that answers, with whatever status, once the program serves."""
    address: str
    """What is shown to people."""
    folder: Path | None = None
    """Where it is started; None = where `mcf up` was."""
    ready: bool = False
    _told_of_waiting: bool = field(default=False, repr=False)
    _process: subprocess.Popen[bytes] | None = field(default=None, repr=False)
    _started_at: float = 0.0
    _starts_in_a_row: int = 0
    _start_again_at: float = 0.0

    def start(self) -> None:
        self.ready = self._told_of_waiting = False
        self._started_at = time.monotonic()
        self._starts_in_a_row += 1
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "service.cli.guard", str(os.getpid()), *self.command],
                env=self.env,
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                preexec_fn=die_with_parent(signal.SIGTERM, os.getpid()),  # noqa: PLW1509 - one thread only
            )

    def tick(self) -> str | None:
        """Looks after the program once; returns a line worth telling people, if there is one."""
        now = time.monotonic()
        if self._process is None:
            if now >= self._start_again_at:
                self.start()
            return None
        if _has_ended(self._process):
            self._reap()
            if now - self._started_at > HEALTHY_SECONDS:
                self._starts_in_a_row = 1
            wait_seconds = min(2.0 ** (self._starts_in_a_row - 1), MAX_RESTART_PAUSE_SECONDS)
            self._start_again_at = now + wait_seconds
            return f"ended and is started again in {wait_seconds:.0f} s; its log: {self.log}"
        if not self.ready and _answers(self.probe):
            self.ready = True
            return f"{self.address}   ready after {now - self._started_at:.1f} s"
        if not self.ready and not self._told_of_waiting and now - self._started_at > SAY_AFTER_SECONDS:
            self._told_of_waiting = True
            return f"has not answered at {self.probe} for {SAY_AFTER_SECONDS:.0f} s; its log: {self.log}"
        return None

    def stop(self) -> None:
        """Asks the program to end, waits, and leaves nothing of its process group behind."""
        if self._process is None:
            return
        self._process.terminate()
        deadline = time.monotonic() + GRACE_SECONDS + 2
        while not _has_ended(self._process) and time.monotonic() < deadline:
            time.sleep(0.05)
        self._reap()

    def _reap(self) -> None:
        assert self._process is not None
        # Before the wait: until then the kernel cannot give the group's number to anybody else.
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._process = None


def _has_ended(process: subprocess.Popen[bytes]) -> bool:
    return os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def _answers(url: str) -> bool:
    try:
        _direct.open(url, timeout=1).close()
    except urllib.error.HTTPError:
        return True
    except OSError:
        return False
    return True
