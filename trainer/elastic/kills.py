"""Workers that are killed again and again before they take a step: by the kernel, where memory runs out.

The agent outlives them and would start the next ones as often as it may, minutes each, and nobody would be told. It
counts in a file of its own, which a worker removes with its first step; a worker that finds too many says so and ends
the run. Only SIGKILL counts: a group that forms anew is stopped in other ways.
"""

import os
import signal
import tempfile
from pathlib import Path

from torch.distributed.elastic.agent.server.api import RunResult, WorkerGroup, WorkerState
from torch.distributed.elastic.agent.server.local_elastic_agent import LocalElasticAgent

from trainer.elastic.stop import agent_pid

# Once or twice may be somebody's hand, or another process that has taken the memory.
MOST = 4


def count_kills() -> None:
    """In the agent, before it starts its workers: from now on those that are killed are counted."""
    # Of another process, which had this one's number before.
    _file(os.getpid()).unlink(missing_ok=True)
    watch = LocalElasticAgent._monitor_workers

    def watched(agent: LocalElasticAgent, group: WorkerGroup) -> RunResult:
        result = watch(agent, group)
        failed = result.failures.values() if result.state is WorkerState.FAILED else ()
        if any(failure.exitcode == -signal.SIGKILL for failure in failed):
            file = _file(os.getpid())
            file.write_text(str(_read(file) + 1))
        return result

    LocalElasticAgent._monitor_workers = watched  # type: ignore[method-assign]


def since_a_step() -> int:
    """In a worker: how often workers of this node have been killed since one has taken a step."""
    agent = agent_pid()
    return _read(_file(agent)) if agent else 0


def forget() -> None:
    """In a worker: it has got somewhere."""
    if agent := agent_pid():
        _file(agent).unlink(missing_ok=True)


def _file(agent: int) -> Path:
    return Path(tempfile.gettempdir(), f"mcf-killed-{agent}")


def _read(file: Path) -> int:
    try:
        return int(file.read_text())
    except (FileNotFoundError, ValueError):
        return 0
