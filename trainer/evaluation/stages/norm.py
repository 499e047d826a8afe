"""BatchNorm for heads that are trained on any number of GPUs and used on single images.

As in pretraining (docs/decisions/0009) the statistics of a forward are those of one slice, whose size the recipe
fixes; ranks that share a slice share its statistics. But a head is used on single images, so it needs running
statistics too: those of a step are the mean over its slices, in their order, and enter once a step.
Letters: B images of a slice that this rank has, R ranks, C channels, S slices of a step, H W places.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import batch_norm

from trainer.evaluation.team import ALONE, Team

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
        self.team: Team = ALONE
        self.seen: list[Tensor] = []
        """Mean and unbiased variance [2, C] of each slice since they were last taken."""

    def forward(self, x_BCHW: Tensor) -> Tensor:
        if not self.training:
            return batch_norm(x_BCHW, self.running_mean, self.running_var, self.weight, self.bias, eps=EPS)
        with torch.no_grad():
            mean_C, var_C, count = _of_slice(x_BCHW, self.team)
            self.seen.append(torch.stack([mean_C, var_C * (count / (count - 1))]))
        if self.team.size == 1:
            return batch_norm(x_BCHW, None, None, self.weight, self.bias, training=True, eps=EPS)
        normed: Tensor = _Shared.apply(x_BCHW, self.weight, self.bias, mean_C, var_C, count, self.team)
        return normed


class _Shared(torch.autograd.Function):
    """Normalisation of a rank's part of a slice by the statistics of all of it (Ioffe & Szegedy 2015, section 3).

    The gradient of a value depends on those of all others through mean and variance: two sums over the slice.
    """

    @staticmethod
    def forward(
        ctx: Any, x_BCHW: Tensor, weight_C: Tensor, bias_C: Tensor, mean_C: Tensor, var_C: Tensor, count: Tensor,
        team: Team,
    ) -> Tensor:  # fmt: skip
        ctx.save_for_backward(x_BCHW, weight_C, mean_C, var_C)
        ctx.count, ctx.team = count, team
        return batch_norm(x_BCHW, mean_C, var_C, weight_C, bias_C, eps=EPS)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        [dy_BCHW] = gradients
        x_BCHW, weight_C, mean_C, var_C = ctx.saved_tensors
        rate_C11 = (var_C + EPS).rsqrt()[:, None, None]
        normed_BCHW = (x_BCHW - mean_C[:, None, None]) * rate_C11
        mine_2C = torch.stack([dy_BCHW.sum(dim=(0, 2, 3)), (dy_BCHW * normed_BCHW).sum(dim=(0, 2, 3))])
        first_C11, second_C11 = (ctx.team.sum(mine_2C) / ctx.count)[..., None, None]
        dx_BCHW = (dy_BCHW - first_C11 - normed_BCHW * second_C11) * rate_C11 * weight_C[:, None, None]
        # Those of weight and bias are this rank's share, and are summed with all other gradients.
        return dx_BCHW, mine_2C[1], mine_2C[0], None, None, None, None


def _of_slice(x_BCHW: Tensor, team: Team) -> tuple[Tensor, Tensor, Tensor | int]:
    """Mean [C] and biased variance [C] of all ranks' parts, and how many values they are of (Chan et al. 1979)."""
    count = x_BCHW.numel() // x_BCHW.shape[1]
    var_C, mean_C = torch.var_mean(x_BCHW, dim=(0, 2, 3), correction=0)
    if team.size == 1:
        return mean_C, var_C, count
    parts_R3C = team.gather(torch.stack([mean_C, var_C, torch.full_like(mean_C, count)]))
    means_RC, vars_RC, counts_RC = parts_R3C.unbind(dim=1)
    total_C = counts_RC.sum(dim=0)
    share_RC = counts_RC / total_C
    mean_C = (share_RC * means_RC).sum(dim=0)
    var_C = (share_RC * (vars_RC + (means_RC - mean_C).square())).sum(dim=0)
    return mean_C, var_C, total_C


def share(network: nn.Module, team: Team) -> None:
    """From now on the team computes every slice of the network together."""
    for norm in _norms(network):
        norm.team = team


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
