"""Encoded image bytes -> pixels. What is written here decides a run's numbers, so it is all in this file.

    decoder         libjpeg-turbo with its exact integer DCT and smooth chroma upsampling: torchvision's for a JPEG,
                    Pillow's for one that torchvision cannot read (CMYK, odd markers); Pillow for all other formats
    DCT scaling     a JPEG whose short side is at least twice `size` is decoded at 1/2, 1/4 or 1/8 of its width and
                    height, the smallest that still has `size` pixels on both sides (Pillow's draft mode)
    turned upright  by the orientation that Pillow finds in EXIF, or else in XMP
    colours         RGB, 8 bits: grey is repeated, 16-bit grey loses its lower byte, alpha is dropped, CMYK is converted
                    as Pillow does it, without a colour profile
    interpolation   bilinear, antialiased, on 8-bit integers; none where the image has the right size
    max_pixels      more of them, in the file or after resizing, are undecodable
    fit             crop: short side to `size`, then the centre; squash: both sides to `size`

The same bytes and size give the same tensor wherever they are decoded: nothing else is looked at.
"""

import io
import struct
from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import Literal, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate
from torchvision.io import ImageReadMode  # and the operator behind decode_jpeg

from trainer.contract import MAX_PIXELS
from trainer.data import pictures
from trainer.data.pictures import Undecodable, opened

Fit = Literal["crop", "squash"]

# Start-of-frame markers: the others from 0xC0 to 0xCF are tables.
START_OF_FRAME = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
# Marker 0xFF, its kind, the length of the segment; in a frame then bits a sample, height, width, colours.
SEGMENT = struct.Struct(">BBHBHHB")
# By orientation: whether rows become columns, and what is mirrored then, of [..., H, W]. As pictures.TURNS does it.
TURNED: dict[int, tuple[bool, tuple[int, ...]]] = {
    1: (False, ()), 2: (False, (-1,)), 3: (False, (-2, -1)), 4: (False, (-2,)),
    5: (True, ()), 6: (True, (-1,)), 7: (True, (-2, -1)), 8: (True, (-2,)),
}  # fmt: skip
# A segment of EXIF or of XMP, either of which may say how the picture lies; and where the pixels begin.
TAGS, SCAN = 0xE1, 0xDA


class JpegFrame(NamedTuple):
    """What the header of a JPEG says, before it is turned upright."""

    width: int
    height: int
    num_colours: int
    is_tagged: bool = False
    """Whether it may say how it lies."""


def decode(data: bytes, size: int, fit: Fit = "crop", max_pixels: int = MAX_PIXELS) -> Tensor:
    """RGB uint8 [3, size, size], laid out with the three colours of a pixel together (a view of [size, size, 3]).

    Raises Undecodable with the reason. A JPEG that ends too early is undecodable and never half grey, unless
    somebody has closed it with an end marker: then nothing tells it from a whole one.
    """
    frame = jpeg_frame(data)
    image_CHW = None
    if frame is not None and frame.num_colours in (1, 3) and min(frame.width, frame.height) < 2 * size:
        check_pixels(frame.width, frame.height, size, fit, max_pixels)
        image_CHW = _by_torchvision(data, orientation(data) if frame.is_tagged else 1)
    if image_CHW is not None:
        return _fitted(image_CHW, (image_CHW.shape[2], image_CHW.shape[1]), size, fit)
    image_CHW, whole = _by_pillow(data, size, fit, max_pixels)
    return _fitted(image_CHW, whole, size, fit)


def fitted_size(width: int, height: int, size: int, fit: Fit) -> tuple[int, int]:
    """(width, height) an upright image is resized to before the centre [size, size] is cut out."""
    if fit == "squash":
        return size, size
    scale = size / min(width, height)
    return max(size, round(width * scale)), max(size, round(height * scale))


def corner(width: int, height: int, size: int) -> tuple[int, int]:
    """(left, top) of the centre [size, size] in a resized image."""
    return (width - size) // 2, (height - size) // 2


def in_input(point_P2: np.ndarray, whole: tuple[int, int], size: int, fit: Fit) -> np.ndarray:
    """Points [P, 2] in pixels of an upright image of this (width, height) -> in its input, 0..1 from edge to edge."""
    resized = fitted_size(*whole, size, fit)
    return (point_P2 * np.array(resized) / np.array(whole) - np.array(corner(*resized, size))) / size


