"""The training loop: one optimizer step per turn, with the same result for any number of workers.

The spec fixes the step as a grid of contrastive groups and slices; the plan says which of its cells this
worker computes. A run that loses a node takes the same steps, only slower.
"""

import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.optim import AdamW

from trainer.contract import RunSpec
from trainer.data.batches import Slice, max_undecodable, normalise
from trainer.data.decoded import too_many
from trainer.elastic import kills
from trainer.elastic.distributed import Synchronised, World
from trainer.elastic.stop import stop_requests
from trainer.method.grid import GroupShare, StepPlan, first_position
from trainer.method.mcf import Losses, Mcf, Pass, Target
from trainer.method.optim import clip_gradient, ema_momentum, gradient_norm, learning_rate, set_learning_rate
from trainer.state.keeper import Keeper
from trainer.teachers import Teacher
from trainer.tracking.report import Report

logger = logging.getLogger(__name__)


class KnownTaps(Protocol):
    """Where a slice's features come from when the teacher has looked at its images before (TapCache)."""

    def wanted(self, cell: Slice, image_BCHW: Tensor) -> list[Tensor]: ...


class Watcher(Protocol):
    """Measures the model while it trains (trainer/watch.py)."""

    def due(self, step: int) -> bool:
        """Whether a reading after this step is wanted here."""

    def read(self, step: int, model: Mcf) -> None:
        """Take one. A collective."""


class NonFiniteLoss(Exception):
    """A loss or the gradient is not finite; found by all ranks together, before the weights were touched."""


