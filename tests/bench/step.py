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
from trainer.method.grid import StepPlan, step_plan, teams
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


@dataclass
class Bench:
    """A run whose step is one pass, ready to be taken apart."""

    run: RunSpec
    parts: Parts
    world: World
    plan: StepPlan
    cells: list[Cell]
    """Of the step, which has one group."""

    def __post_init__(self) -> None:
        self.model = synchronised(self.world, self.parts)

    def pass_once(self) -> None:
        """Keys, losses and gradient of the step's cells, by the code that trains."""
        losses = LossSum(self.run, 0, self.plan)
        with loop.autocast(self.run, self.world.device):
            train_groups(self.run, self.parts, self.model, self.plan, self.plan.groups, self.cells, self.world, losses)

    def step_once(self) -> None:
        """What a step does once, whatever it adds up: norm of the gradient, target, optimizer."""
        gradient_norm(self.parts.model)
        assert self.parts.target
        self.parts.target.finish_step(self.parts.model)
        self.parts.optimizer.step()


def prepared(world: World, images: int, cells: int = 1, **fields: object) -> Bench:
    """The published recipe on random images, with a step of one pass: `cells` slices of so many images."""
    batch = {"slice": images, "contrastive_group": images * cells, "global_batch": images * cells}
    run = RunSpec.model_validate({"data": {"uri": "/none"}, "teacher": "random", "batch": batch, **fields})
    model = build(run).to(world.device)
    target = Target(run, model)
    parts = Parts(
        model,
        target,
        build_teacher(run, world.device),
        adamw(model, run),
        num_images=images * cells,
        cells_a_pass=cells,
    )
    world.form_teams(teams(run.batch, 1))
    generator = torch.Generator().manual_seed(0)
    image_BCHW = torch.randint(
        0, 256, (images, 3, run.input_size, run.input_size), dtype=torch.uint8, generator=generator
    )
    noise = [torch.rand(images, run.num_patches, generator=generator).to(world.device) for _ in range(2)]
    numbers = torch.arange(images)
    drawn = Slice(image_BCHW.to(world.device), noise[0], noise[1], numbers, numbers < 0, {})
    return Bench(run, parts, world, step_plan(run.batch, 0, 1), [Cell(0, index, drawn) for index in range(cells)])


def measure() -> dict[str, float]:
    """Figures by name; see docs/performance.md for what each means."""
    with joined_world() as world, tempfile.TemporaryDirectory() as scratch:
        cuda = world.device.type == "cuda"
        bench = prepared(world, 64 if cuda else 8)
        found = _against_matrix_product(bench)
        found |= _once_a_step(bench, found["seconds_an_image"])
        found |= _kept(bench, Path(scratch))
        found |= _with_kept_taps(bench, Path(scratch))
    return found


def _against_matrix_product(bench: Bench) -> dict[str, float]:
    images, device = bench.run.batch.slice, bench.world.device
    flop = flop_of_pass(bench)
    cuda = device.type == "cuda"
    side = 8192 if cuda else 2048
    factor = torch.randn(side, side, device=device, dtype=torch.bfloat16 if cuda else weights_dtype(bench.run))
    product_flop = 2 * side**3

    def product() -> None:
        for _ in range(20):
            torch.mm(factor, factor)

    times = in_turns(bench.world, bench.pass_once, product)
    rates = [(flop / cell, 20 * product_flop / matrix) for cell, matrix in times]
    seconds = statistics.median(cell for cell, _ in times)
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
    return found


def flop_of_pass(bench: Bench) -> int:
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


def _kept(bench: Bench, folder: Path) -> dict[str, float]:
    """What the loop waits for when the state is kept, and how much slower it is while that is written."""
    bench.parts.optimizer.zero_grad()
    checkpoints = CheckpointStore(DirectoryStore(str(folder)), spec_digest=bench.run.digest, keep=1)
    keeper = Keeper(bench.world, HostCopy(str(folder), bench.run.digest), checkpoints, 1, 0)
    stalls, slowdowns = [], []
    for step in range(1, TURNS + 2):
        alone = _seconds(bench.world, bench.pass_once)
        stalls.append(_seconds(bench.world, partial(keeper.keep, step, state_of(bench.parts, Silent()))))
        beside = []
        while not beside or not keeper.due(step + 1):
            beside.append(_seconds(bench.world, bench.pass_once))
        slowdowns.append(statistics.mean(beside) / alone - 1)
    keeper.close(completed=False)
    state = sum(p.numel() * p.element_size() for p in bench.parts.model.parameters()) * 4
    return {
        "state_gib": state / 2**30,
        "checkpoint_stall_seconds": statistics.median(stalls[1:]),
        "slowdown_while_one_is_written": statistics.median(slowdowns[1:]),
    }


def _with_kept_taps(bench: Bench, folder: Path) -> dict[str, float]:
    os.environ["MCF_CACHE_DIR"] = str(folder)
    assert bench.parts.teacher
    taps = TapCache(bench.run, bench.parts.teacher, "bench", bench.run.batch.slice, 8 << 30)
    cached = Bench(bench.run, replace(bench.parts, taps=taps), bench.world, bench.plan, bench.cells)
    cached.pass_once()
    times = in_turns(bench.world, bench.pass_once, cached.pass_once)
    return {"kept_taps_speedup": statistics.median(plain / quick for plain, quick in times)}


def in_turns(world: World, *calls: Callable[[], None]) -> list[tuple[float, ...]]:
    """Seconds of each call, one after the other, several times; a first round is not counted."""
    return [tuple(_seconds(world, call) for call in calls) for _ in range(TURNS + 1)][1:]


def _seconds(world: World, call: Callable[[], object]) -> float:
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
