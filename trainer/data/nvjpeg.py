"""`data.decoder: nvjpeg`: a rank's GPU decodes the JPEGs, and its worker processes only read them.

Which decoder an image goes to follows from its bytes (`for_gpu`), never from the machine. What is not for the GPU is
decoded by decode.py in the worker processes, exactly as with `cpu`:

    other formats                        nvJPEG knows none
    CMYK, RGB without a colour transform, unusual sampling, more than 8 bits, arithmetic coding
                                         nvJPEG refuses them or takes them for something else
    progressive                          nvJPEG would decode half of it on the CPU, in the one main process
    no end marker                        it may be cut short, which decode.py notices and nvJPEG may not
    short side at least twice `size`     decode.py scales while it decodes, and reads a fraction of the pixels
    a side beyond FARTHEST times `size`  it would take memory, and float32 could not hold the sums (`_resized`)

Turning, resizing and cutting give decode.py's integers on any device; only what comes out of nvJPEG is different.
"""

import logging
import re
from collections import defaultdict
from collections.abc import Sequence
from functools import lru_cache, partial
from threading import Lock
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torchvision.io import ImageReadMode

from trainer.contract import MAX_PIXELS, RunSpec
from trainer.data.decode import (
    START_OF_FRAME,
    Fit,
    check_pixels,
    corner,
    decode,
    fitted_size,
    jpeg_frame,
    jpeg_segments,
    orientation,
    turned,
)
from trainer.data.decoded import FirstDecodable, Jpeg, Shown, Waiting
from trainer.data.manifest import DataError, Images, Rows

logger = logging.getLogger(__name__)

BASELINE, ADOBE = 0xC0, 0xEE
# Samples across and down of brightness and of both colours: 4:4:4, 4:4:0, 4:2:2 and 4:2:0.
SAMPLINGS = (b"\x11\x11\x11", b"\x12\x11\x11", b"\x21\x11\x11", b"\x22\x11\x11")
# The transform of an Adobe segment that says YCbCr, as it is in JPEGs without such a segment.
YCBCR = b"\1"
END = b"\xff\xd9"
FARTHEST = 4
# Errors that say nothing of an image: of CUDA, and of nvJPEG not initialised (1), without memory (5), failed (6) or
# on the wrong machine (7).
OF_THE_MACHINE = re.compile(r"CUDA error|CUDA stream|out of memory|: [1567]\b")


def check_decoder(run: RunSpec, device: torch.device) -> None:
    """Raises DataError where the spec's decoder cannot run: no other takes its place, for its pixels are the run's."""
    if run.data.decoder != "nvjpeg":
        return
    asked = "data.decoder: asked for nvjpeg; possible: cpu on this machine"
    if device.type != "cuda":
        raise DataError(f"{asked}, which has no GPU (its pixels differ, so mcf does not change it by itself)")
    trial = torch.ops.image.encode_jpeg(torch.zeros((3, 16, 16), dtype=torch.uint8), 90)
    try:
        GpuDecoder(device).pixels([trial])
    except RuntimeError as error:
        if not is_rejection(error):
            raise
        raise DataError(f"{asked}, where nvJPEG does not work ({str(error).splitlines()[0]})") from error


def for_gpu(data: bytes, size: int, fit: Fit, max_pixels: int) -> int | None:
    """The orientation of a JPEG that the GPU decodes; None where decode.py does. Raises Undecodable."""
    frame = jpeg_frame(data)
    if frame is None or not data.endswith(END) or not _is_plain(data):
        return None
    if min(frame.width, frame.height) >= 2 * size:
        return None
    check_pixels(frame.width, frame.height, size, fit, max_pixels)
    if max(frame.width, frame.height, *fitted_size(frame.width, frame.height, size, fit)) > FARTHEST * size:
        return None
    return orientation(data) if frame.is_tagged else 1


def _is_plain(data: bytes) -> bool:
    """Whether it is a JPEG as nearly all are: one baseline frame of 8 bits, grey or YCbCr."""
    frames = 0
    for kind, place in jpeg_segments(data):
        name, transform = data[place + 4 : place + 9], data[place + 15 : place + 16]
        if kind == ADOBE and name == b"Adobe" and transform != YCBCR:
            return False
        if kind in START_OF_FRAME:
            frames += 1
            if kind != BASELINE or not _is_usual(data[place : place + 19]):
                return False
    return frames == 1


def _is_usual(frame: bytes) -> bool:
    """Marker (2 bytes), length (2), bits, height (2), width (2), colours; then of each its name, sampling, table."""
    bits, colours, names, samplings = frame[4], frame[9], frame[10::3], frame[11::3]
    if colours == 1:
        return bits == 8
    return bits == 8 and colours == 3 and names != b"RGB" and samplings in SAMPLINGS


