"""The training loop: one optimizer step per turn, with the same result for any number of workers.

The spec fixes the step as a grid of contrastive groups and slices; the plan says which of its cells this
worker computes. A run that loses a node takes the same steps, only slower.
"""

import logging
import math
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel
from torch.optim import AdamW

from trainer.checkpoint import CheckpointStore
from trainer.data import Slice, normalise
from trainer.distributed import World
from trainer.grid import GroupShare, StepPlan, first_position
from trainer.mcf import Losses, Mcf, Target
from trainer.optim import gradient_norm, learning_rate, set_learning_rate
from trainer.report import Report
from trainer.spec import RunSpec
from trainer.stop import stop_requests
from trainer.teachers import Teacher

logger = logging.getLogger(__name__)


class NonFiniteLoss(Exception):
    """A loss or the gradient is not finite; found by all ranks together, before the weights were touched."""


@dataclass
class Parts:
    """Everything a run trains with. All of it but the teacher is in the checkpoint."""

    model: Mcf
    target: Target | None
    """None where the contrastive branch is switched off."""
    teacher: Teacher | None
    """None where the run trains on masked pixels."""
    optimizer: AdamW
    num_images: int
    step: int = 0
    """Optimizer steps done."""

    def state_dict(self) -> dict[str, Any]:
        target = self.target.state_dict() if self.target else {}
        state = {"model": self.model.state_dict(), "target": target, "optimizer": self.optimizer.state_dict()}
        return {**state, "step": self.step}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.model.load_state_dict(state["model"])
        if self.target:
            self.target.load_state_dict(state["target"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step = state["step"]


def fit(
    run: RunSpec, parts: Parts, plan: StepPlan, batches: Iterator[Slice], world: World,
    checkpoints: CheckpointStore, report: Report,
) -> bool:  # fmt: skip
    """Train from parts.step to the run's last step. False when stopped on request before that; both are saved.

    Raises NonFiniteLoss, and StorageError when the final state cannot be saved.
    """
    model = world.synchronised(parts.model)
    total_steps = run.total_steps(parts.num_images)
    with stop_requests() as stop:
        while parts.step < total_steps:
            rate = learning_rate(run, parts.step, parts.num_images)
            set_learning_rate(parts.optimizer, rate)
            losses = LossSum(run, parts.step, plan)
            for group in plan.groups:
                cells = list(islice(batches, len(group.slices)))
                train_group(run, parts, model, plan, group, cells, world, losses)

            grad_norm = gradient_norm(parts.model)
            if not losses.are_finite(world, grad_norm):
                # Every rank sees the same verdict, so all stop here and none hangs in a collective.
                raise NonFiniteLoss(losses.what_is_wrong(world, grad_norm))
            if parts.target:
                parts.target.finish_step(parts.model)
            parts.optimizer.step()
            parts.optimizer.zero_grad(set_to_none=True)
            parts.step += 1

            report.step(parts.step, losses.means(), lr=rate, grad_norm=grad_norm.item())
            stopping = world.any(stop.requested)
            due = stopping or parts.step % run.cadence.checkpoint_steps == 0
            if world.is_first and due and parts.step < total_steps:
                checkpoints.try_save(parts.step, state_of(parts, report), world.size)
            if stopping and parts.step < total_steps:
                if world.is_first:
                    logger.warning("stopped on request after step %d", parts.step)
                return False
    if world.is_first:
        checkpoints.save(total_steps, state_of(parts, report), world.size)
    return True


def train_group(
    run: RunSpec, parts: Parts, model: DistributedDataParallel, plan: StepPlan, group: GroupShare, cells: list[Slice],
    world: World, losses: "LossSum",
) -> None:  # fmt: skip
    """Add this rank's share of one contrastive group to the gradient."""
    images = [normalise(cell.image_BCHW, weights_dtype(run)) for cell in cells]
    keys_GE = None
    if parts.target:
        # The published recipe moves the target before every group, so how far it has moved is a function of the
        # group's index and not of who computes it.
        parts.target.advance_to_group(group.index, parts.model)
        with autocast(run, world.device):
            mine = {
                index: parts.target.keys(image_BCHW, cell.target_BL)
                for index, cell, image_BCHW in zip(group.slices, cells, images, strict=True)
            }
        keys_GE = world.gather_keys(mine, run.batch.slices_per_group, plan.team)
    for index, cell, image_BCHW in zip(group.slices, cells, images, strict=True):
        with nullcontext() if plan.is_last(group, index) else model.no_sync():
            with autocast(run, world.device):
                cell_losses = model(image_BCHW, cell.online_BL, keys_GE, index * run.batch.slice, parts.teacher)
            # A cell counts 1 / num_cells; DDP divides the sum over ranks by the world size.
            (cell_losses.total * (world.size / plan.num_cells)).backward()
        losses.add(group, index, cell_losses)


class LossSum:
    """The losses of one step: this rank's cells, then the mean over all cells of all ranks."""

    def __init__(self, run: RunSpec, step: int, plan: StepPlan) -> None:
        self.run, self.step, self.plan = run, step, plan
        self._cells: dict[tuple[int, int], Tensor] = {}
        self._means: list[float] = []

    def add(self, group: GroupShare, index: int, losses: Losses) -> None:
        self._cells[group.index, index] = torch.stack([loss.detach() for loss in losses]).double()

    def are_finite(self, world: World, grad_norm: Tensor) -> bool:
        """Whether the step may be taken: the same answer on every rank."""
        mine = torch.stack(list(self._cells.values())).sum(dim=0) / self.plan.num_cells
        # The norm is equal on all ranks, and travels along so that one look at the device answers everything.
        *self._means, summed_norms = world.sum(torch.cat([mine, grad_norm.double().view(1)])).tolist()
        return all(map(math.isfinite, [*self._means, summed_norms]))

    def means(self) -> dict[str, float]:
        """Means over all cells of the step, by name; after `are_finite`."""
        image, contrastive, total = self._means
        name = "pixel" if self.run.teacher.source == "none" else "perceptual"
        means = {"total": total, name: image}
        return means if self.run.contrastive.weight == 0 else {**means, "contrastive": contrastive}

    def what_is_wrong(self, world: World, grad_norm: Tensor) -> str:
        """Message for people, with the images that were in it."""
        batch = self.run.batch
        mine = [cell for cell, losses in self._cells.items() if not losses.isfinite().all()]
        first = sorted(first_position(batch, self.step, *cell) for cells in world.collect(mine) for cell in cells)
        where = ", ".join(f"{position} to {position + batch.slice - 1}" for position in first)
        everything = f"{self.step * batch.global_batch} to {(self.step + 1) * batch.global_batch - 1}"
        losses = ", ".join(f"{name} {value:g}" for name, value in self.means().items())
        return (
            f"step {self.step}: losses {losses}, gradient norm {grad_norm.item():g}. Images at positions "
            f"{where or everything} of the run. The weights were not touched and the last checkpoint stands; "
            f"a lower optimizer.base_lr or a longer schedule.warmup is what helps most often"
        )


def state_of(parts: Parts, report: Report) -> dict[str, Any]:
    """What a checkpoint holds."""
    return {**parts.state_dict(), "report": report.state_dict()}


def weights_dtype(run: RunSpec) -> torch.dtype:
    return torch.float64 if run.precision == "float64" else torch.float32


def autocast(run: RunSpec, device: torch.device) -> AbstractContextManager[Any]:
    """bf16 on a GPU where the spec says so; nothing otherwise."""
    if run.precision == "bf16" and device.type == "cuda":
        return torch.autocast("cuda", torch.bfloat16)
    return nullcontext()
