"""How many cells of a step go through the networks together, and whether compiled: speed, and no matter to the result.

A cell alone leaves a GPU idle between its thousands of small kernels. So a pass is as many cells as the machine holds;
that is tried before the first step, because it depends on the spec, the GPU and what else is on it. Compiled networks
need fewer kernels, and read and write less.
"""

import gc
import logging
import os
import time
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from trainer.contract import RunSpec
from trainer.data.batches import Slice
from trainer.data.manifest import DataError
from trainer.elastic.distributed import Synchronised, World
from trainer.loop import Cell, Parts, autocast, keys_of, losses_of
from trainer.method.grid import StepPlan
from trainer.store.cachedir import cache_folder
from trainer.teachers import Teacher

logger = logging.getLogger(__name__)

ASKED, COMPILE = "MCF_CELLS_A_PASS", "MCF_COMPILE"
MEMORY = "out of memory"
WITHOUT_CLASS = ("can't allocate memory", "STATUS_ALLOC_FAILED", "CUDA error: out of memory")
# More images at once make no GPU faster, and a pass is what a request to stop has to wait for.
MAX_IMAGES = 1024
# On a CPU there are no launches to save once a kernel has a few rows, and larger passes fall out of its caches.
MAX_IMAGES_CPU = 64


class OutOfMemory(Exception):
    """A pass did not fit into memory after all, as when another process has taken some of it."""

    def __init__(self, reason: str, cells: int) -> None:
        super().__init__(reason)
        self.cells = cells


def ran_out_of_memory(error: BaseException) -> bool:
    """Of a GPU, its libraries or the machine; for the latter two torch has no class of its own."""
    known = isinstance(error, torch.OutOfMemoryError | MemoryError | OutOfMemory)
    return known or (isinstance(error, RuntimeError) and any(words in str(error) for words in WITHOUT_CLASS))