class Undecoded:
    """Images of a subset as a worker process reads them: only what is not for the GPU is decoded."""

    def __init__(
        self, images: Images, rows: Rows, size: int, fit: Fit, limit: int, max_pixels: int = MAX_PIXELS
    ) -> None:  # fmt: skip
        self.size = size
        read = partial(_read, size=size, fit=fit, max_pixels=max_pixels)
        self._reading: FirstDecodable[Read] = FirstDecodable(images, rows, limit, read)

    def get(self, indices: Sequence[int]) -> Shown:
        undecodable: dict[int, str] = {}
        shown, reads = zip(*self._reading.each(indices, undecodable), strict=True)
        encoded, jpegs, others = bytearray(), [], []
        for place, read in enumerate(reads):
            if read.image_CHW is None:
                jpegs.append(Jpeg(place, len(encoded), len(encoded) + len(read.data), read.orientation))
                encoded += read.data
            else:
                others.append((place, read.image_CHW))
        image_KCHW = torch.empty((len(others), 3, self.size, self.size), dtype=torch.uint8)
        for number, (_, image_CHW) in enumerate(others):
            image_KCHW[number] = image_CHW
        byte_N = torch.frombuffer(encoded, dtype=torch.uint8) if encoded else torch.empty(0, dtype=torch.uint8)
        waiting = Waiting(byte_N, jpegs, torch.tensor([place for place, _ in others], dtype=torch.int64))
        return Shown(image_KCHW, np.array(shown, np.int64), undecodable, waiting)


class Read(NamedTuple):
    """A JPEG for the GPU, or pixels."""

    data: bytes
    orientation: int
    image_CHW: Tensor | None


def _read(data: bytes, size: int, fit: Fit, max_pixels: int) -> Read:
    lies = for_gpu(data, size, fit, max_pixels)
    return Read(data, 1, decode(data, size, fit, max_pixels)) if lies is None else Read(data, lies, None)


class GpuDecoder:
    """nvJPEG on one GPU. On a CPU, for tests, torchvision's decoder and the same code around it."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        # Between the threads of InMemory: memory that one of them has just let go may still be read by its kernels when
        # nvJPEG, on a stream of its own, writes the next one's image there.
        self._alone = Lock()

    def __call__(self, data: bytes, size: int, fit: Fit, max_pixels: int) -> Tensor:
        """As decode.decode, of an image by itself, whose pixels come back to the CPU."""
        lies = for_gpu(data, size, fit, max_pixels)
        if lies is None:
            return decode(data, size, fit, max_pixels)
        encoded = torch.frombuffer(bytearray(data), dtype=torch.uint8)
        try:
            with self._alone:
                [image_CHW] = self.pixels([encoded])
                return fitted(image_CHW.unsqueeze(0), lies, size, fit)[0].cpu()
        except RuntimeError as error:
            if not is_rejection(error):
                raise
            logger.warning("nvJPEG refuses an image, which is decoded on the CPU: %s", str(error).splitlines()[0])
            return decode(data, size, fit, max_pixels)

    def pixels(self, encoded: list[Tensor]) -> list[Tensor]:
        """RGB uint8 [3, H, W] of each, as it lies. Raises RuntimeError when one of them is refused."""
        # The operators themselves, as in decode.py: the functions around them warn of their end.
        mode = ImageReadMode.RGB.value
        if self.device.type == "cpu":
            return [torch.ops.image.decode_jpeg(each, mode, False) for each in encoded]
        # The device of this thread, which may be one of many: torchvision makes its stream wait for nvJPEG's.
        with torch.cuda.device(self.device):
            # nvJPEG writes on a stream of its own into memory that this one may still be reading for an earlier image.
            torch.cuda.current_stream().synchronize()
            decoded: list[Tensor] = torch.ops.image.decode_jpegs_cuda(encoded, mode, self.device)
        return decoded


def is_rejection(error: RuntimeError) -> bool:
    """Whether an image was refused, and not what would go for any image."""
    return not isinstance(error, torch.OutOfMemoryError) and not OF_THE_MACHINE.search(str(error))


class OnGpu:
    """What worker processes have read (Undecoded), decoded to the end in a rank's main process."""

    def __init__(
        self, images: Images, rows: Rows, size: int, fit: Fit, limit: int, max_pixels: int, device: torch.device
    ) -> None:  # fmt: skip
        self.size, self.fit, self.device = size, fit, device
        self._gpu = GpuDecoder(device)
        one = partial(self._gpu, size=size, fit=fit, max_pixels=max_pixels)
        self._one_by_one: FirstDecodable[Tensor] = FirstDecodable(images, rows, limit, one)

    def finish(self, shown: Shown) -> Shown:
        """All images on the device. Raises as Decoded.get."""
        waiting = shown.waiting
        if waiting is None:
            return shown
        image_BCHW = torch.empty((len(shown.index_B), 3, self.size, self.size), dtype=torch.uint8, device=self.device)
        image_BCHW[waiting.other_K.to(self.device)] = shown.image_BCHW.to(self.device, non_blocking=True)
        if not waiting.jpegs:
            return shown._replace(image_BCHW=image_BCHW, waiting=None)
        try:
            self._all_at_once(waiting, image_BCHW)
        except RuntimeError as error:
            if not is_rejection(error):
                raise
            shown = self._those_that_can_be(shown, waiting, image_BCHW)
        return shown._replace(image_BCHW=image_BCHW, waiting=None)

    def _all_at_once(self, waiting: Waiting, image_BCHW: Tensor) -> None:
        decoded = self._gpu.pixels([waiting.byte_N[jpeg.begin : jpeg.end] for jpeg in waiting.jpegs])
        # Images of one shape are resized together: where they all have it, that is a few launches a slice.
        alike = defaultdict(list)
        for jpeg, image_CHW in zip(waiting.jpegs, decoded, strict=True):
            alike[image_CHW.shape, jpeg.orientation].append((jpeg.place, image_CHW))
        for (_, lies), found in alike.items():
            places, images = zip(*found, strict=True)
            place_N = torch.tensor(places, device=self.device)
            image_BCHW[place_N] = fitted(torch.stack(images), lies, self.size, self.fit)

    def _those_that_can_be(self, shown: Shown, waiting: Waiting, image_BCHW: Tensor) -> Shown:
        """One of them is refused, and torchvision does not say which. They are read again, each by itself."""
        index_B, undecodable = shown.index_B.copy(), dict(shown.undecodable)
        for jpeg in waiting.jpegs:
            [(index, image_CHW)] = self._one_by_one.each([int(index_B[jpeg.place])], undecodable)
            index_B[jpeg.place] = index
            image_BCHW[jpeg.place] = image_CHW.to(self.device)
        return shown._replace(index_B=index_B, undecodable=undecodable)


