"""Train one spec on several world sizes with real gloo processes: tests.integration.worlds JOBS.json

A job is a run with a list of [world size, step to stop after (2 at least)] and leaves its last checkpoint in a
directory, the losses of every step, and what every rank sent in the last one. Ranks are forks of one process.
"""

import json
import math
import os
import signal
import sys
from collections.abc import Mapping
from pathlib import Path

from torch.profiler import ProfilerActivity, profile

from tests.conftest import free_port
from trainer.contract import RunSpec
from trainer.data.batches import slices, split_of
from trainer.data.manifest import open_images
from trainer.elastic.distributed import World, joined_world
from trainer.loop import fit
from trainer.main import build_parts, restore
from trainer.method.grid import step_plan, teams
from trainer.state.checkpoint import CheckpointStore
from trainer.state.hostcopy import HostCopy
from trainer.state.keeper import Keeper
from trainer.store.objects import DirectoryStore
from trainer.tracking.report import Silent


class StopAfter(Silent):
    """Writes down the losses on rank 0. Asks for a stop during one step, as a cluster would, on the last rank alone."""

    def __init__(self, world: World, folder: Path, last_step: int) -> None:
        self.world, self.folder, self.last_step = world, folder, last_step
        self.profiler = profile(activities=[ProfilerActivity.CPU], record_shapes=True)

    def step(self, step: int, losses: Mapping[str, float], **more: float) -> None:
        if self.world.is_first:
            with (self.folder / "losses").open("a") as file:
                file.write(json.dumps(dict(losses)) + "\n")
        if step == self.last_step - 1:
            if self.world.rank == self.world.size - 1:
                os.kill(os.getpid(), signal.SIGTERM)
            self.profiler.start()
        elif step == self.last_step > 1:
            self.profiler.stop()
            sent = [
                (event.key.removeprefix("gloo:"), math.prod(event.input_shapes[0]))
                for event in self.profiler.events() or []
                if event.key.startswith("gloo:")
            ]
            (self.folder / f"collectives-{self.world.size}-{self.world.rank}.json").write_text(json.dumps(sent))


def train(run: RunSpec, folder: str, last_step: int) -> None:
    Path(folder).mkdir(parents=True, exist_ok=True)
    with joined_world() as world:
        split = split_of(run)
        world.form_teams(teams(run.batch, world.size))
        store = DirectoryStore(folder)
        checkpoints = CheckpointStore(store, spec_digest=run.pretraining, keep=9)
        host = HostCopy(folder, run.pretraining)
        parts = build_parts(run, world, split.train)
        restore(parts, host, checkpoints, None, world)
        plan = step_plan(run.batch, world.rank, world.size)
        steps = range(parts.step, run.total_steps(parts.num_images))
        batches = slices(run, open_images(run.data, split.manifest), split.train, plan, steps, world.device)
        keeper = Keeper(world, host, checkpoints, run.cadence.checkpoint_steps, parts.step)
        fit(run, parts, plan, batches, world, keeper, StopAfter(world, Path(folder), min(last_step, steps.stop)))
        keeper.close(completed=True)


def fork_world(run: RunSpec, folder: str, size: int, last_step: int) -> None:
    port = free_port()
    children = []
    for rank in range(size):
        if (child := os.fork()) == 0:
            os.environ.update(
                RANK=str(rank), WORLD_SIZE=str(size), LOCAL_RANK="0", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port)
            )
            code = 1
            try:
                train(run, folder, last_step)
                code = 0
            finally:
                sys.stderr.flush()
                os._exit(code)
        children.append(child)
    if codes := [code for child in children if (code := os.waitpid(child, 0)[1])]:
        raise SystemExit(f"a world of {size} ended with {codes}")


def main() -> None:
    for job in json.loads(Path(sys.argv[1]).read_text()):
        for size, last_step in job["stretches"]:
            fork_world(RunSpec.model_validate(job["run"]), job["folder"], size, last_step)
