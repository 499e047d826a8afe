"""What `python -m tests.bench.gpu` measures, section by section, the most valuable figures first.

A section yields its figures case by case, so that what it has measured stands when its time is over.
"""

import gc
import shutil
import statistics
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from tests.bench import killed, loader, stage, together
from tests.bench.launches import Counted
from tests.bench.step import (
    PUBLISHED_STEP,
    Bench,
    against_matrix_product,
    flop_of_pass,
    in_turns,
    kept,
    prepared,
    seconds_of,
    with_kept_taps,
)
from trainer.elastic.distributed import World, joined_world
from trainer.passes import MAX_IMAGES, MAX_IMAGES_CPU, largest_that_fits

Case = tuple[str, dict[str, float]]
ALL = None
"""A pass of as many cells as trainer.passes finds room for."""
# Two processes add up in another order than one. Further apart is a mistake.
MOST_APART = {"float32": 1e-4, "bf16": 5e-2}

ONE_BLOCK = {
    "encoder": {"width": 24, "depth": 1, "heads": 2, "patch": 8},
    "teacher": {"source": "random", "arch": "as-encoder", "taps": [0]},
}


@dataclass(frozen=True)
class Scale:
    """The published step on a GPU, or a tiny one."""

    short: bool
    images: int
    """Of a slice."""
    cells: int
    """Of a large pass, where only one size is measured."""
    side: int
    """Of the matrices that a step is compared with."""
    steps: int
    """Of a run whose worker is killed."""
    precision: str
    fields: dict[str, Any] = field(default_factory=dict)
    """Of the run, beside its batch."""

    @classmethod
    def of(cls, short: bool) -> "Scale":
        if not short:
            return cls(False, 64, 8, 8192, 400, "bf16")
        return cls(True, 8, 2, 256, 16, "float32", {
            "input_size": 32, "encoder": {"width": 24, "depth": 2, "heads": 2, "patch": 8}, "precision": "float32",
            "decoder": {"width": 16, "depth": 1, "heads": 2}, "contrastive": {"hidden": 16, "dim": 8},
            "teacher": {"source": "random", "arch": "as-encoder", "taps": [0, 1]},
        })  # fmt: skip

    def machine(self) -> str:
        """In words, without touching the GPU: sections are forks of who asks."""
        return f"torch {torch.__version__}, " + ("a CPU, the short form" if self.short else "a GPU")


@dataclass(frozen=True)
class Section:
    name: str
    seconds: float
    """After which it is ended."""
    rows: Callable[[Scale], Iterator[Case]]

    @property
    def file(self) -> str:
        return "".join(letter if letter.isalnum() else "-" for letter in self.name)


def device(scale: Scale) -> Iterator[Case]:
    """First of all whether there is a GPU, and which."""
    if not scale.short and not torch.cuda.is_available():
        raise RuntimeError("needs a GPU, and this machine has none; --short takes a CPU")
    name = "CPU" if scale.short else torch.cuda.get_device_name()
    threads = {"threads": float(torch.get_num_threads())}
    yield name, threads if scale.short else threads | {"GiB": torch.cuda.get_device_properties(0).total_memory / 2**30}


def passes(sizes: Sequence[int | None], compiled: bool, scale: Scale) -> Iterator[Case]:
    """Steps of one pass each."""
    if scale.short:
        if compiled and sizes[0] is not ALL:
            yield "left out of the short form", {}
            return
        if compiled and shutil.which("c++") is None:
            yield "not tried: no C++ compiler, with which torch.compile builds its kernels on a CPU", {}
            return
        sizes = sizes[:1] if compiled else (1, 2, *sizes[:1])
        if compiled:  # a block more is seconds more of the C++ compiler
            scale = replace(scale, fields={**scale.fields, **ONE_BLOCK})
    with joined_world() as world:
        most = largest(world, scale)
        for cells in dict.fromkeys(min(cells or most, most) for cells in sizes):
            name = f"{'compiled' if compiled else 'eager'}, pass of {cells}{' (all)' if cells == most else ''}"
            yield name, one_size(world, scale, cells, compiled)


