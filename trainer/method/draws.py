"""Every random choice of a run as a function of (seed, epoch, index, view).

Nothing here has state, so workers, world size, prefetching and restarts have no say in what an image's
flip or mask is. Only raw Philox words are used: numpy promises them for good, its distributions it does not.
"""

import math
from enum import IntEnum
from typing import Any, NamedTuple

import numpy as np
import torch

# Half rounds of the network that orders an epoch; every place of a small set is equally likely (test_draws).
ROUNDS = 12


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
    SHAPE = 4


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
    index_B = [_permuted(seed, int(epoch), within_B[epoch_B == epoch], num_images) for epoch in np.unique(epoch_B)]
    return Drawn(epoch_B, np.concatenate(index_B))


def flips(seed: int, drawn: Drawn) -> np.ndarray:
    """Whether each image is mirrored in its epoch, bool [B]: with probability one half, the same for both views."""
    return (_words(_Stream.FLIP, seed, drawn, 0, count=1)[:, 0] >> np.uint64(63)).astype(bool)


def mask_noise(seed: int, drawn: Drawn, view: int, num_patches: int) -> np.ndarray:
    """Noise [B, L], float32 in [0, 1): the patches with the smallest values stay visible."""
    words = _words(_Stream.MASK, seed, drawn, view, count=num_patches)
    return (words >> np.uint64(40)).astype(np.float32) * np.float32(2**-24)


def shape_words(seed: int, drawn: Drawn, view: int, count: int) -> np.ndarray:
    """Random words [B, count], uint64, for the shape of each image's mask; more of them begin with the same ones."""
    return _words(_Stream.SHAPE, seed, drawn, view, count=count)


def weights_generator(seed: int, part: int) -> torch.Generator:
    """Generator for the initial weights of one part of the model.

    Each part has its own, so arms that differ in one part start from equal weights in all the others.
    """
    word = int(_words(_Stream.WEIGHTS, seed, _one(epoch=0, index=part), 0, count=1)[0, 0])
    return torch.Generator().manual_seed(word >> 1)


def _permuted(seed: int, epoch: int, place_B: np.ndarray, num_images: int) -> np.ndarray:
    """Where the epoch's order puts these places: a permutation of 0 .. num_images - 1 that needs no table.

    A generalised Feistel network on the smallest rectangle that holds num_images, walked until it ends inside (Black
    and Rogaway 2002). A table of 20 million places takes seconds an epoch, and 160 MB in every process that loads.
    """
    keys = _words(_Stream.ORDER, seed, _one(epoch, index=0), 0, count=ROUNDS)[0]
    height = math.isqrt(num_images - 1) + 1
    sides = np.uint64(height), np.uint64(-(-num_images // height))
    place_B = _shuffled(place_B.astype(np.uint64), keys, *sides)
    while (outside_B := place_B >= num_images).any():
        place_B[outside_B] = _shuffled(place_B[outside_B], keys, *sides)
    return place_B.astype(np.int64)


def _shuffled(place_B: np.ndarray, keys: np.ndarray, height: np.uint64, width: np.uint64) -> np.ndarray:
    row_B, column_B = np.divmod(place_B, width)
    for row_key, column_key in keys.reshape(-1, 2):
        row_B = (row_B + (_mixed(column_B ^ row_key) >> np.uint64(1))) % height  # halved, so that no sum wraps around
        column_B = (column_B + (_mixed(row_B ^ column_key) >> np.uint64(1))) % width
    return row_B * width + column_B


def _mixed(word_B: np.ndarray) -> np.ndarray:
    """The finalizer of SplitMix64 (Steele, Lea and Flood 2014, with Stafford's constants 13)."""
    for shift, factor in (30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB):
        word_B = (word_B ^ word_B >> np.uint64(shift)) * np.uint64(factor)
    return word_B ^ word_B >> np.uint64(31)


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
