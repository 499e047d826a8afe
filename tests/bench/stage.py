"""A stage of evaluation on two ranks and on one, in turns, one thread each: python -m tests.bench.stage"""

import json
import os
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from tests.conftest import draw_faces, free_port
from trainer.contract import EncoderSpec
from trainer.contract.recipe import Recipe
from trainer.elastic.distributed import joined_world
from trainer.evaluation.readers.record import Record
from trainer.evaluation.stages.benchmarks import BENCHMARKS
from trainer.evaluation.stages.fitting import Fit
from trainer.evaluation.stages.network import build
from trainer.evaluation.stages.splits import split
from trainer.method.vit import Encoder, initialise

ENCODER = EncoderSpec(width=192, depth=4, heads=3, patch=16)
SIZE, FACES, TESTED, TURNS = 128, 48, 16, 3
RECIPE = Recipe(epochs=1, batch=16, slice=16)


def measure() -> dict[str, float]:
    with tempfile.TemporaryDirectory() as scratch:
        draw_faces(Path(scratch), FACES + TESTED, size=128)
        records = [_record(path, number) for number, path in enumerate(sorted(Path(scratch).glob("*.png")))]
        gpus = torch.cuda.device_count()
        seconds: dict[int, list[float]] = {size: [] for size in (1, 2) if gpus == 0 or size <= gpus}
        for _ in range(TURNS):
            for size, measured in seconds.items():
                measured.append(_epoch(records, size, Path(scratch, "seconds")))
    medians = {size: statistics.median(measured) for size, measured in seconds.items()}
    found = {"stage_epoch_seconds": medians[1]}
    return found | ({"stage_speedup_2_workers": medians[1] / medians[2]} if 2 in medians else {})


def _record(path: Path, number: int) -> Record:
    points = np.random.default_rng(number).uniform(20, 100, size=(68, 2))
    part = "train" if number < FACES else "test"
    return Record(image=path, split=part, box=(4.0, 4.0, 124.0, 124.0), subsets=frozenset(), points_P2=points)


def _epoch(records: list[Record], size: int, file: Path) -> float:
    """Seconds of an epoch and its measurement by so many ranks, which are forks of this process."""
    port, children = free_port(), []
    for rank in range(size):
        if (child := os.fork()) == 0:
            code = 1
            try:
                os.environ.update(
                    RANK=str(rank), WORLD_SIZE=str(size), LOCAL_RANK="0", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port)
                )
                torch.set_num_threads(1)
                _fit(records, file)
                code = 0
            finally:
                os._exit(code)
        children.append(child)
    codes = [os.waitpid(child, 0)[1] for child in children]
    assert not any(codes), codes
    return float(file.read_text())


def _fit(records: list[Record], file: Path) -> None:
    with joined_world() as world:
        encoder = Encoder(ENCODER, SIZE)
        initialise(encoder, torch.Generator().manual_seed(0))
        task = BENCHMARKS["faces68"].task
        network = build(
            ENCODER, encoder.state_dict(), task.num_maps, frozen=False, seed=0, input_size=SIZE, channels=64
        )
        fit = Fit(network, task, split(records, RECIPE), RECIPE, world.device, world)
        world.collect(None)
        started = time.monotonic()
        fit.run_epoch()
        if world.is_first:
            file.write_text(str(time.monotonic() - started))


if __name__ == "__main__":
    print(json.dumps(measure(), indent=1))  # noqa: T201
