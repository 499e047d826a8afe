"""Workers that wait where no signal is heard hold up nobody for longer than they have to."""

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.conftest import free_port
from tests.forks import Forked, forks
from tests.integration.torchruns import AGENT, ENV, TORCHRUN, end, rendezvous, wait_until

MODULES = TORCHRUN, AGENT
# What torchrun waits for by itself, before it kills.
PATIENCE_SECONDS = 30


@contextmanager
def blocked(folder: Path, how: str, module: str = AGENT, nodes: int = 1, **env: str) -> Iterator[list[Forked]]:
    """The agents of the two workers of blocked.py, on one node or two; once both workers are there."""
    options = [
        "--nnodes", str(nodes), "--nproc-per-node", str(2 // nodes),
        "--rdzv-id", "blocked", "--rdzv-conf", "is_host=false",
        "-m", "tests.integration.blocked", str(folder), how,
    ]  # fmt: skip
    port = free_port()
    settings = {
        **os.environ, **ENV, "PET_RDZV_ENDPOINT": f"127.0.0.1:{port}", "PET_RDZV_BACKEND": "c10d",
        "PET_LOCAL_ADDR": "127.0.0.1", "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1", **env,
    }  # fmt: skip
    with (folder / "log").open("ab") as log, rendezvous(port):
        agents = [forks.start(module, *options, output=log, env=settings) for _ in range(nodes)]
        try:
            wait_until(lambda: all((folder / rank).exists() for rank in "01"), agents[0], folder / "log")
            yield agents
        finally:
            for agent in agents:
                end(agent)


@pytest.mark.parametrize("module", MODULES)
def test_a_worker_ends_with_a_killed_one_beside_it_although_it_hears_no_signal(tmp_path: Path, module: str) -> None:
    with blocked(tmp_path, "waits", module) as [agent]:
        os.kill(int((tmp_path / "1").read_text()), signal.SIGKILL)
        assert agent.wait(60) != 0
    said = (tmp_path / "log").read_text()
    assert "rank 1 of this node has gone" in said
    assert "Unable to shutdown" not in said, "it was killed by its agent"


@pytest.mark.parametrize(("nodes", "words"), [(1, "rank 1 of this node has gone"), (2, "has not been heard of")])
def test_a_worker_ends_with_one_that_has_failed_here_or_on_another_node(tmp_path: Path, nodes: int, words: str) -> None:
    with blocked(tmp_path, "fails", nodes=nodes, MCF_LOST_NODE_SECONDS="6") as agents:
        codes = [agent.wait(60) for agent in agents]
        assert 0 not in codes
    said = (tmp_path / "log").read_text()
    assert "an error of its own" in said
    assert words in said
    assert "Unable to shutdown" not in said, "it was killed by its agent"


def test_a_worker_that_leaves_in_good_order_takes_nobody_with_it(tmp_path: Path) -> None:
    # Rank 0 has a checkpoint to save.
    with blocked(tmp_path, "leaves") as [agent]:
        assert agent.wait(60) == 0, (tmp_path / "log").read_text()[-3000:]


@pytest.mark.parametrize("module", MODULES)
def test_workers_have_as_long_to_stop_as_their_agent_is_told(tmp_path: Path, module: str) -> None:
    with blocked(tmp_path, "waits", module, TORCH_ELASTIC_SHUTDOWN_TIMEOUT="1") as [agent]:
        began = time.monotonic()
        agent.terminate()
        agent.wait(60)
        assert time.monotonic() - began < PATIENCE_SECONDS
    assert "Unable to shutdown" in (tmp_path / "log").read_text()