@dataclass
class Parts:
    """Everything a run trains with. All of it but the teacher and what it has seen is in the checkpoint."""

    model: Mcf
    target: Target | None
    """None where the contrastive branch is switched off."""
    teacher: Teacher | None
    """None where the run trains on masked pixels."""
    optimizer: AdamW
    num_images: int
    taps: KnownTaps | None = None
    """None where the teacher looks at every image every time."""
    cells_a_pass: int = 1
    """Cells that go through the networks together: what the machine holds, and no matter to the result."""
    compiled: bool = False
    compile_seconds: float = 0.0
    """What this process spent on it."""
    step: int = 0
    """Optimizer steps done."""
    undecodable: dict[int, str] = field(default_factory=dict)
    """Images of the subset met so far that others stand in for: index -> key and reason."""

    def compile(self) -> None:
        """torch.compile what a pass computes, in place: once, as every pass then has `cells_a_pass` cells."""
        self.model.of_slices = torch.compile(self.model.of_slices, dynamic=False)  # type: ignore[method-assign]
        if self.target:
            # A few small kernels for each group: on a GPU one launch instead of a hundred.
            mode = "reduce-overhead" if next(self.target.parameters()).is_cuda else None
            self.target.of_slices = torch.compile(self.target.of_slices, dynamic=False, mode=mode)  # type: ignore[method-assign]
        self.compiled = True

    def uncompile(self) -> None:
        for part in filter(None, (self.model, self.target)):
            vars(part).pop("of_slices", None)
        self.compiled = False

    def state_dict(self) -> dict[str, Any]:
        target = self.target.state_dict() if self.target else {}
        state = {"model": self.model.state_dict(), "target": target, "optimizer": self.optimizer.state_dict()}
        return {**state, "step": self.step, "undecodable": self.undecodable}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.model.load_state_dict(state["model"])
        if self.target:
            self.target.load_state_dict(state["target"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step, self.undecodable = state["step"], state["undecodable"]


def fit(
    run: RunSpec, parts: Parts, plan: StepPlan, batches: Iterator[Slice], world: World, keeper: Keeper, report: Report,
    model: Synchronised | None = None, watch: Watcher | None = None,
) -> bool:  # fmt: skip
    """Train from parts.step to the run's last step. False when stopped on request before that; both are saved.

    `model`: `synchronised(world, parts)`, where there is one already. `watch`: where the run is read on its way. Raises
    NonFiniteLoss, DataError when more images cannot be decoded than the spec allows, and StorageError when the last
    state cannot be saved.
    """
    model = model or synchronised(world, parts)
    total_steps = run.total_steps(parts.num_images)
    began = parts.step
    with stop_requests() as stop:
        while parts.step < total_steps:
            rate = learning_rate(run, parts.step, parts.num_images)
            set_learning_rate(parts.optimizer, rate)
            if parts.target:
                parts.target.momentum = ema_momentum(run, parts.step, parts.num_images)
            losses = LossSum(run, parts.step, plan)
            undecodable: dict[int, str] = {}
            with autocast(run, world.device):  # one block: what it has cast, it casts no second time
                for groups in plan.in_passes(parts.cells_a_pass):
                    cells = [Cell(group.index, index, next(batches)) for group in groups for index in group.slices]
                    for cell in cells:
                        undecodable.update(cell.slice.undecodable.items() - parts.undecodable.items())
                    train_groups(run, parts, model, plan, groups, cells, world, losses)

            grad_norm = gradient_norm(parts.model)
            reads = watch is not None and watch.due(parts.step + 1)
            wishes = Wishes(stop.requested, keeper.due(parts.step + 1), bool(undecodable), reads)
            agreed = losses.agree(world, grad_norm, wishes)
            if agreed.tell:
                note_undecodable(run, parts, undecodable, world)
            if not agreed.finite:
                # Every rank sees the same verdict, so all stop here and none hangs in a collective.
                raise NonFiniteLoss(losses.what_is_wrong(world, grad_norm))
            if parts.target:
                parts.target.finish_step(parts.model)
            if run.optimizer.clip_norm:
                clip_gradient(parts.model, grad_norm, run.optimizer.clip_norm)
            parts.optimizer.step()
            parts.optimizer.zero_grad(set_to_none=True)
            parts.step += 1
            if parts.step == began + 1:
                kills.forget()

            report.step(parts.step, losses.means(), lr=rate, grad_norm=grad_norm.item())
            if parts.step == total_steps or agreed.stop:
                break
            if watch and agreed.read:
                watch.read(parts.step, parts.model)
            if agreed.keep:
                keeper.keep(parts.step, state_of(parts, report, world))
        if world.is_first:
            keeper.finish(parts.step, state_of(parts, report))
            if parts.step < total_steps:
                logger.warning("stopped on request after step %d", parts.step)
    return parts.step == total_steps


def synchronised(world: World, parts: Parts) -> Synchronised:
    """The model as all ranks share it, called with what a pass takes."""
    return world.synchronised(Pass(parts.model))


@dataclass(frozen=True)
class Cell:
    """One slice of the step's grid."""

    group: int
    index: int
    """In the group."""
    slice: Slice


def train_groups(
    run: RunSpec, parts: Parts, model: Synchronised, plan: StepPlan, groups: Sequence[GroupShare],
    cells: Sequence[Cell], world: World, losses: "LossSum",
) -> None:  # fmt: skip
    """Add this rank's share of some contrastive groups, which follow each other, to the gradient."""
    keys = {}
    if parts.target:
        for group in groups:
            # The published recipe moves the target before every group, so how far it has moved is a function of the
            # group's index and not of who computes it.
            parts.target.advance_to_group(group.index, parts.model)
            mine = [cell for cell in cells if cell.group == group.index]
            size = min(parts.cells_a_pass, plan.most_of_a_group)
            made = [keys_of(run, parts, some, size) for some in in_parts(mine, size)]
            keys[group.index] = world.gather_keys(torch.cat(made).unbind(), group, plan.team)
    for some in in_parts(cells, parts.cells_a_pass):
        with nullcontext() if plan.is_last(some[-1].group, some[-1].index) else model.no_sync():
            found = losses_of(run, parts, model, some, keys)
            # A cell counts 1 / num_cells; DDP divides the sum over ranks by the world size.
            share = found.total.sum() * (world.size / plan.num_cells)
            with torch.autocast(world.device.type, enabled=False):
                share.backward()
        losses.add(some, found)


def keys_of(run: RunSpec, parts: Parts, some: Sequence[Cell], size: int) -> Tensor:
    """Keys [S, B, E] of cells of one group, up to `size`."""
    assert parts.target
    cells = filled(some, size) if parts.compiled else some
    images = torch.cat([cell.slice.image_BCHW for cell in cells])
    noise = torch.cat([cell.slice.target_BL for cell in cells])
    keys = parts.target.of_slices(normalise(images, weights_dtype(run)), noise, len(cells))
    return keys[: len(some)].clone()  # a CUDA graph writes its next ones to the same place


def losses_of(
    run: RunSpec, parts: Parts, model: Synchronised, some: Sequence[Cell], keys: Mapping[int, Tensor]
) -> Losses:
    """Losses [S] of cells of any groups; `keys`: of each group."""
    cells = filled(some, parts.cells_a_pass) if parts.compiled else some
    images = normalise(torch.cat([cell.slice.image_BCHW for cell in cells]), weights_dtype(run))
    noise = torch.cat([cell.slice.online_BL for cell in cells])
    first = torch.tensor([cell.index * run.batch.slice for cell in cells]).to(images.device, non_blocking=True)
    wanted = None
    if parts.taps:
        known = [parts.taps.wanted(c.slice, image) for c, image in zip(cells, images.chunk(len(cells)), strict=True)]
        wanted = [torch.cat(taps) for taps in zip(*known, strict=True)]
    own_keys = torch.stack([keys[cell.group] for cell in cells]) if keys else None
    found: Losses = model(images, noise, own_keys, first, parts.teacher, wanted)
    return Losses(*(loss_S[: len(some)] for loss_S in found))


def in_parts(cells: Sequence[Cell], size: int) -> Iterator[Sequence[Cell]]:
    return (cells[start : start + size] for start in range(0, len(cells), size))


def filled(cells: Sequence[Cell], size: int) -> list[Cell]:
    """So many cells: compiled networks take no other number. The last stands in for what is missing, and is dropped."""
    return [*cells, *[cells[-1]] * (size - len(cells))]


def note_undecodable(run: RunSpec, parts: Parts, mine: dict[int, str], world: World) -> None:
    """Every rank learns what the others could not decode, so that all stop at the same step where it is too much."""
    found = {index: what for theirs in world.collect(mine) for index, what in theirs.items()}
    parts.undecodable |= found
    if world.is_first:
        for what in found.values():
            logger.warning("another image stands in for one that cannot be decoded: %s", what)
    if len(parts.undecodable) > max_undecodable(run, parts.num_images):
        raise too_many(list(parts.undecodable.values()), parts.num_images)


class Wishes(NamedTuple):
    """What a rank wants of all of them after a step's gradients, and what any of them wants."""

    stop: bool
    """This step is the last: somebody was asked to stop."""
    keep: bool
    """The state after this step is to be kept."""
    tell: bool
    """There are images that could not be decoded, which nobody knows of yet."""
    read: bool
    """The model is to be measured as it is after this step."""


class Agreed(NamedTuple):
    """What all ranks do after a step's gradients."""

    finite: bool
    """The step may be taken."""
    stop: bool
    keep: bool
    tell: bool
    read: bool


class LossSum:
    """The losses of one step: this rank's cells, then the mean over all cells of all ranks."""

    def __init__(self, run: RunSpec, step: int, plan: StepPlan) -> None:
        self.run, self.step, self.plan = run, step, plan
        self._places: list[tuple[int, int]] = []
        self._losses: list[Tensor] = []
        """Of each pass [losses, S]."""
        self._means: list[float] = []

    def add(self, cells: Sequence["Cell"], losses: Losses) -> None:
        self._places += [(cell.group, cell.index) for cell in cells]
        self._losses.append(torch.stack([loss_S.detach() for loss_S in losses]).double())

    def agree(self, world: World, grad_norm: Tensor, wishes: Wishes) -> Agreed:
        """What all ranks do after this step: the same answer everywhere, by one small all-reduce."""
        mine = torch.cat(self._losses, dim=1).sum(dim=1) / self.plan.num_cells
        # The norm is equal on all ranks, and travels along so that one look at the device answers everything.
        everything = torch.cat([mine, grad_norm.double().view(1), mine.new_tensor(wishes)])
        *numbers, stop, keep, tell, read = world.sum(everything).tolist()
        self._means = numbers[:-1]
        return Agreed(all(map(math.isfinite, numbers)), stop > 0, keep > 0, tell > 0, read > 0)

    def means(self) -> dict[str, float]:
        """Means over all cells of the step, by name; after `agree`."""
        means = dict(zip(Losses._fields, self._means, strict=True))
        return {name: means[name] for name in ("total", *self.run.loss_weights)}

    def what_is_wrong(self, world: World, grad_norm: Tensor) -> str:
        """Message for people, with the images that were in it."""
        batch = self.run.batch
        finite = torch.cat(self._losses, dim=1).isfinite().all(dim=0).tolist()
        mine = [place for place, is_finite in zip(self._places, finite, strict=True) if not is_finite]
        first = sorted(first_position(batch, self.step, *cell) for cells in world.collect(mine) for cell in cells)
        where = ", ".join(f"{position} to {position + batch.slice - 1}" for position in first)
        everything = f"{self.step * batch.global_batch} to {(self.step + 1) * batch.global_batch - 1}"
        losses = ", ".join(f"{name} {value:g}" for name, value in self.means().items())
        return (
            f"step {self.step}: losses {losses}, gradient norm {grad_norm.item():g}. Images at positions "
            f"{where or everything} of the run. The weights were not touched and the last checkpoint stands; "
            f"a lower optimizer.base_lr or a longer schedule.warmup is what helps most often"
        )


def state_of(parts: Parts, report: Report, world: World | None = None) -> dict[str, Any]:
    """What a checkpoint holds. With `world` every rank has rank 0's report in it: any node's copy may be the last."""
    reported = report.state_dict()
    if world and not world.is_one_node:
        reported = world.share(reported)
    return {**parts.state_dict(), "report": reported}


def weights_dtype(run: RunSpec) -> torch.dtype:
    return torch.float64 if run.precision == "float64" else torch.float32


def autocast(run: RunSpec, device: torch.device) -> AbstractContextManager[Any]:
    """bf16 on a GPU where the spec says so; nothing otherwise."""
    if run.precision == "bf16" and device.type == "cuda":
        return torch.autocast("cuda", torch.bfloat16)
    return nullcontext()
