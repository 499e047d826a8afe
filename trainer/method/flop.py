"""How much arithmetic training on an image takes, counted without doing any of it."""

import copy

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from trainer.contract import RunSpec
from trainer.method.mcf import Mcf, Target


def flop_an_image(run: RunSpec, teacher: nn.Module | None) -> float:
    """FLOP of the matrix products of a step, for each of its images: keys, forward, backward, the teacher's two looks.

    What fused attention computes a second time in its backward is not in it. `teacher`: the run's; it is not called.
    """
    count, group = run.batch.slice, run.batch.contrastive_group
    outline = teacher and without_memory(teacher)
    with torch.device("meta"):
        model = Mcf(run)
        target = Target(run, model) if run.contrastive.weight > 0 else None
        image = torch.empty(count, 3, run.input_size, run.input_size)
        noise = torch.empty(count, run.num_patches)
        first = torch.zeros(1, dtype=torch.long)
        keys = torch.empty(1, group, run.contrastive.dim) if target else None
        with FlopCounterMode(display=False) as counter:
            if target:
                target.of_slices(image, noise, 1)
            model.of_slices(image, noise, keys, first, outline).total.sum().backward()
    return float(counter.get_total_flops()) / count


def without_memory(network: nn.Module) -> nn.Module:
    """The same network on the meta device, where tensors have a shape and no values."""
    known = {
        id(tensor): nn.Parameter(tensor.to("meta"), requires_grad=False)
        if isinstance(tensor, nn.Parameter)
        else tensor.to("meta")
        for tensor in (*network.parameters(), *network.buffers())
    }
    return copy.deepcopy(network, known)
