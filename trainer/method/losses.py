"""The losses of one slice: teacher features, pixels, and the contrastive loss. Equations: docs/method.md, "Losses"."""

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
        unit, target_unit = (normalize(wide(x), dim=axis, eps=1e-12) for x in (tap, target.detach()))
        total = total + (unit - target_unit).square().mean()
    return total


def info_nce(query_BE: Tensor, key_GE: Tensor, first_label: int | Tensor, temperature: float) -> Tensor:
    """C = 2 T * mean cross-entropy of (q . k / T); the key of row i is row first_label + i of the group's keys.

    Both are scaled to length 1 here. Keys carry no gradient.
    """
    query, key = (normalize(wide(x), dim=1, eps=1e-12) for x in (query_BE, key_GE.detach()))
    label = first_label + torch.arange(query.shape[0], device=query.device)
    return 2 * temperature * cross_entropy(query @ key.T / temperature, label)


def pixel_loss(predicted_BLK: Tensor, patch_BLK: Tensor, counted_BL: Tensor, normalise: str = "image") -> Tensor:
    """Mean squared error over the counted patches, in ImageNet-normalised pixels or in units of each patch (MAE)."""
    wanted_BLK = wide(patch_BLK)
    if normalise == "patch":
        mean, deviation = patch_statistics(wanted_BLK)
        wanted_BLK = (wanted_BLK - mean) / deviation
    error_BL = (wide(predicted_BLK) - wanted_BLK).square().mean(dim=2)
    return (error_BL * counted_BL).sum() / counted_BL.sum()


def patch_statistics(patch_BLK: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and deviation [B, L, 1] of every patch, as MAE takes them: unbiased variance, 1e-6 on it."""
    return patch_BLK.mean(dim=2, keepdim=True), (patch_BLK.var(dim=2, keepdim=True) + 1e-6).sqrt()


def wide(x: Tensor) -> Tensor:
    """float32 at least: half precision would lose the small differences of unit vectors."""
    return x if x.dtype == torch.float64 else x.float()
