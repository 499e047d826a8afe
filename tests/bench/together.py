"""Two processes that share one device, over gloo: their gradient against that of one process.

A run refuses more processes than GPUs, and its GPUs talk by NCCL, which refuses two processes on one. So this is the
only way to see the path of several ranks on CUDA tensors where there is a single GPU.
"""

import os
import traceback
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

from tests.bench.step import RANDOM, of_run
from trainer.contract import RunSpec
from trainer.contract.presets import TINY
from trainer.elastic.distributed import World

# Four cells in two groups: each group's keys are gathered from both processes.
BATCH = {"slice": 16, "contrastive_group": 32, "global_batch": 64}


def run_of(**fields: object) -> RunSpec:
    """The tiny preset with a teacher that was not trained."""
    teacher = {"source": "random", "arch": "as-encoder", "taps": [1, 3]}
    return RunSpec.model_validate({**TINY, **RANDOM, "teacher": teacher, **fields, "batch": BATCH})


def gradient_apart(run: RunSpec, folder: Path, cuda: bool) -> float:
    """How far the gradient of two processes is from one process's, as a share of its length.

    Forks: this process must not have touched the GPU.
    """
    alone = gradient(run, folder, 1, 1, cuda)
    shared = gradient(run, folder, 2, 2, cuda)
    return float((shared - alone).norm() / alone.norm())


def gradient(run: RunSpec, folder: Path, size: int, cells_a_pass: int, cuda: bool) -> Tensor:
    """Of a step by so many processes, float64; as rank 0 has it."""
    file, meeting = folder / f"gradient-{size}", folder / f"meeting-{size}"
    children = []
    for rank in range(size):
        if (child := os.fork()) == 0:
            code = 1
            try:
                found = _as_rank(rank, size, meeting, run, cells_a_pass, cuda)
                if rank == 0:
                    torch.save(found, file)
                code = 0
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(code)
        children.append(child)
    codes = [os.waitpid(child, 0)[1] for child in children]
    if any(codes):
        raise RuntimeError(f"of {size} processes on one device these failed: {codes}")
    found: Tensor = torch.load(file, weights_only=True)
    return found


def _as_rank(rank: int, size: int, meeting: Path, run: RunSpec, cells_a_pass: int, cuda: bool) -> Tensor:
    device = torch.device("cuda", 0) if cuda else torch.device("cpu")
    if not cuda:
        torch.set_num_threads(1)
    store = dist.FileStore(str(meeting), size)  # type: ignore[attr-defined]
    dist.init_process_group("gloo", store=store, rank=rank, world_size=size)
    world = World(rank, size, device, rank, _patient=dist.new_group())
    bench = of_run(world, run, cells_a_pass)
    bench.pass_once()
    gradients = [weight.grad for weight in bench.parts.model.parameters() if weight.grad is not None]
    return torch.cat([each.flatten().double().cpu() for each in gradients])