def prepare(
    run: RunSpec, parts: Parts, model: Synchronised, plan: StepPlan, world: World, too_many: int | None = None
) -> None:  # fmt: skip
    """Find the size of a pass, the same on every rank, and compile the networks for it where that is wanted.

    `too_many`: a pass of so many cells has not fitted once.
    """
    attempt = lambda cells: try_pass(run, replace(parts, cells_a_pass=cells), model, plan, world)  # noqa: E731
    limit = min(asked_limit(run, world), max(world.collect(plan.num_mine)))
    if too_many:
        limit = min(limit, max(1, too_many // 2))
    if world.device.type == "cuda" and ASKED not in os.environ:
        limit = largest_that_fits(limit, attempt)
    _agree(parts, plan, world, limit)
    if compile_wanted(world):
        _compile(parts, plan, world, attempt)
    if world.is_first:
        logger.info(
            "%d cells of %d images a pass, of %d that a worker has a step; networks %s", parts.cells_a_pass,
            run.batch.slice, plan.num_mine, f"compiled in {parts.compile_seconds:.0f} s" if parts.compiled else "eager",
        )  # fmt: skip


def asked_limit(run: RunSpec, world: World) -> int:
    """Cells of the largest pass that is worth a try. Raises DataError."""
    if asked := os.environ.get(ASKED):
        if not (asked.isdecimal() and int(asked)):
            raise DataError(f"{ASKED} is {asked!r}; possible: a number of cells from 1, or nothing")
        return int(asked)
    most = MAX_IMAGES_CPU if world.device.type == "cpu" else MAX_IMAGES
    return max(1, most // run.batch.slice)


def compile_wanted(world: World) -> bool:
    """On a GPU unless it was switched off; on a CPU only where it was asked for. Raises DataError."""
    asked = os.environ.get(COMPILE, "1" if world.device.type == "cuda" else "0")
    if asked not in ("0", "1"):
        raise DataError(f"{COMPILE} is {asked!r}; possible: 1, 0, or nothing")
    return asked == "1"


def _agree(parts: Parts, plan: StepPlan, world: World, limit: int) -> None:
    shared = min(world.collect(limit))
    parts.cells_a_pass = max(world.collect(plan.evened(shared)))


def _compile(parts: Parts, plan: StepPlan, world: World, attempt: Callable[[int], None]) -> None:
    """Compile, which the first pass does. A machine that cannot is told of, and trains without."""
    # Beside the run's other caches: a group that forms anew, and the node's next attempt, do not compile again.
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(cache_folder() / "compiled"))
    if world.is_first:
        logger.info("compiling the networks: a minute or more, and less where this node has compiled them before")
    started = time.monotonic()
    while True:
        parts.compile()
        problems = [problem for problem in world.collect(_problem(attempt, parts.cells_a_pass)) if problem]
        parts.compile_seconds = time.monotonic() - started
        if not problems:
            return
        parts.uncompile()
        torch.compiler.reset()
        _free()
        if parts.cells_a_pass == 1 or set(problems) != {MEMORY}:
            if world.is_first:
                logger.warning(
                    "the networks cannot be compiled here and train without it: the step is slower, its result the "
                    "same. placement.compile: false does not try. %s", problems[0]
                )  # fmt: skip
            return
        _agree(parts, plan, world, parts.cells_a_pass // 2)


def _problem(attempt: Callable[[int], None], cells: int) -> str:
    """What goes wrong, in words. Whatever it is: the networks as they are have taken this pass, or will at once."""
    try:
        attempt(cells)
    except Exception as error:
        if ran_out_of_memory(error):
            return MEMORY
        logger.debug("the networks cannot be compiled", exc_info=True)
        return f"{type(error).__name__}: {next(iter(str(error).strip().splitlines()), '')}"
    return ""


def largest_that_fits(most: int, attempt: Callable[[int], None]) -> int:
    """Of `most`, its half, its quarter and so on the first that does not run out of memory; 1 is not tried."""
    cells = most
    while cells > 1:
        try:
            attempt(cells)
        except Exception as error:
            if not ran_out_of_memory(error):
                raise
            cells //= 2
        else:
            return cells
        finally:
            _free()
    return 1


def _free() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def try_pass(run: RunSpec, parts: Parts, model: Synchronised, plan: StepPlan, world: World) -> None:
    """Keys, losses and gradient of a pass of black images, beside as much memory as a step needs otherwise.

    Raises torch.OutOfMemoryError. Leaves weights, gradients and the target as they were.
    """
    if parts.taps and parts.teacher:
        parts = replace(parts, taps=_Unkept(parts.teacher))
    cells = [Cell(0, 0, _black(run, world))] * parts.cells_a_pass
    # Two moments of the optimizer, DDP's copy of the gradient, and the copy of the state on its way to the host.
    held = sum(weight.numel() * weight.element_size() for weight in parts.model.parameters())
    beside = torch.empty(6 * held, dtype=torch.uint8, device=world.device)
    keys = {}
    try:
        with autocast(run, world.device):
            if parts.target:
                size = min(parts.cells_a_pass, plan.most_of_a_group)
                # Three times: a CUDA graph is warmed up, recorded and used.
                made = [keys_of(run, parts, cells[:size], size) for _ in range(3)][-1]
                keys[0] = made[0, :1].repeat(run.batch.contrastive_group, 1)
            with model.no_sync():
                losses = losses_of(run, parts, model, cells, keys)
                with torch.autocast(world.device.type, enabled=False):
                    losses.total.sum().backward()
    finally:
        parts.optimizer.zero_grad(set_to_none=True)
        del beside


def _black(run: RunSpec, world: World) -> Slice:
    size, side = run.batch.slice, run.input_size
    image_BCHW = torch.zeros(size, 3, side, side, dtype=torch.uint8, device=world.device)
    noise_BL = torch.zeros(size, run.num_patches, device=world.device)
    number_B = torch.zeros(size, dtype=torch.int64)
    return Slice(image_BCHW, noise_BL, noise_BL, number_B, number_B > 0, {})


class _Unkept:
    """Features of images that are none, and so are not to be kept."""

    def __init__(self, teacher: Teacher) -> None:
        self.teacher = teacher

    @torch.no_grad()
    def wanted(self, cell: Slice, image_BCHW: Tensor) -> list[Tensor]:
        return self.teacher(image_BCHW)
