"""Small runs under real torchrun agents, for the tests of what may happen to them."""

import os
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from hashlib import sha256
from pathlib import Path
from typing import Any

import psutil
import torch

from tests.conftest import free_port
from tests.forks import Forked, forks
from trainer.contract import RunSpec
from trainer.contract.presets import TINY
from trainer.state import hostcopy
from trainer.store.objects import DirectoryStore
from trainer.store.rundir import list_checkpoints, read_sessions

ROOT = Path(__file__).resolve().parents[2]
ENV = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "MCF_COLLECTIVE_TIMEOUT_SECONDS": "60"}
STEPS = 20
# What runs on a node: on a cluster, and on one machine.
AGENT, TORCHRUN = "trainer.elastic.agent", "trainer.elastic.forked"


def small(faces: Path, **changes: Any) -> RunSpec:
    """The tiny preset with an input and an encoder that make a step a matter of milliseconds."""
    return RunSpec.model_validate({
        **TINY, "data": {"uri": str(faces)}, "input_size": 32,
        "encoder": {"width": 48, "depth": 2, "heads": 3, "patch": 8},
        "teacher": {"source": "random", "arch": "as-encoder", "taps": [0, 1]},
        "schedule": {"unit": "steps", "length": STEPS, "warmup": 4}, "evaluation": {"held_out": 8},
        "cadence": {"checkpoint_steps": 3, "keep_checkpoints": 9, "log_steps": 2, "picture_steps": 10}, **changes,
    })  # fmt: skip


def tensors(state: Any, name: str = "") -> Iterator[tuple[str, torch.Tensor]]:
    """Weights, target and optimizer moments of a checkpoint, by name."""
    if isinstance(state, torch.Tensor):
        yield name, state
    elif isinstance(state, dict):
        for key, value in state.items():
            yield from tensors(value, f"{name}/{key}")


def final_state(folder: Path, step: int) -> dict[str, torch.Tensor]:
    return state_in(folder / f"checkpoints/{step:09d}/state.pt")


def state_in(file: Path) -> dict[str, torch.Tensor]:
    found = dict(tensors(torch.load(file, weights_only=True)))
    assert len(found) > 100
    return found


@contextmanager
def torchrun(
    run: RunSpec, folder: Path, *, workers: int = 2, nodes: str = "1", endpoint: str | None = None, module: str = AGENT,
    hosts: bool = False, program: str = "trainer.main", **env: str,
) -> Iterator[Forked]:  # fmt: skip
    """An agent training `run` in `folder`, with its output in folder/log; killed if it is still there.

    `endpoint`: where the agents meet; None = at a store that is there for this one. `hosts`: the first agent holds the
    store, which torchrun can and AGENT leaves to others. `program`: what its workers do.
    """
    folder.mkdir(exist_ok=True)
    spec = folder / "given.json"
    spec.write_text(run.model_dump_json())
    settings = ["keep_alive_interval=1", "keep_alive_max_attempt=3", "last_call_timeout=1", "settling=0"]
    settings += [] if hosts else ["is_host=false"]
    options = [
        "--nnodes", nodes, "--nproc-per-node", str(workers), "--max-restarts", "9", "--rdzv-id", folder.name,
        "--rdzv-conf", ",".join(settings), "-m", program, "--spec", str(spec),
    ]  # fmt: skip
    with ExitStack() as stack:
        if endpoint is None:
            endpoint = f"127.0.0.1:{free_port()}"
            if not hosts:
                stack.enter_context(rendezvous(int(endpoint.rpartition(":")[2])))
        # torch 2.15 tells a node that joins a later round no address when the agents' store is shared with the workers:
        # it waits a minute, and then the whole attempt fails.
        env = {
            **os.environ, **ENV, "MCF_RUN_URI": str(folder), "PET_RDZV_ENDPOINT": endpoint, "PET_RDZV_BACKEND": "c10d",
            "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1", **env,
        }  # fmt: skip
        log = stack.enter_context((folder / "log").open("ab"))
        agent = forks.start(module, *options, output=log, env=env)
        try:
            yield agent
        finally:
            end(agent)


def end(agent: Forked) -> None:
    """Kill an agent, and the workers that have not got so far as to ask the kernel to end them with it."""
    below = []
    with suppress(psutil.NoSuchProcess):
        below = psutil.Process(agent.pid).children(recursive=True)
    agent.kill()
    agent.wait()
    for process in below:
        with suppress(psutil.NoSuchProcess):
            # What multiprocessing has made in /dev/shm goes with this one, which ends by itself unless it is frozen.
            if "resource_tracker" in " ".join(process.cmdline()):
                process.resume()
            else:
                process.kill()


def wait_for_checkpoint(folder: Path, step: int, agent: Forked, log: Path | None = None) -> None:
    """Until there is a checkpoint of this step or a later one."""
    store = DirectoryStore(str(folder))
    wait_until(lambda: any(kept.step >= step for kept in list_checkpoints(store)), agent, log or folder / "log")


def wait_until(
    holds: Callable[[], bool], agent: Forked, log: Path, seconds: float = 90
) -> None:  # fmt: skip
    deadline = time.monotonic() + seconds
    while not holds():
        assert agent.poll() is None, log.read_text()[-3000:]
        assert time.monotonic() < deadline, log.read_text()[-3000:]
        time.sleep(0.01)


def workers_of(agent: Forked) -> list[psutil.Process]:
    """In order of their ranks: children of that child which is a fork of the agent, and so has its command line."""
    found = []
    parent = psutil.Process(agent.pid)
    for child in parent.children():
        with suppress(psutil.NoSuchProcess):
            if child.cmdline() == parent.cmdline():
                found += child.children()
    return sorted(found, key=lambda worker: worker.pid)


@contextmanager
def rendezvous(port: int) -> Iterator[None]:
    """The store in which agents meet, in a process of its own, as on a cluster."""
    store = forks.start("trainer.elastic.rendezvous", str(port), output=2)
    try:
        yield
    finally:
        store.kill()
        store.wait()


def newest_copy(folder: Path, run: RunSpec) -> int:
    """Step of the newest copy of the run's state that any of its agents has in memory."""
    name = sha256(f"{folder} {run.pretraining}".encode()).hexdigest()[:12]
    return max((int(path.stem) for path in hostcopy.MEMORY.glob(f"{hostcopy.PREFIX}*-{name}/*.json")), default=0)


def world_sizes(folder: Path) -> list[int]:
    return [session.world_size for session in read_sessions(DirectoryStore(str(folder)))]
