"""One cell of the published ViT-B/16 step against a plain matrix product: python -m tests.bench.step

Both take turns in one process, so that whatever else the machine does hits both; figures are medians of ratios.
"""

import os
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode

from trainer import loop
from trainer.contract import RunSpec
from trainer.data.batches import Slice
from trainer.elastic.distributed import World, joined_world
from trainer.loop import Cell, LossSum, Parts, state_of, synchronised, train_groups, weights_dtype
from trainer.method.grid import StepPlan, first_position, step_plan, teams
from trainer.method.mcf import Target, build
from trainer.method.optim import adamw, gradient_norm
from trainer.state.checkpoint import CheckpointStore
from trainer.state.hostcopy import HostCopy
from trainer.state.keeper import Keeper
from trainer.store.objects import DirectoryStore
from trainer.teachers import build as build_teacher
from trainer.teachers.tapcache import TapCache
from trainer.tracking.cards import card
from trainer.tracking.report import Silent

TURNS = 5
PUBLISHED_STEP = 4096
RANDOM = {"data": {"uri": "/none"}, "teacher": "random"}


@dataclass
class Bench:
    """A run whose step can be taken apart."""

    run: RunSpec
    parts: Parts
    world: World
    plan: StepPlan
    cells: list[Cell]
    """This rank's of the step, in the plan's order."""

    def __post_init__(self) -> None:
        self.model = synchronised(self.world, self.parts)

    def pass_once(self) -> None:
        """Keys, losses and gradient of the step's cells, by the code that trains, in passes as it makes them."""
        losses, cells = LossSum(self.run, 0, self.plan), iter(self.cells)
        with loop.autocast(self.run, self.world.device):
            for groups in self.plan.in_passes(self.parts.cells_a_pass):
                some = [next(cells) for group in groups for _ in group.slices]
                train_groups(self.run, self.parts, self.model, self.plan, groups, some, self.world, losses)

    def step_once(self) -> None:
        """What a step does once, whatever it adds up: norm of the gradient, target, optimizer."""
        gradient_norm(self.parts.model)
        assert self.parts.target
        self.parts.target.finish_step(self.parts.model)
        self.parts.optimizer.step()


def prepared(world: World, images: int, cells: int = 1, **fields: object) -> Bench:
    """The published recipe on random images, with a step of one pass: `cells` slices of so many images."""
    batch = {"slice": images, "contrastive_group": images * cells, "global_batch": images * cells}
    return of_run(world, RunSpec.model_validate({**RANDOM, "batch": batch, **fields}), cells)


def of_run(world: World, run: RunSpec, cells_a_pass: int) -> Bench:
    """A run on random images, with this rank's cells of its step; the same images whoever has which."""
    model = build(run).to(world.device)
    target = Target(run, model)
    parts = Parts(
        model, target, build_teacher(run, world.device), adamw(model, run), num_images=run.batch.global_batch,
        cells_a_pass=cells_a_pass,
    )  # fmt: skip
    plan = step_plan(run.batch, world.rank, world.size)
    world.form_teams(teams(run.batch, world.size))
    places = [(group.index, index) for group in plan.groups for index in group.slices]
    return Bench(run, parts, world, plan, [Cell(*place, _drawn(run, *place, world.device)) for place in places])


def _drawn(run: RunSpec, group: int, index: int, device: torch.device) -> Slice:
    """Of random images, by their place in the step."""
    first, count = first_position(run.batch, 0, group, index), run.batch.slice
    generator = torch.Generator().manual_seed(first)
    shape = count, 3, run.input_size, run.input_size
    image_BCHW = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
    noise = [torch.rand(count, run.num_patches, generator=generator).to(device) for _ in range(2)]
    numbers = torch.arange(first, first + count)
    return Slice(image_BCHW.to(device), noise[0], noise[1], numbers, numbers < 0, {})


def measure() -> dict[str, float]:
    """Figures by name; see docs/performance.md for what each means."""
    with joined_world() as world, tempfile.TemporaryDirectory() as scratch:
        cuda = world.device.type == "cuda"
        bench = prepared(world, 64 if cuda else 8)
        found = against_matrix_product(bench, flop_of_pass(bench), 8192 if cuda else 2048)
        found |= _once_a_step(bench, found["seconds_an_image"])
        found |= kept(bench, Path(scratch))
        found |= with_kept_taps(bench, Path(scratch))
    return found


