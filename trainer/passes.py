"""How many cells of a step go through the networks together: speed, and no matter to the result.

A cell alone leaves a GPU idle between its thousands of small kernels. So a pass is as many cells as the machine holds;
that is tried before the first step, because it depends on the spec, the GPU and what else is on it.
"""

import gc
import logging
import os
from collections.abc import Callable

import torch

from trainer.contract import RunSpec
from trainer.data.batches import normalise
from trainer.elastic.distributed import World
from trainer.loop import Parts, autocast, weights_dtype
from trainer.method.grid import StepPlan

logger = logging.getLogger(__name__)

ASKED = "MCF_CELLS_A_PASS"
# More images at once make no GPU faster, and a pass is what a request to stop has to wait for.
MAX_IMAGES = 1024
# On a CPU there are no launches to save once a kernel has a few rows, and larger passes fall out of its caches.
MAX_IMAGES_CPU = 64


class OutOfMemory(Exception):
    """A pass did not fit into memory after all, as when another process has taken some of it."""

    def __init__(self, reason: str, cells: int) -> None:
        super().__init__(reason)
        self.cells = cells


def cells_a_pass(run: RunSpec, parts: Parts, plan: StepPlan, world: World, too_many: int | None = None) -> int:
    """The same on every rank. `too_many`: a pass of so many has not fitted once."""
    most = max(world.collect(sum(len(group.slices) for group in plan.groups)))
    on_cpu = world.device.type == "cpu"
    limit = max(1, min(most, (MAX_IMAGES_CPU if on_cpu else MAX_IMAGES) // run.batch.slice))
    if asked := os.environ.get(ASKED):
        limit = max(1, min(most, int(asked)))
    if too_many:
        limit = min(limit, max(1, too_many // 2))
    if not (on_cpu or asked):
        limit = largest_that_fits(limit, lambda cells: try_pass(run, parts, world, cells))
    chosen = min(world.collect(limit))
    if world.is_first:
        logger.info("%d cells of %d images a pass; a worker has up to %d a step", chosen, run.batch.slice, most)
    return chosen


def largest_that_fits(most: int, attempt: Callable[[int], None]) -> int:
    """Of `most`, its half, its quarter and so on the first that does not run out of memory; 1 is not tried."""
    cells = most
    while cells > 1:
        try:
            attempt(cells)
        except torch.OutOfMemoryError:
            cells //= 2
        else:
            return cells
        finally:
            gc.collect()
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
    return 1


def try_pass(run: RunSpec, parts: Parts, world: World, cells: int) -> None:
    """Losses and gradient of a pass of grey images, beside as much memory as a step needs otherwise.

    Raises torch.OutOfMemoryError. Leaves weights, gradients and the target as they were.
    """
    device, count, side = world.device, cells * run.batch.slice, run.input_size
    # Two moments of the optimizer, DDP's copy of the gradient, and the copy of the state on its way to the host.
    held = sum(weight.numel() * weight.element_size() for weight in parts.model.parameters())
    beside = torch.empty(6 * held, dtype=torch.uint8, device=device)
    image = normalise(torch.zeros(count, 3, side, side, dtype=torch.uint8, device=device), weights_dtype(run))
    noise = torch.zeros(count, run.num_patches, device=device)
    keys = None
    if parts.target:
        keys = torch.ones(cells, run.batch.contrastive_group, run.contrastive.dim, device=device, dtype=image.dtype)
    first = torch.zeros(cells, dtype=torch.long, device=device)
    try:
        with autocast(run, device):
            losses = parts.model.of_slices(image, noise, keys, first, parts.teacher)
        losses.total.sum().backward()
    finally:
        parts.optimizer.zero_grad(set_to_none=True)
        del beside
