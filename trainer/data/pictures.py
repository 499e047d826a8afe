"""Pillow, with whatever it raises as one error, and with one word on how a picture lies. No torch."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from PIL import ExifTags, Image, UnidentifiedImageError
from PIL.Image import Transpose

# What Pillow may be asked to open: its other formats run programs (EPS) or hold no photographs.
FORMATS = ("JPEG", "PNG", "BMP", "WEBP", "PPM", "TIFF", "GIF")


# What turns a picture upright, by its EXIF orientation.
TURNS = {
    2: Transpose.FLIP_LEFT_RIGHT, 3: Transpose.ROTATE_180, 4: Transpose.FLIP_TOP_BOTTOM, 5: Transpose.TRANSPOSE,
    6: Transpose.ROTATE_270, 7: Transpose.TRANSVERSE, 8: Transpose.ROTATE_90,
}  # fmt: skip
SIDEWAYS = (5, 6, 7, 8)


class Undecodable(ValueError):
    """These bytes are not a whole image; the message says why."""


@contextmanager
def opened(source: Path | IO[bytes]) -> Iterator[Image.Image]:
    """The picture, whose pixels are read in the block. Raises Undecodable, there as well."""
    try:
        with Image.open(source, formats=FORMATS) as picture:
            yield picture
    except (Undecodable, MemoryError):
        raise
    except UnidentifiedImageError as error:
        raise Undecodable(f"its bytes are no image of a kind that can be read ({', '.join(FORMATS)})") from error
    # Its readers raise whatever their parsing met: SyntaxError, struct.error, EOFError, IndexError, zlib.error, ...
    except Exception as error:
        raise Undecodable(f"{type(error).__name__}: {error}") from error


def orientation(picture: Image.Image) -> int:
    """1 to 8, of the picture's EXIF or, without one, of its XMP; 1 where neither can be read."""
    if picture.format == "TIFF":
        return 1  # Pillow turns it when it loads the pixels, and its size is upright before that
    if picture.format == "PNG":
        picture.load()  # it may stand behind the pixels, and their faults are none of it
    try:
        found = picture.getexif().get(ExifTags.Base.Orientation)
    # Its reader raises whatever it met: SyntaxError, struct.error, ... The pixels may be whole all the same.
    except Exception:
        return 1
    return found if isinstance(found, int) and found in TURNS else 1


def upright(picture: Image.Image) -> Image.Image:
    """Turned as its orientation says."""
    turn = TURNS.get(orientation(picture))
    return picture if turn is None else picture.transpose(turn)


def upright_size(picture: Image.Image) -> tuple[int, int]:
    """(width, height) after turning it upright."""
    return picture.size[::-1] if orientation(picture) in SIDEWAYS else picture.size
