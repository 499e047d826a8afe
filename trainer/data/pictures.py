"""Pillow, with whatever it raises as one error. No torch."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from PIL import Image, UnidentifiedImageError

# What Pillow may be asked to open: its other formats run programs (EPS) or hold no photographs.
FORMATS = ("JPEG", "PNG", "BMP", "WEBP", "PPM", "TIFF", "GIF")


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