def largest(world: World, scale: Scale) -> int:
    """Cells that fit into a pass: as a run looks for them, beside the optimizer's moments."""

    def attempt(cells: int) -> None:
        bench = prepared(world, scale.images, cells, **scale.fields)
        bench.pass_once()
        bench.step_once()

    if world.device.type == "cpu":
        return max(1, MAX_IMAGES_CPU // scale.images)
    return largest_that_fits(MAX_IMAGES // scale.images, attempt)


def one_size(world: World, scale: Scale, cells: int, compiled: bool) -> dict[str, float]:
    cuda = world.device.type == "cuda"
    torch.compiler.reset()  # it gives up after a few sizes of one function
    gc.collect()  # the networks of the size before
    bench = prepared(world, scale.images, cells, **scale.fields)
    flop = flop_of_pass(bench)
    if cuda:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    first = {}
    if compiled:
        bench.parts.compile()
        first["compile_seconds"] = seconds_of(world, bench.pass_once)
    found = against_matrix_product(bench, flop, scale.side)
    wanted = (
        "images_per_second", "share_of_bf16_peak", "step_over_product", "product_share_of_bf16_peak", "peak_memory_gib"
    )  # fmt: skip
    numbers = {name: found[name] for name in wanted if name in found}
    return numbers | launches(bench, found["seconds_an_image"] * bench.parts.num_images, compiled) | first


def launches(bench: Bench, seconds: float, compiled: bool) -> dict[str, float]:
    """Kernels of a pass, and the share of so many seconds that they take; on a CPU only what is launched one by one."""
    if bench.world.device.type == "cuda":
        with profile(activities=[ProfilerActivity.CUDA]) as profiler:
            bench.pass_once()
            torch.cuda.synchronize()
        kernels = [event for event in profiler.events() if event.device_type == torch.autograd.DeviceType.CUDA]
        busy = sum(kernel.device_time for kernel in kernels) / 1e6 / seconds
        return {"kernels": len(kernels), "busy": busy}
    if compiled:
        return {}
    with Counted() as counted:
        bench.pass_once()
    return {"kernels": len(counted.calls)}


def two_processes(scale: Scale) -> Iterator[Case]:
    for precision, most in MOST_APART.items():
        if scale.short and precision != "float32":
            continue
        run = together.run_of(**{**scale.fields, "precision": precision})
        with tempfile.TemporaryDirectory() as scratch:
            found = together.gradient_apart(run, Path(scratch), cuda=not scale.short)
        if found > most:
            raise RuntimeError(f"{precision}: the gradient of two processes is {found:.2e} from one's, at most {most}")
        yield f"{precision}, against one process", {"gradient_apart": found}


def killed_worker(compiled: bool, scale: Scale) -> Iterator[Case]:
    with tempfile.TemporaryDirectory() as scratch:
        faces = Path(scratch, "faces")
        faces.mkdir()
        run = killed.run_of(faces, scale.steps, precision=scale.precision)
        compiled = compiled and not scale.short
        found = killed.apart(run, Path(scratch), compiled, 150)
    yield (
        f"{scale.precision}, {'compiled' if compiled else 'eager'}, {scale.steps} steps, against one left alone",
        found,
    )


def state(scale: Scale) -> Iterator[Case]:
    with joined_world() as world:
        for cells in 1, scale.cells:
            bench = prepared(world, scale.images, cells, **scale.fields)
            seconds = statistics.median(taken for (taken,) in in_turns(world, bench.pass_once)) / bench.parts.num_images
            with tempfile.TemporaryDirectory() as scratch:
                found = kept(bench, Path(scratch))
            stall = found["checkpoint_stall_seconds"]
            yield f"eager, pass of {cells}", {
                "stall_seconds": stall, "stall_share": stall / (PUBLISHED_STEP * seconds),
                "slowdown": found["slowdown_while_one_is_written"], "state_gib": found["state_gib"],
            }  # fmt: skip


def features(scale: Scale) -> Iterator[Case]:
    with joined_world() as world:
        for cells in 1, scale.cells:
            bench = prepared(world, scale.images, cells, **scale.fields)
            with tempfile.TemporaryDirectory() as scratch:
                found = with_kept_taps(bench, Path(scratch))
            yield f"eager, pass of {cells}, over one without", {"speedup": found["kept_taps_speedup"]}


def loading(scale: Scale) -> Iterator[Case]:
    yield "224-pixel JPEGs", loader.measure(loader.SLICE if scale.short else loader.IMAGES, **scale.fields)


def jpegs(scale: Scale) -> Iterator[Case]:
    """`data.decoder: nvjpeg`: as they are, and resized."""
    for side in loader.SIZE, loader.SIZE + 32:
        if not scale.short:
            yield f"{loader.IMAGES} JPEGs of {side} pixels", loader.by_gpu(torch.device("cuda"), side)
        elif loader.by_gpu(torch.device("cpu"), side, loader.SLICE)["largest_difference"]:
            raise RuntimeError("with the same decoder behind it, the path of the GPU gives other pixels")
    if scale.short:
        yield "not measured: it needs a GPU, and a CPU's decoder stood in", {}


def stages(scale: Scale) -> Iterator[Case]:
    """A step of alignment as it is published, on faces that lie ready."""
    with joined_world() as world:
        size = stage.TINY if scale.short else stage.PUBLISHED
        yield f"alignment, {size.input_size} pixels, batches of {size.batch}, float32", stage.one_step(world, size)


def small_stage(scale: Scale) -> Iterator[Case]:
    """By itself: its ranks are forks, and must come before this process has touched the GPU."""
    if scale.short:
        yield "left out of the short form", {}
    else:
        yield "an epoch as in make bench", stage.measure()


SECTIONS = (
    Section("device", 30, device),
    Section("eager", 90, partial(passes, (ALL, 1, 8, 4, 2), False)),
    Section("compiled", 150, partial(passes, (ALL,), True)),
    Section("two processes, gloo", 60, two_processes),
    Section("killed worker", 160, partial(killed_worker, True)),
    Section("state copy", 60, state),
    Section("kept features", 30, features),
    Section("loader", 50, loading),
    Section("nvJPEG", 30, jpegs),
    Section("stage", 50, stages),
    Section("small stage", 30, small_stage),
    # What one compilation takes decides how many of these there is time for.
    Section("compiled, other sizes", 400, partial(passes, (1, 8, 4, 2), True)),
)
