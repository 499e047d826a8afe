"""Decoding a subset into memory, as a run does at its start, with and without what the node has kept of it.

python -m tests.bench.decoded     in turns in one process: without, the first run, and a run after it
"""

import os
import shutil
import statistics
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image

from trainer.contract import MAX_PIXELS, Data
from trainer.data.batches import MAX_BYTES_IN_MEMORY
from trainer.data.decode import decode
from trainer.data.decoded import InMemory
from trainer.data.kept import kept_pixels
from trainer.data.manifest import open_images, read_manifest

TURNS = 3


class Case(NamedTuple):
    """Images of one kind, and the side they are decoded to."""

    width: int
    height: int
    suffix: str
    size: int
    count: int


CASES = (
    Case(112, 112, "jpg", 112, 1000), Case(178, 218, "jpg", 112, 800), Case(224, 224, "jpg", 224, 400),
    Case(1024, 1024, "jpg", 224, 40), Case(1024, 1024, "png", 224, 10),
)  # fmt: skip


def draw(folder: Path, case: Case) -> None:
    """Images that compress like photographs: smooth shapes and some texture."""
    rng = np.random.default_rng(0)
    folder.mkdir()
    for number in range(case.count):
        coarse = Image.fromarray(rng.integers(0, 256, (12, 12, 3), dtype=np.uint8))
        smooth = np.asarray(coarse.resize((case.width, case.height), Image.Resampling.BICUBIC), np.float32)
        pixels = (smooth + rng.normal(0, 8, smooth.shape)).clip(0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{number:05d}.{case.suffix}", quality=90)


def measure(case: Case) -> str:
    """A row: CPU time of a subset that fills the memory it may take, and shares of CPU and clock time."""
    with tempfile.TemporaryDirectory() as scratch:
        folder, cache = Path(scratch) / "images", Path(scratch) / "cache"
        os.environ["MCF_CACHE_DIR"] = str(cache)
        draw(folder, case)
        data = Data(uri=str(folder))
        manifest = read_manifest(data)
        rows, images = manifest.split(held_out=0, subset_size=None, subset_seed=0).train, open_images(data, manifest)

        def load(gib: str) -> tuple[float, float]:
            os.environ["MCF_PIXEL_CACHE_GIB"] = gib
            clock, used = time.perf_counter(), time.process_time()
            with kept_pixels(rows, case.size, "crop", MAX_PIXELS) as kept:
                InMemory(images, rows, case.size, "crop", 0, MAX_PIXELS, decode, kept)
            return time.process_time() - used, time.perf_counter() - clock

        load("0")
        turns = []
        for _ in range(TURNS):
            shutil.rmtree(cache / "pixels", ignore_errors=True)
            turns.append((load("0"), load("4"), load("4")))
    used = np.array(turns)  # [turns, 3 kinds, CPU or clock]
    share = [[statistics.median(used[:, kind, what] / used[:, 0, what]) for kind in (1, 2)] for what in (0, 1)]
    full = MAX_BYTES_IN_MEMORY // (3 * case.size**2) / case.count
    cells = [f"{statistics.median(used[:, 0, 0]) * full:.0f} s", *(f"{each:.2f}" for each in (*share[0], *share[1]))]
    return f"| {case.width}x{case.height} {case.suffix} | {case.size} | {' | '.join(cells)} |"


if __name__ == "__main__":
    torch.set_num_threads(1)
    print("| images | size | CPU time of 512 MiB | first run | later run | first, by clock | later, by clock |")  # noqa: T201
    print("| --- | --- | --- | --- | --- | --- | --- |")  # noqa: T201
    for each in CASES:
        print(measure(each), flush=True)  # noqa: T201
