"""What only a GPU shows: python -m pytest tests/integration/test_gpu.py, on a machine that has one."""

from pathlib import Path

import pytest
import torch
from PIL import Image

from tests.integration.torchruns import (
    final_state,
    newest_copy,
    small,
    torchrun,
    wait_until,
    workers_of,
)  # fmt: skip
from tests.unit.trainer.data.test_decode import encoded, picture
from trainer.contract import MAX_PIXELS, RunSpec
from trainer.data.decode import decode
from trainer.data.nvjpeg import GpuDecoder, for_gpu
from trainer.store.objects import DirectoryStore
from trainer.store.rundir import read_result, read_sessions
from trainer.tracking.cards import card

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU, and this machine has none")

STEPS = 100
# How far apart the weights of two runs may end, as a share of their size: kernels add up in any order.
APART = {"float32": 1e-2, "bf16": 5e-2}


@pytest.mark.parametrize("precision", APART)
@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
def test_a_run_whose_worker_is_killed_ends_as_one_that_was_left_alone(
    tiny_faces: Path, tmp_path: Path, precision: str, compiled: bool
) -> None:
    schedule = {"unit": "steps", "length": STEPS, "warmup": 4}
    cadence = {"checkpoint_steps": STEPS, "log_steps": 10, "picture_steps": 100}
    run = small(tiny_faces, schedule=schedule, precision=precision, cadence=cadence)
    alone, killed = (train(run, tmp_path / name, kill, compiled) for name, kill in [("alone", False), ("killed", True)])

    stores = [DirectoryStore(str(folder)) for folder in (alone, killed)]
    assert [len(read_sessions(store)) for store in stores] == [1, 2]
    assert read_sessions(stores[1])[1].first_step > 0
    for store in stores:
        result = read_result(store)
        assert result
        assert result.software["gpu"] == torch.cuda.get_device_name()
        assert read_sessions(store)[0].device == "cuda:0"
    speed = read_sessions(stores[0])[0].speed
    assert speed.images == (STEPS - 1) * run.batch.global_batch
    assert 0 <= speed.waiting_seconds < speed.seconds
    assert (speed.peak_share is None) == (card(torch.cuda.get_device_name()) is None)
    states = [final_state(folder, STEPS) for folder in (alone, killed)]
    weights = [torch.cat([v.flatten().double().cpu() for n, v in s.items() if n.startswith("/model/")]) for s in states]
    apart = float((weights[0] - weights[1]).norm() / weights[0].norm())
    print(f"{precision}, {'compiled' if compiled else 'eager'}: weights {apart:.2e} apart")  # noqa: T201
    assert apart < APART[precision]


@pytest.mark.parametrize("side", [224, 250])
def test_nvjpeg_gives_the_picture_that_the_cpu_gives(side: int) -> None:
    """The right colours, the right way round. How far apart single pixels are is measured (tests/bench/gpu.py)."""
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encoded(picture(side, side + 20), quality=95, exif=exif)
    assert for_gpu(data, 224, "crop", MAX_PIXELS) == 6
    apart = GpuDecoder(torch.device("cuda", 0))(data, 224, "crop", MAX_PIXELS).int() - decode(data, 224).int()
    assert apart.abs().float().mean() < 3


def train(run: RunSpec, folder: Path, kill: bool, compiled: bool) -> Path:
    """By a cluster's agent, whose workers are forked: CUDA must not have been touched before."""
    compiling = {} if compiled else {"MCF_COMPILE": "0"}  # a GPU's default is to compile
    with torchrun(run, folder, workers=1, **compiling) as agent:
        if kill:
            wait_until(lambda: newest_copy(folder, run) > 0, agent, folder / "log", 240)
            [worker] = workers_of(agent)
            worker.kill()
        assert agent.wait(300) == 0, (folder / "log").read_text()[-3000:]
    return folder
