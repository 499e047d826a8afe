"""What keeps a GPU from its peak: images/s by slice, eager and compiled, and how busy it is: python -m tests.bench.gpu

A GPU that waits between kernels waits for Python to launch them: larger slices and compiled networks launch fewer.
"""

import statistics

import torch
from torch.profiler import ProfilerActivity, profile

from tests.bench.step import PEAKS, Bench, in_turns, prepared
from trainer.distributed import World, joined_world

SLICES = (64, 128, 256, 512)
# Of the published recipe with a ViT-B/16: tests/bench/step.py counts them.
FLOP_AN_IMAGE = 1.747e11


def main() -> None:
    print(f"{'slice':>6} {'':8} {'images/s':>9} {'peak':>6} {'kernels':>8} {'busy':>6} {'GiB':>6}")  # noqa: T201
    with joined_world() as world:
        for images in SLICES if world.device.type == "cuda" else (2, 4):
            for compiled in False, True:
                _measure(world, images, compiled)


def _measure(world: World, images: int, compiled: bool) -> None:
    bench = prepared(world, images)
    if compiled:
        for part in bench.parts.model.encoder, bench.parts.model.decoder, bench.parts.teacher:
            assert part
            part.compile()
        assert bench.parts.target
        bench.parts.target.encoder.compile()
    seconds = statistics.median(taken for (taken,) in in_turns(world, bench.cell_once))
    flop = images * FLOP_AN_IMAGE
    cuda = world.device.type == "cuda"
    peak = next((peak for part, peak in PEAKS.items() if cuda and part in torch.cuda.get_device_name()), float("nan"))
    kernels, busy = _profiled(bench, seconds)
    memory = torch.cuda.max_memory_allocated() / 2**30 if cuda else float("nan")
    print(  # noqa: T201
        f"{images:6} {'compiled' if compiled else 'eager':8} {images / seconds:9.1f} {flop / seconds / peak:6.2f} "
        f"{kernels:8} {busy:6.2f} {memory:6.1f}",
        flush=True,
    )
    if cuda:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def _profiled(bench: Bench, seconds: float) -> tuple[int, float]:
    """Kernels of one cell, and the share of so many seconds that they take."""
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiler:
        bench.cell_once()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
    kernels = [event for event in profiler.events() if event.device_type == torch.autograd.DeviceType.CUDA]
    return len(kernels), sum(kernel.device_time for kernel in kernels) / 1e6 / seconds


if __name__ == "__main__":
    main()
