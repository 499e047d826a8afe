"""Every random choice of a run as a function of (seed, epoch, index, view): method 2.2.

Nothing here has state, so workers, world size, prefetching and restarts have no say in what an image's
flip or mask is. Only raw Philox words are used: numpy promises them for good, its distributions it does not.
"""

from enum import IntEnum
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import torch


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


class Drawn(NamedTuple):
    """Which images stand at some positions of a run."""

    epoch_B: np.ndarray
    index_B: np.ndarray
    """Their indices in the subset."""


def images_at(seed: int, first: int, count: int, num_images: int) -> Drawn:
    """The images at positions first, first + 1, ... of the run: epoch after epoch without a gap.

    A global batch may cross from one epoch into the next; no image is dropped and none is seen twice.
    """
    epoch_B, within_B = np.divmod(np.arange(first, first + count), num_images)
    index_B = [_order(seed, int(epoch), num_images)[within_B[epoch_B == epoch]] for epoch in np.unique(epoch_B)]
    return Drawn(epoch_B, np.concatenate(index_B))


def flips(seed: int, drawn: Drawn) -> np.ndarray:
    """Whether each image is mirrored in its epoch, bool [B]: with probability one half, the same for both views."""
    return (_words(_Stream.FLIP, seed, drawn, 0, count=1)[:, 0] >> np.uint64(63)).astype(bool)


def mask_noise(seed: int, drawn: Drawn, view: int, num_patches: int) -> np.ndarray:
    """Noise [B, L], float32 in [0, 1): the patches with the smallest values stay visible."""
    words = _words(_Stream.MASK, seed, drawn, view, count=num_patches)
    return (words >> np.uint64(40)).astype(np.float32) * np.float32(2**-24)


def weights_generator(seed: int, part: int) -> torch.Generator:
    """Generator for the initial weights of one part of the model.

    Each part has its own, so arms that differ in one part start from equal weights in all the others.
    """
    word = int(_words(_Stream.WEIGHTS, seed, _one(epoch=0, index=part), 0, count=1)[0, 0])
    return torch.Generator().manual_seed(word >> 1)


@lru_cache(maxsize=2)  # a batch touches two epochs at most
def _order(seed: int, epoch: int, num_images: int) -> np.ndarray:
    words = _words(_Stream.ORDER, seed, _one(epoch, index=0), 0, count=num_images)[0]
    return np.argsort(words, kind="stable")


def _one(epoch: int, index: int) -> Drawn:
    return Drawn(np.array([epoch]), np.array([index]))


def _words(stream: _Stream, seed: int, drawn: Drawn, view: int, *, count: int) -> np.ndarray:
    """uint64 [B, count]: for each image the first words of its own counter."""
    generator = np.random.Philox(key=[seed, stream])
    state: Any = generator.state
    # The first word of a counter is the one that runs while drawing.
    counters = np.zeros((len(drawn.index_B), 4), np.uint64)
    counters[:, 1], counters[:, 2], counters[:, 3] = view, drawn.index_B, drawn.epoch_B
    words = np.empty((len(counters), count), np.uint64)
    for row, counter in zip(words, counters, strict=True):
        # Setting the counter of one generator takes a sixth of the time of making the next.
        state["state"]["counter"] = counter
        generator.state = state
        row[:] = generator.random_raw(count)
    return words
