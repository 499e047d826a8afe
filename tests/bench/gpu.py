"""What keeps a GPU from its peak: images/s by slice, eager and compiled, and how busy it is: python -m tests.bench.gpu

A GPU that is idle between kernels waits for Python to launch the next one.
"""

import statistics
import sys

import torch
from torch.profiler import ProfilerActivity, profile

from tests.bench.step import Bench, flop_of_pass, in_turns, peak_of, prepared
from trainer.elastic.distributed import World, joined_world

SLICES = (64, 128, 256, 512)


def main() -> None:
    if not torch.cuda.is_available():
        sys.exit("needs a GPU, and this machine has none")
    print(f"{'slice':>6} {'':8} {'images/s':>9} {'peak':>6} {'kernels':>8} {'busy':>6} {'GiB':>6}")  # noqa: T201
    with joined_world() as world:
        for images in SLICES:
            for compiled in False, True:
                measure(world, images, compiled)


def measure(world: World, images: int, compiled: bool) -> None:
    torch.compiler.reset()  # it gives up after a few sizes of one function
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    bench = prepared(world, images)
    flop = flop_of_pass(bench)
    if compiled:
        bench.parts.compile()
    seconds = statistics.median(taken for (taken,) in in_turns(world, bench.pass_once))
    kernels, busy = _profiled(bench, seconds)
    share = flop / seconds / (peak_of(world.device) or float("nan"))
    memory = torch.cuda.max_memory_allocated() / 2**30
    print(  # noqa: T201
        f"{images:6} {'compiled' if compiled else 'eager':8} {images / seconds:9.1f} {share:6.2f} "
        f"{kernels:8} {busy:6.2f} {memory:6.1f}",
        flush=True,
    )


def _profiled(bench: Bench, seconds: float) -> tuple[int, float]:
    """Kernels of one cell, and the share of so many seconds that they take."""
    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        bench.pass_once()
        torch.cuda.synchronize()
    kernels = [event for event in profiler.events() if event.device_type == torch.autograd.DeviceType.CUDA]
    return len(kernels), sum(kernel.device_time for kernel in kernels) / 1e6 / seconds


if __name__ == "__main__":
    main()
