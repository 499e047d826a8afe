"""Do frozen features put faces of one shape side by side? Nearest neighbours, with nothing trained.

Letters: N images, F features.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from trainer.evaluation.team import Dealt

# Features multiplied at a time: what is held in float64 beside the features themselves.
CHUNK = 4096


def nearest(feature_NF: Tensor, contents: Sequence[str], dealt: Dealt | None = None) -> Tensor:
    """Index [N] of every image's nearest other image by cosine of the features, on the CPU.

    Copies of an image, which have the same content, are no neighbours of it. `dealt`: each rank of its team calls this,
    with the features of its own images. Raises ValueError when there are fewer than two different contents.
    """
    place_of = {content: place for place, content in enumerate(dict.fromkeys(contents))}
    if len(place_of) < 2:
        raise ValueError(f"{len(place_of)} different images; a neighbour needs two")
    content_N = torch.tensor([place_of[content] for content in contents], device=feature_NF.device)
    cosine_NN = _products(feature_NF, dealt or Dealt(len(feature_NF)))
    length_N = cosine_NN.diagonal().sqrt()
    cosine_NN = cosine_NN / (length_N[:, None] * length_N).clamp(min=1e-300)
    cosine_NN[content_N[:, None] == content_N] = -torch.inf
    return cosine_NN.argmax(dim=1).cpu()


def _products(feature_nF: Tensor, dealt: Dealt) -> Tensor:
    """Products [N, N] of all pairs, float64: half precision would tie neighbours that differ."""
    total_NN = torch.zeros(dealt.count, dealt.count, dtype=torch.float64, device=feature_nF.device)
    for part_NC in dealt.my_columns(feature_nF, CHUNK):
        chunk_NC = part_NC.double()
        total_NN += chunk_NC @ chunk_NC.T
    return dealt.team.sum(total_NN)
