"""Train on images and masks that are given, with real gloo processes: python -m tests.exact.ranks JOB.pt

The loop is the trainer's own; only where its slices come from is replaced. A job is a list of runs, each with its
world size and cells a pass, the folder it leaves its checkpoint and losses in, and the images and mask noise of every
step.
"""

import json
import os
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from tests.conftest import free_port
from trainer import teachers
from trainer.contract import RunSpec
from trainer.data.batches import Slice
from trainer.elastic.distributed import joined_world
from trainer.loop import Parts, fit
from trainer.method.grid import StepPlan, step_plan, teams
from trainer.method.optim import adamw
from trainer.state.checkpoint import CheckpointStore
from trainer.state.hostcopy import HostCopy
from trainer.state.keeper import Keeper
from trainer.store.objects import DirectoryStore
from trainer.tracking.report import Silent
from trainer.weights.initial import start


class Losses(Silent):
    """Writes the losses of every step down."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def step(self, step: int, losses: Mapping[str, float], **more: float) -> None:
        with self.file.open("a") as file:
            file.write(json.dumps(dict(losses)) + "\n")


def slices(grids: list[Any], plan: StepPlan) -> Iterator[Slice]:
    """This rank's cells of the grids, in the plan's order."""
    for grid in grids:
        for group in plan.groups:
            for index in group.slices:
                image, online_noise, target_noise = grid[group.index][index]
                numbers = torch.arange(len(image))
                yield Slice(image, online_noise, target_noise, numbers, numbers < 0, {})


def train(job: dict[str, Any]) -> None:
    run, folder = RunSpec.model_validate(job["run"]), job["folder"]
    with joined_world() as world:
        world.form_teams(teams(run.batch, world.size))
        plan = step_plan(run.batch, world.rank, world.size)
        model, target = start(run)
        parts = Parts(model, target, teachers.build(run, world.device), adamw(model, run), job["num_images"])
        parts.cells_a_pass = job["cells_a_pass"]
        checkpoints = CheckpointStore(DirectoryStore(folder), spec_digest=run.pretraining, keep=1)
        keeper = Keeper(world, HostCopy(folder, run.pretraining), checkpoints, every_steps=1000, step=0)
        report = Losses(Path(folder, "losses")) if world.is_first else Silent()
        assert fit(run, parts, plan, slices(job["grids"], plan), world, keeper, report)
        keeper.close(completed=True)


def fork_world(job: dict[str, Any]) -> None:
    """Train a job on its number of ranks, which are forks of this process."""
    port, children = free_port(), []
    for rank in range(job["world"]):
        if (child := os.fork()) == 0:
            os.environ.update(
                RANK=str(rank), WORLD_SIZE=str(job["world"]), LOCAL_RANK="0", MASTER_ADDR="127.0.0.1",
                MASTER_PORT=str(port),
            )  # fmt: skip
            code = 1
            try:
                train(job)
                code = 0
            finally:
                sys.stderr.flush()
                os._exit(code)
        children.append(child)
    if codes := [code for child in children if (code := os.waitpid(child, 0)[1])]:
        raise SystemExit(f"a world of {job['world']} ended with {codes}")


def main() -> None:
    for each in torch.load(sys.argv[1], weights_only=True):
        Path(each["folder"]).mkdir(parents=True)
        fork_world(each)
