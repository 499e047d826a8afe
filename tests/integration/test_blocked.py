"""Workers that wait where no signal is heard hold up nobody for longer than they have to."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.conftest import free_port
from tests.integration.torchruns import ENV, ROOT, rendezvous, wait_until

# What torchrun waits for by itself, before it kills.
PATIENCE_SECONDS = 30


@contextmanager
def blocked(folder: Path, module: str, **env: str) -> Iterator["subprocess.Popen[bytes]"]:
    """An agent of two workers, of which rank 0 hears nothing."""
    port = free_port()
    command = [
        sys.executable, "-m", module, "--nnodes", "1", "--nproc-per-node", "2", "--rdzv-id", "blocked",
        "--rdzv-conf", "is_host=false", "-m", "tests.integration.blocked", str(folder),
    ]  # fmt: skip
    settings = {"PET_RDZV_ENDPOINT": f"127.0.0.1:{port}", "PET_RDZV_BACKEND": "c10d"}
    with (folder / "log").open("ab") as log, rendezvous(port):
        agent = subprocess.Popen(
            command, env={**os.environ, **ENV, **settings, **env}, cwd=ROOT, stdout=log, stderr=log
        )  # fmt: skip
        try:
            wait_until(lambda: all((folder / rank).exists() for rank in "01"), agent, folder / "log")
            yield agent
        finally:
            agent.kill()
            agent.wait()


MODULES = "torch.distributed.run", "trainer.agent"


@pytest.mark.parametrize("module", MODULES)
def test_a_worker_ends_with_the_one_beside_it_although_it_hears_no_signal(tmp_path: Path, module: str) -> None:
    with blocked(tmp_path, module, TORCH_ELASTIC_SHUTDOWN_TIMEOUT="300") as agent:
        os.kill(int((tmp_path / "1").read_text()), signal.SIGKILL)
        assert agent.wait(60) != 0
    said = (tmp_path / "log").read_text()
    assert "rank [1] of this node has gone" in said
    assert "Unable to shutdown" not in said, "it was killed by its agent"


@pytest.mark.parametrize("module", MODULES)
def test_workers_have_as_long_to_stop_as_their_agent_is_told(tmp_path: Path, module: str) -> None:
    with blocked(tmp_path, module, TORCH_ELASTIC_SHUTDOWN_TIMEOUT="1") as agent:
        began = time.monotonic()
        agent.terminate()
        agent.wait(60)
        assert time.monotonic() - began < PATIENCE_SECONDS
    assert "Unable to shutdown" in (tmp_path / "log").read_text()
