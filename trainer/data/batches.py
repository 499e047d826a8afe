"""Images of a run, slice by slice, in the order that draws.py decides.

A subset that fits is decoded once and kept as bytes; a larger one is decoded by worker processes. What is left to
do with a whole batch, mirroring and normalising, happens on the device. With `data.decoder: nvjpeg` so does decoding
(nvjpeg.py).
"""

import os
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from trainer.contract import IMAGENET_MEAN, IMAGENET_STD, Mask, RunSpec
from trainer.data.decode import decode
from trainer.data.decoded import Decoded, InMemory, OnDemand, Shown, Waiting
from trainer.data.kept import kept_pixels
from trainer.data.landmarks import FaceParts, Measured, Points
from trainer.data.manifest import DataError, Images, Rows, Split, read_manifest
from trainer.data.nvjpeg import GpuDecoder, OnGpu, Undecoded
from trainer.data.usermasks import UserMask
from trainer.method.draws import Drawn, View, flips, images_at
from trainer.method.grid import StepPlan, first_position
from trainer.method.masks import shaped_noise
from trainer.store.objects import StorageError
from trainer.usercode.loading import UserCodeError

# Decoded subsets up to this size are held in memory by every rank.
MAX_BYTES_IN_MEMORY = 512 << 20
MAX_WORKERS = 16


class Slice(NamedTuple):
    """One cell's images, with both branches' mask noise."""

    image_BCHW: Tensor
    """uint8, mirrored where drawn."""
    online_BL: Tensor
    target_BL: Tensor
    index_B: Tensor
    """Which image of the subset each is; on the CPU, as flipped_B."""
    flipped_B: Tensor
    undecodable: Mapping[int, str]
    """Images that others stand in for: index in the subset -> key and reason."""
    waiting: Waiting | None = None
    """What is still to be decoded, as of a Shown; None on the device."""


def split_of(run: RunSpec) -> Split:
    """The run's images: trained on, and held out. Raises DataError when the data is not what the spec says."""
    manifest = read_manifest(run.data)
    if run.data.sha256 not in (None, manifest.digest):
        raise DataError(
            f"{run.data.uri} has changed since the run was submitted: digest {manifest.digest}, "
            f"the spec says {run.data.sha256}"
        )
    return manifest.split(
        held_out=run.evaluation.held_out, subset_size=run.data.subset_size, subset_seed=run.subset_seed
    )


