"""Images of a run, slice by slice, in the order that draws.py decides.

A subset that fits is decoded once and kept as bytes; a larger one is decoded by worker processes.
"""

import io
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from trainer.draws import View, flipped, image_at, mask_noise
from trainer.grid import StepPlan, first_position
from trainer.manifest import DataError, Images, Rows, Split, read_manifest
from trainer.spec import IMAGENET_MEAN, IMAGENET_STD, RunSpec

# Decoded subsets up to this size are held in memory by every rank.
MAX_BYTES_IN_MEMORY = 512 << 20


class Slice(NamedTuple):
    """One cell's images, flipped where drawn, with both branches' mask noise."""

    image_BCHW: Tensor
    """uint8"""
    online_BL: Tensor
    target_BL: Tensor

    def to(self, device: torch.device) -> "Slice":
        return Slice(*(part.to(device, non_blocking=True) for part in self))


def split_of(run: RunSpec) -> Split:
    """The run's images: trained on, and held out. Raises DataError when the data is not what the spec says."""
    manifest = read_manifest(run.data)
    if run.data.sha256 not in (None, manifest.digest):
        raise DataError(
            f"{run.data.uri} has changed since the run was submitted: digest {manifest.digest}, "
            f"the spec says {run.data.sha256}"
        )
    return manifest.split(
        held_out=run.evaluation.held_out, subset_size=run.data.subset_size, subset_seed=run.data.subset_seed
    )


def load_images(images: Images, rows: Sequence[int] | Rows, input_size: int) -> Tensor:
    """Decoded images, uint8 [N, 3, input_size, input_size]. Raises DataError naming an image that is none."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        pixels = list(pool.map(lambda row: decode(images.get(row), images.key(row), input_size), rows))
    stacked = np.stack(pixels) if pixels else np.zeros((0, input_size, input_size, 3), np.uint8)
    return torch.from_numpy(stacked).permute(0, 3, 1, 2).contiguous()


def decode(data: bytes, key: str, input_size: int) -> np.ndarray:
    """RGB uint8 [H, W, 3]: upright, short side resized (bilinear, antialiased), centre crop."""
    try:
        with Image.open(io.BytesIO(data)) as opened:
            image = ImageOps.exif_transpose(opened).convert("RGB")
    except (UnidentifiedImageError, OSError, ValueError, Image.DecompressionBombError) as error:
        raise DataError(f"image {key!r} cannot be decoded: {error}") from error
    scale = input_size / min(image.size)
    width, height = (max(input_size, round(side * scale)) for side in image.size)
    left, top = (width - input_size) // 2, (height - input_size) // 2
    resized = image.resize((width, height), Image.Resampling.BILINEAR)
    return np.asarray(resized.crop((left, top, left + input_size, top + input_size)))


def normalise(image_BCHW: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """uint8 -> ImageNet-normalised [N, 3, H, W]."""
    mean, std = (
        torch.tensor(x, dtype=dtype, device=image_BCHW.device).view(1, 3, 1, 1) for x in (IMAGENET_MEAN, IMAGENET_STD)
    )
    return (image_BCHW.to(dtype) / 255 - mean) / std


def slices(
    run: RunSpec, images: Images, rows: Rows, plan: StepPlan, steps: range, device: torch.device
) -> Iterator[Slice]:
    """This rank's cells of these steps, in the plan's order, on the device."""
    cells = [(group.index, index) for group in plan.groups for index in group.slices]
    in_memory = len(rows) * 3 * run.input_size**2 <= MAX_BYTES_IN_MEMORY
    source = _InMemory(images, rows, run.input_size) if in_memory else _OnDemand(images, rows, run.input_size)
    loader = DataLoader(
        _Cells(run, source, len(rows)),
        batch_size=None,
        sampler=(first_position(run.batch, step, *cell) for step in steps for cell in cells),
        num_workers=0 if in_memory else _num_workers(),
        pin_memory=device.type == "cuda",
    )
    return (cell.to(device) for cell in loader)


class _InMemory:
    def __init__(self, images: Images, rows: Rows, input_size: int) -> None:
        self.image_NCHW = load_images(images, rows, input_size)

    def get(self, indices: Sequence[int]) -> Tensor:
        return self.image_NCHW[list(indices)]


class _OnDemand:
    def __init__(self, images: Images, rows: Rows, input_size: int) -> None:
        self.images, self.rows, self.input_size = images, rows, input_size

    def get(self, indices: Sequence[int]) -> Tensor:
        rows = [self.rows[index] for index in indices]
        pixels = [decode(self.images.get(row), self.images.key(row), self.input_size) for row in rows]
        return torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2).contiguous()


class _Cells(Dataset[Slice]):
    """Cell by the position of its first image."""

    def __init__(self, run: RunSpec, source: _InMemory | _OnDemand, num_images: int) -> None:
        self.run, self.source, self.num_images = run, source, num_images

    def __getitem__(self, first: int) -> Slice:
        run = self.run
        drawn = [image_at(run.seed, first + i, self.num_images) for i in range(run.batch.slice)]
        image_BCHW = self.source.get([index for _, index in drawn])
        if run.data.flip:
            mirrored = torch.tensor([flipped(run.seed, *which) for which in drawn])
            image_BCHW = torch.where(mirrored.view(-1, 1, 1, 1), image_BCHW.flip(3), image_BCHW)
        online_BL, target_BL = (
            torch.stack([mask_noise(run.seed, *which, view, run.num_patches) for which in drawn]) for view in View
        )
        return Slice(image_BCHW, online_BL, target_BL)


def _num_workers() -> int:
    ranks_here = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return max(1, min(16, (os.cpu_count() or 1) // ranks_here - 1))
