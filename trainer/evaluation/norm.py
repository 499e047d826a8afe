"""BatchNorm for heads that are trained on any number of GPUs and used on single images.

As in pretraining (docs/decisions/0009) the statistics of a forward are those of one slice, whose size the recipe
fixes. But a head is used on single images, so it needs running statistics too: those of a step are the mean over its
slices, in their order, and enter once a step. Neither depends on who has computed which slice.
Letters: B images of a slice, C channels, S slices of a step, H W places.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import batch_norm

EPS = 1e-5
MOMENTUM = 0.1


class SliceNorm(nn.Module):
    """BatchNorm over [B, C, H, W]: of the slice while training, by running statistics in evaluation."""

    running_mean: Tensor
    running_var: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))
        self.seen: list[Tensor] = []
        """Mean and unbiased variance [2, C] of each slice since they were last taken."""

    def forward(self, x_BCHW: Tensor) -> Tensor:
        if not self.training:
            return batch_norm(x_BCHW, self.running_mean, self.running_var, self.weight, self.bias, eps=EPS)
        with torch.no_grad():
            var_C, mean_C = torch.var_mean(x_BCHW, dim=(0, 2, 3))
            self.seen.append(torch.stack([mean_C, var_C]))
        return batch_norm(x_BCHW, None, None, self.weight, self.bias, training=True, eps=EPS)


def take_statistics(network: nn.Module) -> list[Tensor]:
    """Statistics [S, 2, C] of every SliceNorm, by the slices this process has computed; they are forgotten here."""
    taken = []
    for norm in _norms(network):
        taken.append(torch.stack(norm.seen))
        norm.seen.clear()
    return taken


@torch.no_grad()
def settle(network: nn.Module, statistics: Sequence[Tensor]) -> None:
    """Let the statistics [S, 2, C] of all slices of a step, in their order, enter the running ones."""
    for norm, found_S2C in zip(_norms(network), statistics, strict=True):
        mean_C, var_C = found_S2C.mean(dim=0)
        norm.running_mean.lerp_(mean_C, MOMENTUM)
        norm.running_var.lerp_(var_C, MOMENTUM)


def _norms(network: nn.Module) -> list[SliceNorm]:
    return [module for module in network.modules() if isinstance(module, SliceNorm)]