def check_pixels(width: int, height: int, size: int, fit: Fit, max_pixels: int) -> None:
    """Raises Undecodable, before there is memory for them. What lies on its side has as many."""
    if not (width and height):
        raise Undecodable(f"it has {width} x {height} pixels")
    resized = fitted_size(width, height, size, fit)
    if width * height > max_pixels:
        raise Undecodable(f"it has {width} x {height} pixels; possible: up to {max_pixels} (data.max_pixels)")
    if resized[0] * resized[1] > max_pixels:
        raise Undecodable(
            f"it has {width} x {height} pixels, and {resized[0]} x {resized[1]} once its short side fits; "
            f"possible: up to {max_pixels} (data.max_pixels); data.fit: squash takes any shape"
        )


def upright_size(data: bytes) -> tuple[int, int]:
    """(width, height) of the whole image after turning it upright. Raises Undecodable."""
    with _opened(data) as picture:
        return pictures.upright_size(picture)


def jpeg_frame(data: bytes) -> JpegFrame | None:
    """The frame header of a JPEG; None when these bytes are none, or break off before it."""
    frame, is_tagged = None, False
    for kind, place in jpeg_segments(data):
        is_tagged = is_tagged or kind == TAGS
        if kind in START_OF_FRAME:
            *_, height, width, colours = SEGMENT.unpack_from(data, place)
            frame = frame or JpegFrame(width, height, colours)
    return frame and frame._replace(is_tagged=is_tagged)


def jpeg_segments(data: bytes) -> Iterator[tuple[int, int]]:
    """Kind and place of what stands before the pixels of a JPEG; nothing when these bytes are none."""
    place = 2 if data[:2] == b"\xff\xd8" else len(data)
    while place + SEGMENT.size <= len(data):
        start, kind, length, *_ = SEGMENT.unpack_from(data, place)
        if start != 0xFF or kind == SCAN:
            break
        if kind != 0xFF:
            yield kind, place
        place += 1 if kind == 0xFF else 2 + length  # any number of 0xFF may stand before a marker


def orientation(data: bytes) -> int:
    """1 to 8; 1 where nothing says how the picture lies. Raises Undecodable."""
    with _opened(data) as picture:
        return pictures.orientation(picture)


def _by_torchvision(data: bytes, lies: int) -> Tensor | None:
    """Upright RGB [3, H, W] of a JPEG; None when torchvision cannot read it, which leaves the verdict to Pillow."""
    encoded = torch.frombuffer(bytearray(data), dtype=torch.uint8)  # which cannot take memory it must not write to
    try:
        # The operator itself: the public decode_jpeg around it warns that torchvision hands decoding to torchcodec.
        # Not turned by it: it sees an orientation only in the first segment, and none of XMP.
        image_CHW: Tensor = torch.ops.image.decode_jpeg(encoded, ImageReadMode.RGB.value, False)
    except RuntimeError:
        return None
    return turned(image_CHW, lies)


def turned(image_CHW: Tensor, lies: int) -> Tensor:
    """Upright, of [..., H, W], by its orientation."""
    across, flips = TURNED[lies]
    return (image_CHW.transpose(-2, -1) if across else image_CHW).flip(flips)


def _by_pillow(data: bytes, size: int, fit: Fit, max_pixels: int) -> tuple[Tensor, tuple[int, int]]:
    """Upright RGB [3, H, W] of anything else, and the (width, height) it has when whole.

    A JPEG comes scaled, still with at least `size` pixels a side.
    """
    with _opened(data) as picture:
        check_pixels(*picture.size, size, fit, max_pixels)
        whole = pictures.upright_size(picture)
        picture.draft(None, (size, size))  # which nothing but a JPEG obeys
        pixels = np.array(_rgb(pictures.upright(picture)))
    return torch.from_numpy(pixels).permute(2, 0, 1), whole


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16"):
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
    if image.mode in ("I", "F"):
        raise Undecodable(f"pixels of kind {image.mode} have no range that says what white is")
    if "transparency" in image.info:
        image = image.convert("RGBA")
    return image.convert("RGB")


def _fitted(image_CHW: Tensor, whole: tuple[int, int], size: int, fit: Fit) -> Tensor:
    if image_CHW.shape[1] == image_CHW.shape[2] == size:
        return image_CHW
    # Decided by the whole image, so that landmarks need not know how it was decoded.
    width, height = fitted_size(*whole, size, fit)
    # A batch axis in front of [H, W, C] is what torch takes for its fast layout; behind [C, H, W] it is not.
    batch = image_CHW.permute(1, 2, 0).unsqueeze(0).permute(0, 3, 1, 2)
    if batch.shape[2:] != (height, width):
        batch = interpolate(batch, size=(height, width), mode="bilinear", antialias=True)
    left, top = corner(width, height, size)
    return batch[0, :, top : top + size, left : left + size]


def _opened(data: bytes) -> AbstractContextManager[Image.Image]:
    if not data:
        raise Undecodable("it has no bytes")
    return opened(io.BytesIO(data))
