"""A stage of evaluation on two ranks and on one, in turns, one thread each: python -m tests.bench.stage

And a step of the published stage, by itself, for what a GPU makes of it (tests/bench/sections.py).
"""

import json
import os
import socket
import statistics
import tempfile
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from tests.bench.loader import draw_photographs
from tests.bench.step import in_turns
from trainer.contract import ENCODERS, EncoderSpec
from trainer.contract.recipe import Recipe
from trainer.elastic.distributed import World, joined_world
from trainer.evaluation.readers.record import Record
from trainer.evaluation.stages.benchmarks import BENCHMARKS
from trainer.evaluation.stages.crop import SIZE as CROP
from trainer.evaluation.stages.crop import Crop
from trainer.evaluation.stages.fitting import Fit
from trainer.evaluation.stages.network import CHANNELS, INPUT_SIZE, build
from trainer.evaluation.stages.splits import Splits, split
from trainer.evaluation.stages.tasks import Example
from trainer.method.vit import Encoder, initialise
from trainer.tracking.cards import card

ENCODER = EncoderSpec(width=192, depth=4, heads=3, patch=16)
SIZE, FACES, TESTED, TURNS = 128, 48, 16, 3
RECIPE = Recipe(epochs=1, batch=16, slice=16)


@dataclass(frozen=True)
class Scale:
    """Of a stage whose step is measured."""

    encoder: EncoderSpec
    input_size: int
    channels: int
    batch: int
    crop: int


PUBLISHED = Scale(EncoderSpec(**ENCODERS["vit-b16"]), INPUT_SIZE, CHANNELS, Recipe().batch, CROP)
TINY = Scale(EncoderSpec(width=48, depth=4, heads=3, patch=8), 64, 16, 4, 64)


def measure() -> dict[str, float]:
    with tempfile.TemporaryDirectory() as scratch:
        draw_photographs(Path(scratch), FACES + TESTED, size=128)
        records = [_record(path, number) for number, path in enumerate(sorted(Path(scratch).glob("*.jpg")))]
        gpus = torch.cuda.device_count()
        seconds: dict[int, list[float]] = {size: [] for size in (1, 2) if gpus == 0 or size <= gpus}
        for _ in range(TURNS):
            for size, measured in seconds.items():
                measured.append(_epoch(records, size, Path(scratch, "seconds")))
    medians = {size: statistics.median(measured) for size, measured in seconds.items()}
    found = {"stage_epoch_seconds": medians[1]}
    return found | ({"stage_speedup_2_workers": medians[1] / medians[2]} if 2 in medians else {})


def one_step(world: World, scale: Scale) -> dict[str, float]:
    """Of alignment, in float32 as it is, on faces that lie ready in memory."""
    encoder = Encoder(scale.encoder, scale.input_size)
    initialise(encoder, torch.Generator().manual_seed(0))
    task, recipe = BENCHMARKS["300w"].task, Recipe(epochs=1, batch=scale.batch, slice=scale.batch)
    network = build(
        scale.encoder, encoder.state_dict(), task.num_maps, frozen=False, seed=0, input_size=scale.input_size,
        channels=scale.channels,
    )  # fmt: skip
    record = _record(Path("/none"), 0)
    fit = Fit(network, task, Splits((record,), scale.batch, (), (record,), ""), recipe, world.device)
    generator = torch.Generator().manual_seed(0)
    faces = [
        Example(
            record, torch.rand(3, scale.crop, scale.crop, generator=generator),
            torch.rand(task.num_maps, 2, generator=generator), Crop(torch.eye(3, dtype=torch.float64), scale.crop),
            (scale.crop, scale.crop),
        )
        for _ in range(scale.batch)
    ]  # fmt: skip
    step = partial(fit._step, 0, 0, faces)
    with FlopCounterMode(display=False) as counter:
        step()
    seconds = statistics.median(taken for (taken,) in in_turns(world, step))
    found = {
        "images_per_second": scale.batch / seconds,
        "GFLOP_an_image": counter.get_total_flops() / scale.batch / 1e9,
    }
    if world.device.type == "cuda" and (known := card(torch.cuda.get_device_name(world.device))):
        found["share_of_float32_peak"] = counter.get_total_flops() / seconds / known.float32
        found["share_of_bf16_peak"] = counter.get_total_flops() / seconds / known.bf16
    return found


def _record(path: Path, number: int) -> Record:
    points = np.random.default_rng(number).uniform(20, 100, size=(68, 2))
    part = "train" if number < FACES else "test"
    return Record(image=path, split=part, box=(4.0, 4.0, 124.0, 124.0), subsets=frozenset(), points_P2=points)


def _epoch(records: list[Record], size: int, file: Path) -> float:
    """Seconds of an epoch and its measurement by so many ranks, which are forks of this process."""
    port, children = _free_port(), []
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


def _free_port() -> int:
    # That of tests.conftest would need pytest on a machine that only measures.
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


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
