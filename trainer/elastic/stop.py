"""Leaving on request: SIGTERM ends the step and saves it while training, and ends the process at other times."""

import ctypes
import multiprocessing
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

# Exit code of a process that SIGTERM ended: interrupted, not failed.
INTERRUPTED = 128 + signal.SIGTERM

_PR_SET_PDEATHSIG = 1


class StopRequest:
    """Whether somebody has asked this process to stop."""

    def __init__(self) -> None:
        self.requested = False


def exit_on_request() -> None:
    """From now on SIGTERM and Ctrl-C end the process as interrupted. There is nothing to save yet, or any more."""
    for signum in signal.SIGTERM, signal.SIGINT:
        signal.signal(signum, _exit_interrupted)


@contextmanager
def stop_requests() -> Iterator[StopRequest]:
    """Inside, SIGTERM and Ctrl-C are only noted: the training loop asks at the end of every step."""
    request = StopRequest()

    def note(signum: int, frame: FrameType | None) -> None:
        request.requested = True

    before = {signum: signal.signal(signum, note) for signum in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield request
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)


@contextmanager
def ended_at_once() -> Iterator[None]:
    """Inside, SIGTERM and Ctrl-C end the process wherever it is: a handler in Python would wait until a call that waits
    for other processes returns. Raises ValueError outside the main thread.
    """
    before = {signum: signal.signal(signum, signal.SIG_DFL) for signum in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)


def die_with_parent() -> None:
    """SIGKILL this process when its parent goes: a worker never outlives its torchrun agent (Linux only).

    The process that workers are forked from is tied to the agent in the same way (trainer/elastic/tied.py).
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def agent_pid() -> int | None:
    """The torchrun agent that has started this worker; None without one."""
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return None
    # A forked one is a child of the process that it was forked from.
    started_by = multiprocessing.parent_process()
    return started_by.pid if started_by else os.getppid()


def stop_agent() -> None:
    """Ask the torchrun agent above to end: a new worker would only meet the same error again."""
    if agent := agent_pid():
        os.kill(agent, signal.SIGTERM)


def _exit_interrupted(signum: int, frame: FrameType | None) -> None:
    sys.exit(INTERRUPTED)
