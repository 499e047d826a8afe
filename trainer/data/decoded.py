"""Pixels of a subset by index: kept in memory where they fit, else decoded when asked for.

An image that cannot be decoded is replaced by the next one of the subset, so that a slice stays whole and which
images it shows follows from the data alone; the index of what is shown and every reason go along.
"""

import logging
import math
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Generic, NamedTuple, Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import get_worker_info

from trainer.contract import MAX_PIXELS
from trainer.data.decode import Fit, decode
from trainer.data.images.sorting import read_ahead
from trainer.data.kept import KeptPixels, kept_pixels
from trainer.data.landmarks import Measured
from trainer.data.manifest import DataError, Images, Rows
from trainer.data.pictures import Undecodable

logger = logging.getLogger(__name__)

NAMED = 5
# Pids that follow each other begin far apart (Knuth's multiplicative hashing).
GOLDEN = 2654435769

Pixels = TypeVar("Pixels")
Decoder = Callable[[bytes, int, Fit, int], Tensor]
"""As decode.decode, by position. Raises Undecodable."""


class Jpeg(NamedTuple):
    """One that a GPU has still to decode."""

    place: int
    """In the slice."""
    begin: int
    """Of its bytes among those of the others."""
    end: int
    orientation: int


class Waiting(NamedTuple):
    """What a GPU has still to decode of a slice (nvjpeg.py)."""

    byte_N: Tensor
    """uint8, one JPEG behind the other."""
    jpegs: Sequence[Jpeg]
    other_K: Tensor
    """Places of those that are decoded already."""


class Shown(NamedTuple):
    """What stands at some indices of a subset."""

    image_BCHW: Tensor
    """uint8"""
    index_B: np.ndarray
    """Whose pixels they are: the index asked for, or that of the image shown in its place."""
    undecodable: dict[int, str]
    """What could not be decoded on the way: index -> key and reason."""
    waiting: Waiting | None = None
    """Not None: image_BCHW has only those that no GPU decodes."""


class Decoded(Protocol):
    def get(self, indices: Sequence[int]) -> Shown:
        """Raises DataError when an image is gone or none can be shown, StorageError when it cannot be read."""


class InMemory:
    """All images of a subset, decoded once by all cores."""

    def __init__(
        self, images: Images, rows: Rows | Sequence[int], size: int, fit: Fit, limit: int,
        max_pixels: int = MAX_PIXELS, decode: Decoder = decode, kept: KeptPixels | None = None,
    ) -> None:  # fmt: skip
        """`kept`: of these rows, where the decoder is the CPU's.

        Raises DataError when more than `limit` images cannot be decoded, or all.
        """
        self.image_NHWC = torch.zeros((len(rows), size, size, 3), dtype=torch.uint8)
        self.reasons: dict[int, str] = {}

        def decoded(data: bytes) -> Tensor:
            return decode(data, size, fit, max_pixels)

        def load(index: int) -> bool:
            """Whether it was kept."""
            row, into_HWC, was_kept = rows[index], self.image_NHWC[index], False
            try:
                if kept is None:
                    into_HWC.copy_(decoded(images.get(row)).permute(1, 2, 0))
                elif (was_kept := kept.load(images, row, into_HWC, decoded)) and isinstance(images, Measured):
                    images.measure(row)
            except Undecodable as error:
                self.reasons[index] = f"{images.key(row)}: {error}"
            return was_kept

        with ThreadPoolExecutor(os.cpu_count()) as pool:
            found = sum(pool.map(load, _from_anywhere(len(rows)) if kept else range(len(rows))))
        if kept:
            logger.info("%d of %d images were decoded on this node before", found, len(rows))
        if rows and len(self.reasons) > min(limit, len(rows) - 1):
            raise too_many([self.reasons[index] for index in sorted(self.reasons)], len(rows))

    def get(self, indices: Sequence[int]) -> Shown:
        undecodable: dict[int, str] = {}
        shown = np.array([self._first_decodable(index, undecodable) for index in indices], np.int64)
        return Shown(self.image_NHWC[torch.from_numpy(shown)].permute(0, 3, 1, 2), shown, undecodable)

    def _first_decodable(self, index: int, undecodable: dict[int, str]) -> int:
        while index in self.reasons:
            undecodable[index] = self.reasons[index]
            index = (index + 1) % len(self.image_NHWC)
        return index


