"""The losses of one slice: teacher features or masked pixels, and the contrastive loss. Equations: method 1.2."""

from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize


def feature_loss(predicted: list[Tensor], wanted: list[Tensor], along: Literal["tokens", "channels"]) -> Tensor:
    """P = sum over taps of mean((g(prediction) - g(image))^2), g = features scaled to length 1 along one axis.

    Taps are [B, P, D]. Published: along tokens, so that each channel is compared as a map, cls included. Then one
    tap contributes 2 / P * (1 - mean over images and channels of the cosine). No gradient reaches `wanted`.
    """
    axis = 1 if along == "tokens" else 2
    total = torch.zeros((), device=predicted[0].device)
    for tap, target in zip(predicted, wanted, strict=True):
        unit, target_unit = (normalize(_wide(x), dim=axis, eps=1e-12) for x in (tap, target.detach()))
        total = total + (unit - target_unit).square().mean()
    return total


def info_nce(query_BE: Tensor, key_GE: Tensor, first_label: int, temperature: float) -> Tensor:
    """C = 2 T * mean cross-entropy of (q . k / T); the key of row i is row first_label + i of the group's keys.

    Both are scaled to length 1 here. Keys carry no gradient.
    """
    query, key = (normalize(_wide(x), dim=1, eps=1e-12) for x in (query_BE, key_GE.detach()))
    label = first_label + torch.arange(query.shape[0], device=query.device)
    return 2 * temperature * cross_entropy(query @ key.T / temperature, label)


def pixel_loss(predicted_BLK: Tensor, patch_BLK: Tensor, hidden_BL: Tensor) -> Tensor:
    """Mean squared error over the hidden patches alone, in ImageNet-normalised pixels.

    Not MAE's per-patch-normalised pixels: so the predictions of all arms live in one space, and their
    reconstructions can be shown, and measured by PSNR, beside each other.
    """
    error_BL = (_wide(predicted_BLK) - patch_BLK).square().mean(dim=2)
    return (error_BL * hidden_BL).sum() / hidden_BL.sum()


def _wide(x: Tensor) -> Tensor:
    """float32 at least: half precision would lose the small differences of unit vectors."""
    return x if x.dtype == torch.float64 else x.float()
