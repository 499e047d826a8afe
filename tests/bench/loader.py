"""Decoding and loading of 224-pixel JPEG faces: python -m tests.bench.loader"""

import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from itertools import repeat
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torchvision.io import ImageReadMode, decode_jpeg

from tests.bench.step import prepared
from trainer.contract import MAX_PIXELS, Data, RunSpec
from trainer.data import batches
from trainer.data.batches import Slice, slices, split_of
from trainer.data.decoded import OnDemand
from trainer.data.manifest import open_images, read_manifest
from trainer.data.nvjpeg import OnGpu, Undecoded
from trainer.elastic.distributed import joined_world
from trainer.loop import Cell
from trainer.method.grid import step_plan

IMAGES, SIZE, SLICE = 512, 224, 64
TURNS = 7


def draw_photographs(folder: Path, count: int = IMAGES, size: int = SIZE) -> None:
    """Images that compress like photographs: smooth shapes, some texture, some 20 KB each."""
    rng = np.random.default_rng(0)
    for number in range(count):
        coarse = Image.fromarray(rng.integers(0, 256, (12, 12, 3), dtype=np.uint8))
        smooth = np.asarray(coarse.resize((size, size), Image.Resampling.BICUBIC), np.float32)
        pixels = smooth + rng.normal(0, 8, smooth.shape)
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / f"{number:04d}.jpg", quality=90)


def measure(count: int = IMAGES, **fields: object) -> dict[str, float]:
    """On so many images, a multiple of SLICE; `fields`: of the run that trains, where it is not the published one."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        draw_photographs(folder, count)
        return _in_training(folder, fields) | _alone(folder, count)


def _alone(folder: Path, count: int) -> dict[str, float]:
    """On one core: our whole path from file to a slice, against torchvision's decoder on bytes in memory.

    The decoder writes past the caches, so that whoever first reads its pixels waits for the memory: that they are
    copied into a batch is part of what is compared, and the bare call, whose pixels nobody reads, is given too.
    """
    torch.set_num_threads(1)
    asked = Data(uri=str(folder))
    manifest = read_manifest(asked)
    rows = manifest.split(held_out=0, subset_size=None, subset_seed=0).train
    ours = OnDemand(open_images(asked, manifest), rows, SIZE, "crop", limit=0)
    keys = list(rows.keys())
    encoded = [torch.frombuffer(bytearray((folder / key).read_bytes()), dtype=torch.uint8) for key in keys]

    def bare() -> None:
        for each in encoded:
            decode_jpeg(each, mode=ImageReadMode.RGB)

    def plain() -> None:
        for first in range(0, count, SLICE):
            batch_BHWC = torch.empty((SLICE, SIZE, SIZE, 3), dtype=torch.uint8)
            for place, each in enumerate(encoded[first : first + SLICE]):
                batch_BHWC[place] = decode_jpeg(each, mode=ImageReadMode.RGB).permute(1, 2, 0)

    def loaded() -> None:
        for first in range(0, count, SLICE):
            ours.get(range(first, first + SLICE))

    times = [(_seconds(bare), _seconds(plain), _seconds(loaded)) for _ in range(TURNS + 1)][1:]
    return {
        "loader_images_a_second_a_core": count / statistics.median(ours for _, _, ours in times),
        "loader_over_plain": statistics.median(plain / ours for _, plain, ours in times),
        "loader_over_bare_decoding": statistics.median(bare / ours for bare, _, ours in times),
        "jpeg_bytes": statistics.mean(len(each) for each in encoded),
    }


def by_gpu(device: torch.device, side: int, count: int = IMAGES) -> dict[str, float]:
    """nvJPEG on so many square JPEGs, slice by slice, against the CPU's decoder: how fast, and how far apart.

    On a CPU its own decoder stands in: both are then equal, and the speed means nothing.
    """
    with tempfile.TemporaryDirectory() as scratch:
        draw_photographs(Path(scratch), count, side)
        asked = Data(uri=scratch)
        manifest = read_manifest(asked)
        rows = manifest.split(held_out=0, subset_size=None, subset_seed=0).train
        subset = (open_images(asked, manifest), rows, SIZE, "crop", 0, MAX_PIXELS)
        cpu, gpu = OnDemand(*subset), OnGpu(*subset, device)
        slices_read = [Undecoded(*subset).get(range(first, first + SLICE)) for first in range(0, count, SLICE)]

        def decoded() -> None:
            for each in slices_read:
                gpu.finish(each)
            if device.type == "cuda":
                torch.cuda.synchronize()

        seconds = statistics.median([_seconds(decoded) for _ in range(TURNS + 1)][1:])
        apart = [
            (gpu.finish(each).image_BCHW.cpu().int() - cpu.get(each.index_B.tolist()).image_BCHW.int()).abs()
            for each in slices_read
        ]
    return {
        "images_per_second": count / seconds,
        "largest_difference": float(max(each.max() for each in apart)),
        "mean_difference": statistics.mean(float(each.float().mean()) for each in apart),
    }


def _in_training(folder: Path, fields: Mapping[str, object]) -> dict[str, float]:
    """Training on what the loader brings, against training on one slice again and again."""
    with joined_world() as world:
        bench = prepared(world, 64 if world.device.type == "cuda" else 8, **fields)
        run = RunSpec.model_validate({
            **bench.run.model_dump(), "data": {"uri": str(folder)}, "evaluation": {"held_out": 2},
        })  # fmt: skip
        split = split_of(run)
        in_memory, batches.MAX_BYTES_IN_MEMORY = batches.MAX_BYTES_IN_MEMORY, 0
        images, plan = open_images(run.data, split.manifest), step_plan(run.batch, 0, 1)
        loading = slices(run, images, split.train, plan, range(1000), world.device)
        batches.MAX_BYTES_IN_MEMORY = in_memory
        kept = repeat(next(loading))

        def train(cells: "repeat[Slice] | object") -> Callable[[], None]:
            def once() -> None:
                bench.cells = [Cell(0, 0, next(cells))]  # type: ignore[call-overload]
                bench.pass_once()
                if world.device.type == "cuda":
                    torch.cuda.synchronize()

            return once

        times = [(_seconds(train(kept)), _seconds(train(loading))) for _ in range(TURNS + 1)][1:]
    return {"loaded_over_kept": statistics.median(kept / loaded for kept, loaded in times)}


def _seconds(call: Callable[[], None]) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


if __name__ == "__main__":
    for name, value in measure().items():
        print(f"{name:32} {value:.6g}")  # noqa: T201
