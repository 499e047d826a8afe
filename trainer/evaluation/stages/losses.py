"""What a head is trained on: docs/evaluation.md, "What is trained on top?".

Letters: B images, P points, K classes, H W places of a map, S pixels of a side of a crop.
"""

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy, interpolate

from trainer.evaluation.readers.record import IGNORED
from trainer.evaluation.stages.heads import centres, soft_argmax

# Side of the target maps, and how far a point reaches on them: four deviations.
MAP_SIZE = 128
REACH_PIXELS = 5.0


def alignment_loss(logit_BPHW: Tensor, point_BP2: Tensor) -> Tensor:
    """Mean distance of centroids from points plus cross-entropy of maps, one to one; points 0..1 of the crop."""
    distance = (soft_argmax(logit_BPHW) - point_BP2).norm(dim=2).mean()
    large_BPHW = interpolate(logit_BPHW, size=(MAP_SIZE, MAP_SIZE), mode="bilinear", align_corners=False)
    return distance + binary_cross_entropy_with_logits(large_BPHW, point_maps(point_BP2))


def point_maps(point_BP2: Tensor, size: int = MAP_SIZE, reach: float = REACH_PIXELS) -> Tensor:
    """Maps [B, P, H, W] with exp(-8 r^2 / reach^2) around each point, r pixels from it, and 0 beyond the reach."""
    along_S = centres(size, point_BP2) * size
    x_BPS, y_BPS = ((along_S - size * place_BP.unsqueeze(2)).square() for place_BP in point_BP2.unbind(dim=2))
    squared_BPHW = y_BPS.unsqueeze(3) + x_BPS.unsqueeze(2)
    return torch.exp(-8 * squared_BPHW / reach**2) * (squared_BPHW <= reach**2)


def parsing_loss(logit_BKHW: Tensor, mask_BSS: Tensor) -> Tensor:
    """Cross-entropy over all pixels of the crop, background and outside of the image included, by their number.

    An ignored pixel adds nothing. It is still one of the number, so that a pixel weighs the same in every slice,
    whatever part of it a rank computes.
    """
    large_BKSS = interpolate(logit_BKHW, size=mask_BSS.shape[1:], mode="bilinear", align_corners=False)
    return cross_entropy(large_BKSS, mask_BSS.long(), ignore_index=IGNORED, reduction="sum") / mask_BSS.numel()
