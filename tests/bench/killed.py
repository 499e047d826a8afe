"""A run whose worker is killed against one that is left alone: how far apart they end.

Both run at once, each under an agent of its own. tests/integration/test_gpu.py holds them to limits; here they are
measured, with nothing but what a trainer's image has.
"""

import os
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path

import psutil
import torch

from tests.bench.loader import draw_photographs
from trainer.contract import RunSpec
from trainer.contract.presets import TINY
from trainer.store.objects import DirectoryStore
from trainer.store.rundir import list_checkpoints, read_result, read_sessions

ROOT = Path(__file__).parents[2]
FACES = 80


def run_of(folder: Path, steps: int, **fields: object) -> RunSpec:
    """On photographs that are drawn into the folder."""
    draw_photographs(folder, FACES)
    # The first checkpoint early, so that the worker can be killed in the middle.
    cadence = {"checkpoint_steps": max(1, steps // 8), "keep_checkpoints": 9, "log_steps": 1, "picture_steps": 100_000}
    return RunSpec.model_validate({
        **TINY, "data": {"uri": str(folder)}, "input_size": 32, "cadence": cadence,
        "encoder": {"width": 48, "depth": 2, "heads": 3, "patch": 8},
        "teacher": {"source": "random", "arch": "as-encoder", "taps": [0, 1]},
        "schedule": {"unit": "steps", "length": steps, "warmup": 4}, "evaluation": {"held_out": 8}, **fields,
    })  # fmt: skip


def apart(run: RunSpec, folder: Path, compiled: bool, seconds: float) -> dict[str, float]:
    """Distances as shares of what the undisturbed run has: of its weights, and of its last losses' means."""
    places = {name: folder / name for name in ("alone", "killed")}
    deadline = time.monotonic() + seconds
    with ExitStack() as stack:
        agents = {name: stack.enter_context(Agent(run, place, compiled)) for name, place in places.items()}
        disturb(agents["killed"], places["killed"], deadline)
        for name, agent in agents.items():
            if code := agent.wait(deadline):
                raise RuntimeError(f"the run {name} ended with {code}: {agent.last_words()}")
    stores = {name: DirectoryStore(str(place)) for name, place in places.items()}
    sessions = read_sessions(stores["killed"])
    if len(sessions) < 2 or not sessions[1].first_step:
        raise RuntimeError("the killed worker's run did not go on from a state: it was over, or began anew")
    steps = run.total_steps(FACES)
    weights = [weights_of(place / f"checkpoints/{steps:09d}/state.pt") for place in places.values()]
    losses = {name: found.losses["total"] for name, store in stores.items() if (found := read_result(store))}
    return {
        "weights_apart": float((weights[0] - weights[1]).norm() / weights[0].norm()),
        "losses_apart": abs(losses["alone"] - losses["killed"]) / abs(losses["alone"]),
        "resumed_at": sessions[1].first_step,
    }


def disturb(agent: "Agent", place: Path, deadline: float) -> None:
    """Kill the worker as soon as there is a checkpoint."""
    while not list_checkpoints(DirectoryStore(str(place))):
        agent.look(deadline)
        time.sleep(0.01)
    for worker in agent.workers():
        worker.kill()


def weights_of(file: Path) -> torch.Tensor:
    state = torch.load(file, weights_only=True, map_location="cpu")["model"]
    return torch.cat([value.flatten().double() for value in state.values()])


class Agent:
    """torchrun with one worker, as it is started on one machine."""

    def __init__(self, run: RunSpec, place: Path, compiled: bool) -> None:
        place.mkdir()
        spec, self.log = place / "given.json", place / "log"
        spec.write_text(run.model_dump_json())
        command = [
            sys.executable, "-m", "trainer.elastic.forked", "--nnodes", "1", "--nproc-per-node", "1", "--max-restarts",
            "3", "--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0", "--rdzv-id", place.name,
            "-m", "trainer.main", "--spec", str(spec),
        ]  # fmt: skip
        env = {
            **os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "MCF_RUN_URI": str(place),
            "MCF_COMPILE": str(int(compiled)), "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1",
        }  # fmt: skip
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log, env=env, cwd=ROOT)

    def __enter__(self) -> "Agent":
        return self

    def __exit__(self, *error: object) -> None:
        """Nobody of it is left."""
        if self._process.poll() is None:
            below = psutil.Process(self._process.pid).children(recursive=True)
            for each in below:
                each.kill()
            self._process.kill()
        self._process.wait()

    def workers(self) -> list[psutil.Process]:
        """Children of that child which is a fork of the agent, and so has its command line."""
        agent = psutil.Process(self._process.pid)
        forks = [child for child in agent.children() if child.cmdline() == agent.cmdline()]
        return [worker for fork in forks for worker in fork.children()]

    def look(self, deadline: float) -> None:
        """Raises RuntimeError when it has ended, and TimeoutError when there is no time left."""
        if self._process.poll() is not None:
            raise RuntimeError(f"ended with {self._process.returncode}: {self.last_words()}")
        if time.monotonic() > deadline:
            raise TimeoutError(self.last_words())

    def wait(self, deadline: float) -> int:
        try:
            return self._process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            raise TimeoutError(self.last_words()) from None

    def last_words(self) -> str:
        return self.log.read_text(errors="replace")[-2000:]