def against_matrix_product(bench: Bench, flop: int, side: int) -> dict[str, float]:
    """Of a step of so much FLOP; the product is that of two square matrices in the precision of the run's products."""
    images, device = bench.parts.num_images, bench.world.device
    cuda = device.type == "cuda"
    half = cuda and bench.run.precision == "bf16"
    factor = torch.randn(side, side, device=device, dtype=torch.bfloat16 if half else weights_dtype(bench.run))
    product_flop = 2 * side**3

    def product() -> None:
        for _ in range(20):
            torch.mm(factor, factor)

    times = in_turns(bench.world, bench.pass_once, product)
    rates = [(flop / step, 20 * product_flop / matrix) for step, matrix in times]
    seconds = statistics.median(step for step, _ in times)
    found = {
        "flop_an_image": flop / images,
        "step_flop_rate": statistics.median(rate for rate, _ in rates),
        "product_flop_rate": statistics.median(rate for _, rate in rates),
        "step_over_product": statistics.median(rate / best for rate, best in rates),
        "seconds_an_image": seconds / images,
        "images_per_second": images / seconds,
    }
    if cuda:
        found["peak_memory_gib"] = torch.cuda.max_memory_allocated(device) / 2**30
        if peak := peak_of(device):
            found["share_of_bf16_peak"] = found["step_flop_rate"] / peak
            found["product_share_of_bf16_peak"] = found["product_flop_rate"] / peak
    return found


def flop_of_pass(bench: Bench) -> int:
    """Of all cells of the step."""
    with FlopCounterMode(display=False) as counter:
        bench.pass_once()
    return counter.get_total_flops()


def peak_of(device: torch.device) -> float | None:
    """bf16 FLOP/s; None for a device that the table of cards does not have."""
    found = card(torch.cuda.get_device_name(device))
    return found and found.bf16


def _once_a_step(bench: Bench, seconds_an_image: float) -> dict[str, float]:
    times = in_turns(bench.world, bench.step_once)
    seconds = statistics.median(step for (step,) in times)
    return {"optimizer_and_ema_seconds": seconds,
            "optimizer_and_ema_share": seconds / (seconds + PUBLISHED_STEP * seconds_an_image)}  # fmt: skip


def kept(bench: Bench, folder: Path) -> dict[str, float]:
    """What the loop waits for when the state is kept, and how much slower it is while that is written."""
    bench.parts.optimizer.zero_grad()
    checkpoints = CheckpointStore(DirectoryStore(str(folder)), spec_digest=bench.run.digest, keep=1)
    keeper = Keeper(bench.world, HostCopy(str(folder), bench.run.digest), checkpoints, 1, 0)
    stalls, slowdowns = [], []
    for step in range(1, TURNS + 2):
        alone = seconds_of(bench.world, bench.pass_once)
        stalls.append(seconds_of(bench.world, partial(keeper.keep, step, state_of(bench.parts, Silent()))))
        beside = []
        while not beside or not keeper.due(step + 1):
            beside.append(seconds_of(bench.world, bench.pass_once))
        slowdowns.append(statistics.mean(beside) / alone - 1)
    keeper.close(completed=False)
    state = sum(p.numel() * p.element_size() for p in bench.parts.model.parameters()) * 4
    return {
        "state_gib": state / 2**30,
        "checkpoint_stall_seconds": statistics.median(stalls[1:]),
        "slowdown_while_one_is_written": statistics.median(slowdowns[1:]),
    }


def with_kept_taps(bench: Bench, folder: Path) -> dict[str, float]:
    """How many times as fast a step is whose images the teacher need not look at."""
    os.environ["MCF_CACHE_DIR"] = str(folder)
    assert bench.parts.teacher
    taps = TapCache(bench.run, bench.parts.teacher, "bench", bench.parts.num_images, 8 << 30)
    cached = Bench(bench.run, replace(bench.parts, taps=taps), bench.world, bench.plan, bench.cells)
    cached.pass_once()
    times = in_turns(bench.world, bench.pass_once, cached.pass_once)
    return {"kept_taps_speedup": statistics.median(plain / quick for plain, quick in times)}


def in_turns(world: World, *calls: Callable[[], object], turns: int = TURNS) -> list[tuple[float, ...]]:
    """Seconds of each call, one after the other, several times; a first round is not counted."""
    return [tuple(seconds_of(world, call) for call in calls) for _ in range(turns + 1)][1:]


def seconds_of(world: World, call: Callable[[], object]) -> float:
    _wait(world)
    started = time.perf_counter()
    call()
    _wait(world)
    return time.perf_counter() - started


def _wait(world: World) -> None:
    if world.device.type == "cuda":
        torch.cuda.synchronize()


if __name__ == "__main__":
    for name, value in measure().items():
        print(f"{name:32} {value:.6g}")  # noqa: T201
