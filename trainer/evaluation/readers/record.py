"""One annotated face, whatever dataset it is from.

Letters: P points, H W pixels.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
from PIL import Image

from trainer.data.manifest import DataError

Split = Literal["train", "validation", "test"]
Box = tuple[float, float, float, float]


class Mask(Protocol):
    """The classes of an image's pixels, read when they are needed."""

    def read(self) -> np.ndarray:
        """Classes [H, W], uint8. Raises DataError."""


@dataclass(frozen=True)
class Record:
    """One face of one image."""

    image: Path
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

    path: Path

    def read(self) -> np.ndarray:
        return read_grey(self.path)


@dataclass(frozen=True)
class Layers:
    """A mask that is one picture a class, not black where the class is; later ones lie over earlier ones."""

    layers: Sequence[tuple[int, Path]]

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


def read_grey(path: Path) -> np.ndarray:
    """Values [H, W], uint8, of a picture with one channel, or with a palette, or with equal channels."""
    try:
        with Image.open(path) as picture:
            kept = picture if picture.mode in ("L", "P") else picture.convert("L")
            return np.array(kept, dtype=np.uint8)
    except OSError as error:
        raise DataError(f"mask {path} cannot be read: {error}") from error


def expect_file(path: Path, what: str) -> Path:
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
