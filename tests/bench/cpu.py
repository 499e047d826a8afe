"""How many cells a pass should have on a CPU: OMP_WAIT_POLICY=PASSIVE python -m tests.bench.cpu [--large]

Images/s of the gradient of the same step, made in passes of 1, 2, 4 and 8 cells, in turns in one process; figures are
medians. `--large` takes ViT-B/16 instead of the tiny preset, with few turns: a pass takes seconds. Threads that wait
are to sleep, as those of a run's workers do: they spin otherwise, and where others need the cores one sees only that.
"""

import statistics
import sys
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import product

import torch

from tests.bench.step import Bench, in_turns, of_run, prepared
from trainer.contract import RunSpec
from trainer.contract.presets import TINY
from trainer.elastic.distributed import World, joined_world

SIZES = (1, 2, 4, 8)
TURNS = 7
TEACHERS = {"with a teacher": {"source": "random", "arch": "as-encoder", "taps": [1, 3]}, "without": "none"}


def main() -> None:
    with joined_world() as world:
        for row in large(world) if "--large" in sys.argv else tiny(world):
            print(row, flush=True)  # noqa: T201


def tiny(world: World) -> Iterator[str]:
    """The preset, with a step of 8 slices of 16."""
    yield heading(SIZES)
    for pixels, (name, teacher), threads in product((32, 64), TEACHERS.items(), (1, 2)):
        torch.set_num_threads(threads)
        batch = {"slice": 16, "contrastive_group": 32, "global_batch": 128}
        fields = {"data": {"uri": "/none"}, "input_size": pixels, "teacher": teacher, "batch": batch}
        bench = of_run(world, RunSpec.model_validate({**TINY, **fields}), 1)
        yield line(f"tiny, {pixels} pixels, {name}, slices of 16, threads: {threads}", rates(bench, SIZES, TURNS))


def large(world: World) -> Iterator[str]:
    """The published networks, with slices of 8."""
    yield heading((1, 2))
    yield line(f"ViT-B/16, slices of 8, threads: {torch.get_num_threads()}", rates(prepared(world, 8, 2), (1, 2), 2))


def rates(bench: Bench, sizes: Sequence[int], turns: int) -> list[float]:
    """Images/s by size of a pass."""

    def step(cells: int) -> None:
        bench.parts.cells_a_pass = cells
        bench.pass_once()

    times = in_turns(bench.world, *(partial(step, cells) for cells in sizes), turns=turns)
    return [bench.parts.num_images / statistics.median(seconds) for seconds in zip(*times, strict=True)]


def heading(sizes: Sequence[int]) -> str:
    return f"| images/s | {' | '.join(f'pass of {cells}' for cells in sizes)} |\n| --- |{' --- |' * len(sizes)}"


def line(what: str, found: Sequence[float]) -> str:
    return f"| {what} | {' | '.join(f'{rate:,.4g}' for rate in found)} |"


if __name__ == "__main__":
    main()
