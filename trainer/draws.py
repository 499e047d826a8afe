"""Every random choice of a run as a function of (seed, epoch, index, view): method 2.2.

Nothing here has state, so workers, world size, prefetching and restarts have no say in what an image's
flip or mask is. Only raw Philox words are used: numpy promises them for good, its distributions it does not.
"""

from enum import IntEnum
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor


class View(IntEnum):
    """Whose mask a draw is for: the two branches see independent masks of one image."""

    ONLINE = 0
    TARGET = 1


class _Stream(IntEnum):
    # Second half of the Philox key: one stream must never be a stretch of another.
    ORDER = 0
    FLIP = 1
    MASK = 2
    WEIGHTS = 3


def image_at(seed: int, position: int, num_images: int) -> tuple[int, int]:
    """(epoch, index in the subset) of the image at a position of the run: epoch after epoch without a gap.

    A global batch may cross from one epoch into the next; no image is dropped and none is seen twice.
    """
    epoch, within = divmod(position, num_images)
    return epoch, int(_order(seed, epoch, num_images)[within])


def flipped(seed: int, epoch: int, index: int) -> bool:
    """Whether the image is mirrored in this epoch: true with probability one half, the same for both views."""
    return bool(_words(_Stream.FLIP, seed, epoch, index, 0, count=1)[0] >> np.uint64(63))


def mask_noise(seed: int, epoch: int, index: int, view: int, num_patches: int) -> Tensor:
    """Noise [L], float32 in [0, 1): the patches with the smallest values stay visible."""
    words = _words(_Stream.MASK, seed, epoch, index, view, count=num_patches)
    return torch.from_numpy((words >> np.uint64(40)).astype(np.float32) * np.float32(2**-24))


def weights_generator(seed: int, part: int) -> torch.Generator:
    """Generator for the initial weights of one part of the model.

    Each part has its own, so arms that differ in one part start from equal weights in all the others.
    """
    word = int(_words(_Stream.WEIGHTS, seed, 0, part, 0, count=1)[0])
    return torch.Generator().manual_seed(word >> 1)


@lru_cache(maxsize=2)  # a batch touches two epochs at most
def _order(seed: int, epoch: int, num_images: int) -> np.ndarray:
    return np.argsort(_words(_Stream.ORDER, seed, epoch, 0, 0, count=num_images), kind="stable")


def _words(stream: _Stream, seed: int, epoch: int, index: int, view: int, *, count: int) -> np.ndarray:
    # The counter's first word is the one that runs while drawing.
    return np.random.Philox(key=[seed, stream], counter=[0, view, index, epoch]).random_raw(count)
