"""One annotated face, whatever dataset it is from.

Letters: P points, H W pixels.
"""

import io
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal, Protocol, TypeVar

import numpy as np
from PIL import Image

from trainer.data.manifest import DataError
from trainer.data.pictures import Undecodable, opened, upright
from trainer.evaluation.readers.annotations import MAX_PIXELS
from trainer.evaluation.readers.eyes import Eyes
from trainer.evaluation.readers.place import Place

Split = Literal["train", "validation", "test"]
Box = tuple[float, float, float, float]
# Value of a mask where nobody knows the class: such a pixel is neither trained on nor measured.
IGNORED = 255
# Records whose files are read before anything runs: all of them would take minutes.
SAMPLED = 128
# Files that are read at a time: those of a store come one round trip later.
AT_ONCE = 16

Item = TypeVar("Item")
PlaceT = TypeVar("PlaceT", bound=Place)


class Mask(Protocol):
    """The classes of an image's pixels, read when they are needed."""

    def read(self) -> np.ndarray:
        """Classes [H, W], uint8, or IGNORED. Raises DataError."""


@dataclass(frozen=True)
class Record:
    """One face of one image."""

    image: Place
    split: Split
    subsets: frozenset[str] = frozenset()
    """Parts of the test split that are reported by themselves, such as `challenging`."""
    box: Box | None = None
    """Left, top, right, bottom, in the coordinates of the points."""
    points_P2: np.ndarray | None = None
    """Landmarks (x, y), float64, as the datasets count: 0 is the centre of the image's first pixel."""
    mask: Mask | None = None


@dataclass(frozen=True)
class LabelImage:
    """A mask that is one picture whose values are classes."""

    path: Place
    num_classes: int

    def read(self) -> np.ndarray:
        mask_HW = read_grey(self.path)
        if (unknown := np.unique(mask_HW[(mask_HW >= self.num_classes) & (mask_HW != IGNORED)])).size:
            raise DataError(
                f"mask {self.path} has the values {', '.join(map(str, unknown[:5]))}; possible: classes 0 to "
                f"{self.num_classes - 1}, and {IGNORED} where a pixel does not count"
            )
        return mask_HW


@dataclass(frozen=True)
class Layers:
    """A mask that is one picture a class, not black where the class is; later ones lie over earlier ones."""

    layers: Sequence[tuple[int, Place]]

    def read(self) -> np.ndarray:
        mask_HW: np.ndarray | None = None
        for number, path in self.layers:
            layer_HW = read_grey(path)
            if mask_HW is None:
                mask_HW = np.zeros_like(layer_HW)
            if layer_HW.shape != mask_HW.shape:
                raise DataError(f"{path} has {layer_HW.shape} pixels, the layers before it {mask_HW.shape}")
            mask_HW[layer_HW > 0] = number
        if mask_HW is None:
            raise DataError("a mask without a layer")
        return mask_HW


def read_grey(path: Place) -> np.ndarray:
    """Values [H, W], uint8, of a picture with one channel, or with a palette, or with equal channels."""
    try:
        with _opened(path) as picture:
            kind = picture.mode
            pixels = np.array(picture.convert("L") if kind == "1" else picture)
    except Undecodable as error:
        raise DataError(f"mask {path} cannot be read: {error}") from error
    if kind in ("1", "L", "P"):
        return pixels
    if kind not in ("RGB", "RGBA"):
        raise DataError(f"mask {path} has pixels of kind {kind}; possible: 8 bits in one channel, or a palette")
    if (pixels[..., :3] != pixels[..., :1]).any():
        raise DataError(f"mask {path} is in colours; possible: one channel or a palette, whose values are classes")
    return np.ascontiguousarray(pixels[..., 0])


def expect_file(path: PlaceT, what: str) -> PlaceT:
    """The path, if it is a file. Raises DataError that names it and says what it would be."""
    if not path.is_file():
        raise DataError(f"{path} is missing: {what}")
    return path


def expect_images(records: Sequence[Record], where: str) -> list[Record]:
    """The records, if there are any and their images exist. Raises DataError that names the first missing ones."""
    if not records:
        raise DataError(f"{where} names no images")
    missing = sorted({record.image for record in records if not record.image.is_file()})
    if missing:
        names = ", ".join(map(str, missing[:3]))
        raise DataError(f"{where} names {len(missing)} images that are missing, such as {names}")
    return list(records)


def expect_measurable(records: Sequence[Record], eyes: Sequence[Eyes] = ()) -> list[Record]:
    """The records, if boxes and points are such that errors can be measured by them.

    `eyes`: points whose distance is a unit of the benchmark. Raises DataError that names the image.
    """
    for record in records:
        if record.box is not None:
            left, top, right, bottom = record.box
            if not (_within(np.array(record.box)) and right > left and bottom > top):
                raise DataError(f"the face of {record.image} has the box {record.box}, without width or height")
        if (points_P2 := record.points_P2) is None:
            continue
        if not _within(points_P2):
            raise DataError(f"the face of {record.image} has a point that is no place of an image")
        for one, other in eyes:
            if (points_P2[list(one)].mean(axis=0) == points_P2[list(other)].mean(axis=0)).all():
                names = " and ".join(", ".join(map(str, points)) for points in (one, other))
                raise DataError(
                    f"the face of {record.image} has both eyes (points {names}, from 0) on one place; their distance "
                    f"is the unit of the error"
                )
    return list(records)


def spread(items: Sequence[Item], most: int | None) -> list[Item]:
    """So many at most, from all over them; None = all."""
    count = len(items) if most is None else min(most, len(items))
    return [items[place] for place in np.linspace(0, len(items) - 1, num=count, dtype=np.int64)]


def sample(records: Sequence[Record], most: int = SAMPLED) -> None:
    """Read images and masks of a few records, from all over the benchmark. Raises DataError that names the file."""

    def look(record: Record) -> None:
        height, width, _ = read_rgb(record.image).shape
        if record.mask:
            mask_height, mask_width = record.mask.read().shape
            # A mask may be a smaller copy. Of another shape it is that of another image, or lies on its side.
            if abs(mask_width * height - width * mask_height) > max(width, height, mask_width, mask_height):
                raise DataError(
                    f"the mask of {record.image} has {mask_width} x {mask_height} pixels, the image {width} x "
                    f"{height}; possible: a mask of the same shape"
                )

    with ThreadPoolExecutor(AT_ONCE) as pool:
        for _ in pool.map(look, spread(records, most)):
            pass


def read_rgb(path: Place) -> np.ndarray:
    """Upright RGB [H, W, 3], uint8, of an image. Raises DataError."""
    try:
        with _opened(path) as picture:
            return np.array(upright(picture).convert("RGB"))
    except Undecodable as error:
        raise DataError(f"image {path} cannot be read: {error}") from error


@contextmanager
def _opened(path: Place) -> Iterator[Image.Image]:
    """The picture, whose pixels are read in the block. Raises Undecodable, there as well, and StorageError."""
    try:
        encoded = io.BytesIO(path.read_bytes())
    except OSError as error:
        raise Undecodable(str(error)) from error
    with opened(encoded) as picture:
        yield picture


def _within(places: np.ndarray) -> bool:
    """Whether all are numbers, and of pixels: errors of larger ones are infinite."""
    return bool((np.abs(places) <= MAX_PIXELS).all())