class OnDemand:
    """Images of a subset, read and decoded every time."""

    def __init__(
        self, images: Images, rows: Rows, size: int, fit: Fit, limit: int, max_pixels: int = MAX_PIXELS
    ) -> None:  # fmt: skip
        self.size = size
        self._reading = FirstDecodable(images, rows, limit, partial(decode, size=size, fit=fit, max_pixels=max_pixels))

    def get(self, indices: Sequence[int]) -> Shown:
        undecodable: dict[int, str] = {}
        image_BHWC = _empty((len(indices), self.size, self.size, 3))
        shown = np.empty(len(indices), np.int64)
        for place, (index, pixels_CHW) in enumerate(self._reading.each(indices, undecodable)):
            shown[place] = index
            image_BHWC[place] = pixels_CHW.permute(1, 2, 0)
        return Shown(image_BHWC.permute(0, 3, 1, 2), shown, undecodable)


class FirstDecodable(Generic[Pixels]):
    """Images of a subset, read and decoded by `decode`, which raises Undecodable."""

    def __init__(self, images: Images, rows: Rows, limit: int, decode: Callable[[bytes], Pixels]) -> None:
        self.images, self.rows, self.limit, self.decode = images, rows, limit, decode
        self._reasons: dict[int, str] = {}

    def each(self, indices: Sequence[int], undecodable: dict[int, str]) -> Iterator[tuple[int, Pixels]]:
        """What is shown at these indices, and its own index. Raises DataError when too many cannot be decoded."""
        # All of them first: threads that read while this one decodes would take the interpreter from it.
        read = read_ahead if self.images.is_remote else map
        encoded = list(read(self.images.get, [self.rows[index] for index in indices]))
        for index, data in zip(indices, encoded, strict=True):
            yield self._first_decodable(index, data, undecodable)

    def _first_decodable(self, index: int, data: bytes, undecodable: dict[int, str]) -> tuple[int, Pixels]:
        while True:
            try:
                return index, self.decode(data)
            except Undecodable as error:
                undecodable[index] = self._reasons[index] = f"{self.rows.key(index)}: {error}"
            if len(self._reasons) > min(self.limit, len(self.rows) - 1):
                raise too_many(list(self._reasons.values()), len(self.rows))
            index = (index + 1) % len(self.rows)
            data = self.images.get(self.rows[index])


def _from_anywhere(count: int) -> list[int]:
    """All places, beginning at one of this process: runs that start together then divide the images among them."""
    first = os.getpid() * GOLDEN % max(count, 1)
    return [*range(first, count), *range(first)]


def _empty(shape: tuple[int, ...]) -> Tensor:
    """uint8; in a worker process in memory it shares with the trainer, so that a slice is not copied on its way."""
    if get_worker_info() is None:
        return torch.empty(shape, dtype=torch.uint8)
    storage = torch.UntypedStorage._new_shared(math.prod(shape), device="cpu")
    return torch.empty(0, dtype=torch.uint8).set_(storage).view(shape)


def load_images(
    images: Images, rows: Rows | Sequence[int], size: int, fit: Fit, max_pixels: int = MAX_PIXELS
) -> Tensor:  # fmt: skip
    """Decoded images, uint8 [N, 3, size, size]; in place of one that cannot be decoded stands the next of the rows.

    Raises DataError when none can be decoded.
    """
    with kept_pixels(rows, size, fit, max_pixels) as kept:
        loaded = InMemory(images, rows, size, fit, limit=len(rows), max_pixels=max_pixels, kept=kept)
    for _, what in sorted(loaded.reasons.items()):
        logger.warning("another image stands in for one that cannot be decoded: %s", what)
    return loaded.get(range(len(rows))).image_BCHW


def too_many(undecodable: Sequence[str], num_images: int) -> DataError:
    """The error of a subset of which more cannot be decoded than the spec allows; of each its key and the reason."""
    return DataError(
        f"at least {len(undecodable)} of {num_images} images cannot be decoded ({'; '.join(undecodable[:NAMED])}); "
        f"`mcf data verify` lists all: mend or leave them out, or raise data.max_undecodable"
    )