def normalise(image_BCHW: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """uint8 -> ImageNet-normalised [N, 3, H, W], contiguous however the bytes lay."""
    mean, std = (
        torch.tensor(x, dtype=dtype, device=image_BCHW.device).view(1, 3, 1, 1) for x in (IMAGENET_MEAN, IMAGENET_STD)
    )
    return (image_BCHW.to(dtype, memory_format=torch.contiguous_format) / 255 - mean) / std


def slices(
    run: RunSpec, images: Images, rows: Rows, plan: StepPlan, steps: range, device: torch.device, ahead: int = 0,
    points: Points | None = None,
) -> Iterator[Slice]:  # fmt: skip
    """This rank's cells of these steps, in the plan's order, on the device.

    `ahead`: how many cells are on their way to a GPU before they are asked for. `points`: what masks of parts go by.

    The worker processes are started by this call. Raises DataError when an image has changed or too many cannot be
    decoded, StorageError when one cannot be read, UserCodeError when a mask's code fails.
    """
    cells = [(group.index, index) for group in plan.groups for index in group.slices]
    workers = decoders(run, len(rows))
    gpu = run.data.decoder == "nvjpeg"
    limit = max_undecodable(run, len(rows))
    parts = None
    if points:
        images = Measured(images, {rows[index] for index in points.indices})
        parts = FaceParts(run, points, images, rows)
    subset = (images, rows, run.input_size, run.data.fit, limit, run.data.max_pixels)
    decoded: Decoded
    if workers:
        decoded = (Undecoded if gpu else OnDemand)(*subset)
    elif gpu:
        decoded = InMemory(*subset, GpuDecoder(device))
    else:
        with kept_pixels(rows, run.input_size, run.data.fit, run.data.max_pixels) as kept:
            decoded = InMemory(*subset, decode, kept)
    loader = DataLoader(
        _Cells(run, decoded, len(rows), parts, user_masks(run)),
        batch_size=None,
        sampler=(first_position(run.batch, step, *cell) for step in steps for cell in cells),
        num_workers=workers,
        pin_memory=device.type == "cuda",
    )
    return on_device(iter(loader), device, ahead, OnGpu(*subset, device) if gpu and workers else None)


def user_masks(run: RunSpec) -> dict[View, UserMask]:
    """Of the views whose masks are user code. Raises UserCodeError, StorageError."""
    return {view: UserMask(mask) for view, mask in masks_of(run).items() if mask.kind == "code"}


def masks_of(run: RunSpec) -> dict[View, Mask]:
    return {View.ONLINE: run.mask, View.TARGET: run.target_mask}


def decoders(run: RunSpec, num_images: int) -> int:
    """Processes that decode for this rank; 0 where its images fit into memory, decoded."""
    if num_images * 3 * run.input_size**2 <= MAX_BYTES_IN_MEMORY:
        return 0
    return max(1, min(MAX_WORKERS, int(cores()) // ranks_here() - 1))


def ranks_here() -> int:
    """Workers of this node."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def cores() -> float:
    """CPUs that this node has for all of them: the machine's, or fewer where its container is limited to those."""
    here = float(len(os.sched_getaffinity(0)))
    with suppress(OSError, ValueError):  # ValueError: `max`, which is no limit
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        return min(here, int(quota) / int(period))
    return here


def max_undecodable(run: RunSpec, num_images: int) -> int:
    """Images of the subset that may be undecodable."""
    return int(run.data.max_undecodable * num_images)


Item = Slice | DataError | StorageError | UserCodeError
"""What comes out of a process that decodes."""


class _Cells(Dataset):
    """Cell, not yet mirrored, by the position of its first image. An error is an item, to be raised where it is seen:
    out of a worker process its text would be a traceback."""

    def __init__(
        self, run: RunSpec, decoded: Decoded, num_images: int, parts: FaceParts | None, user: Mapping[View, UserMask]
    ) -> None:  # fmt: skip
        self.run, self.decoded, self.num_images, self.parts, self.user = run, decoded, num_images, parts, user

    def __getitem__(self, first: int) -> Item:
        run = self.run
        drawn = images_at(run.seed, first, run.batch.slice, self.num_images)
        try:
            shown = self.decoded.get(drawn.index_B.tolist())
            mirrored_B = flips(run.seed, drawn) if run.data.flip else np.zeros(run.batch.slice, bool)
            online_BL, target_BL = (
                torch.from_numpy(self._noise(view, drawn, shown.index_B, mirrored_B)) for view in View
            )
        except (DataError, StorageError, UserCodeError) as error:
            return error
        return Slice(
            shown.image_BCHW, online_BL, target_BL, torch.from_numpy(shown.index_B), torch.from_numpy(mirrored_B),
            shown.undecodable, shown.waiting,
        )  # fmt: skip

    def _noise(self, view: View, drawn: Drawn, shown_B: np.ndarray, mirrored_B: np.ndarray) -> np.ndarray:
        run = self.run
        mask = masks_of(run)[view]
        num_visible = run.visible_patches(None if view == View.ONLINE else run.contrastive.target_mask_ratio)
        part_BL = self.parts.of(view, shown_B, mirrored_B) if self.parts and mask.kind == "parts" else None

        def scores(noise_BL: np.ndarray) -> np.ndarray:
            points = self.parts.points(view, shown_B, mirrored_B) if self.parts else [None] * len(shown_B)
            return self.user[view].scores(noise_BL, run.input_size // run.encoder.patch, num_visible, points)

        return shaped_noise(mask, num_visible, run.seed, drawn, view, run.num_patches, part_BL, scores)


def on_device(
    cells: Iterator[Item], device: torch.device, ahead: int, gpu: OnGpu | None = None
) -> Iterator[Slice]:  # fmt: skip
    """The cells on the device. To a GPU they travel, and there they are decoded, on a stream of their own, beside what
    is computed."""
    if device.type != "cuda":
        yield from (_on_device(cell, device, gpu) for cell in cells)
        return
    stream, coming = torch.cuda.Stream(device), deque[tuple[Slice, torch.cuda.Event]]()

    def arrived() -> Slice:
        cell, event = coming.popleft()
        computing = torch.cuda.current_stream(device)
        computing.wait_event(event)
        for part in cell.image_BCHW, cell.online_BL, cell.target_BL:
            part.record_stream(computing)  # its memory is not used again before that stream is done with it
        return cell

    for cell in cells:
        with torch.cuda.stream(stream):
            coming.append((_on_device(cell, device, gpu), stream.record_event()))
        if len(coming) > ahead:
            yield arrived()
    while coming:
        yield arrived()


def _on_device(cell: Item, device: torch.device, gpu: OnGpu | None) -> Slice:
    if isinstance(cell, Exception):
        raise cell
    if gpu:
        cell = _decoded(cell, gpu)
    parts = cell.image_BCHW, cell.online_BL, cell.target_BL, cell.flipped_B
    image_BCHW, online_BL, target_BL, mirror_B = (part.to(device, non_blocking=True) for part in parts)
    image_BCHW = torch.where(mirror_B.view(-1, 1, 1, 1), image_BCHW.flip(3), image_BCHW)
    return cell._replace(image_BCHW=image_BCHW, online_BL=online_BL, target_BL=target_BL)


def _decoded(cell: Slice, gpu: OnGpu) -> Slice:
    shown = gpu.finish(Shown(cell.image_BCHW, cell.index_B.numpy(), dict(cell.undecodable), cell.waiting))
    return cell._replace(
        image_BCHW=shown.image_BCHW, index_B=torch.from_numpy(shown.index_B), undecodable=shown.undecodable,
        waiting=None,
    )  # fmt: skip
