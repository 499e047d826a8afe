"""Decoded images that this node keeps, so that each is decoded once for all runs that are here.

MCF_PIXEL_CACHE_GIB   room for them on the disk, in MCF_CACHE_DIR/pixels; 0 = none are kept

They are kept by row of the manifest and for one size, so runs on nested subsets of the same images share them. They
are those that decode.py makes, to the last bit. An image that cannot be decoded is not kept, and neither is one whose
bytes are not those that the manifest names. A kept image is not read again.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import PIL
import torch
import torchvision
from torch import Tensor

from trainer.data import decode, pictures
from trainer.data.images.cache import bytes_allowed
from trainer.data.manifest import Images, Manifest, Rows
from trainer.data.slots import BOOT, Slots, open_slots
from trainer.store.cachedir import cache_folder

DEFAULT_GIB = 4.0


class KeptPixels:
    """uint8 [size, size, 3] by row of a manifest."""

    def __init__(self, manifest: Manifest, slots: Slots) -> None:
        self._manifest, self._slots = manifest, slots

    def load(self, images: Images, row: int, into_HWC: Tensor, decoded: Callable[[bytes], Tensor]) -> bool:
        """Put an image there; whether it was kept. Raises what reading and decoding raise."""
        flat = into_HWC.numpy().reshape(-1)
        if self._slots.read(row, flat):
            return True
        with self._slots.claimed(row):
            if self._slots.read(row, flat):  # another process has decoded it meanwhile
                return True
            encoded = images.get(row)
            into_HWC.copy_(decoded(encoded).permute(1, 2, 0))
            if hashlib.sha256(encoded).hexdigest() == self._manifest.content(row):
                self._slots.write(row, flat)
        return False


@contextmanager
def kept_pixels(
    rows: Rows | Sequence[int], size: int, fit: decode.Fit, max_pixels: int
) -> Iterator[KeptPixels | None]:  # fmt: skip
    """What this node keeps of these rows; None where it keeps nothing, or they are few enough to have no manifest.

    Raises DataError when MCF_PIXEL_CACHE_GIB is no number.
    """
    limit = bytes_allowed("MCF_PIXEL_CACHE_GIB", DEFAULT_GIB)
    if limit <= 0 or not isinstance(rows, Rows):
        yield None
        return
    identity = json.dumps([rows.manifest.digest, len(rows.manifest), size, fit, max_pixels, decoder(), BOOT])
    path = cache_folder() / "pixels" / hashlib.sha256(identity.encode()).hexdigest()
    slots = open_slots(path, len(rows.manifest), size * size * 3, limit, rows.rows)
    try:
        yield KeptPixels(rows.manifest, slots) if slots else None
    finally:
        if slots:
            slots.close()


@cache
def decoder() -> list[str]:
    """All that decides an image's pixels, beside its bytes and what is asked for."""
    sources = [hashlib.sha256(Path(str(module.__file__)).read_bytes()).hexdigest() for module in (decode, pictures)]
    return [*sources, torch.__version__, torchvision.__version__, PIL.__version__]