def fitted(image_NCHW: Tensor, lies: int, size: int, fit: Fit) -> Tensor:
    """uint8 squares of images of one shape and orientation, as decode.py makes them."""
    image_NCHW = turned(image_NCHW, lies)
    height, width = image_NCHW.shape[2:]
    if height == width == size:
        return image_NCHW
    new_width, new_height = fitted_size(width, height, size, fit)
    left, top = corner(new_width, new_height, size)
    # As on a CPU: columns first, and 8 bits in between.
    image_NCHW = _resized(image_NCHW, new_width)[..., left : left + size]
    return _resized(image_NCHW.transpose(2, 3), new_height)[..., top : top + size].transpose(2, 3)


def _resized(image_NCHW: Tensor, width: int) -> Tensor:
    """torch's bilinear antialiased resize of 8-bit integers, which it has on CPUs only, to the last bit.

    It multiplies by whole numbers. Down to a FARTHEST-th of the width the sums are below 2**24, so that float32 holds
    them exactly in any order: a matrix product does the same, unless it is let compute in less than float32.
    """
    if image_NCHW.shape[3] == width:
        return image_NCHW
    weight_VW, bits = resize_weights(image_NCHW.shape[3], width)
    with torch.autocast(image_NCHW.device.type, enabled=False):
        sum_NCHW = image_NCHW.float() @ weight_VW.to(image_NCHW.device)
    return sum_NCHW.add_(1 << (bits - 1)).mul_(2.0**-bits).floor_().clamp_(0, 255).to(torch.uint8)


@lru_cache(256)
def resize_weights(before: int, after: int) -> tuple[Tensor, int]:
    """Of each pixel before in each after, as whole numbers, and the bits that they are shifted by."""
    scale = before / after
    centre_W = scale * (torch.arange(after, dtype=torch.float64) + 0.5)
    distance_VW = (torch.arange(before, dtype=torch.float64).unsqueeze(1) - centre_W + 0.5) / max(scale, 1.0)
    weight_VW = (1 - distance_VW.abs()).clamp_min(0)
    weight_VW /= weight_VW.sum(0)
    largest, bits = float(weight_VW.max()), 0
    while bits < 22 and int(0.5 + largest * (1 << (bits + 1))) < 1 << 15:
        bits += 1
    return (weight_VW * (1 << bits) + 0.5).floor_().float(), bits
