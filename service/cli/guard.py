"""Keeps one program and all it starts from outliving `mcf up`, even when that is killed without warning.

Linux tells only a direct child that its parent is gone, and MLflow's server is a grandchild: so a guard
leads a process group of its own, starts the program in it, and takes the whole group down when the program
ends or `mcf up` is no more. Standard library only; run as `python -m service.cli.guard PARENT COMMAND...`.
"""

import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Callable

GRACE_SECONDS = 10
"""How long a program may take to end by itself once it is asked to."""

_PR_SET_PDEATHSIG = 1


def die_with_parent(number: signal.Signals, parent: int) -> Callable[[], None]:
    """For `preexec_fn`: the process gets the signal when `parent`, a process id, dies."""
    libc = ctypes.CDLL(None, use_errno=True)

    def ask_kernel() -> None:
        libc.prctl(_PR_SET_PDEATHSIG, number)
        # The parent may have died before the kernel was asked.
        if os.getppid() != parent:
            os.kill(os.getpid(), number)

    return ask_kernel


def main(parent: int, command: list[str]) -> None:
    die_with_parent(signal.SIGTERM, parent)()
    program = subprocess.Popen(command, preexec_fn=die_with_parent(signal.SIGKILL, os.getpid()))  # noqa: PLW1509

    def stop(*_: object) -> None:
        os.kill(program.pid, signal.SIGTERM)
        signal.alarm(GRACE_SECONDS)

    signal.signal(signal.SIGALRM, lambda *_: os.killpg(0, signal.SIGKILL))
    signal.signal(signal.SIGTERM, stop)
    print(f"[guard] {' '.join(command[:4])} ... ended with code {program.wait()}", flush=True)
    os.killpg(0, signal.SIGKILL)


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2:])
