"""The teacher's features of the training images, computed once: for runs that see a small subset many times.

A fifth of a step is the teacher looking at images it has seen before. With MCF_TEACHER_CACHE_GIB more than
0, what it makes of an image and of its mirror image is kept in a file under MCF_CACHE_DIR, shared by this node's
workers and by later runs with the same teacher and subset. The losses are those of a run without it.
"""

import hashlib
import json
import math
import uuid
from contextlib import suppress
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from trainer.contract import RunSpec
from trainer.data.batches import Slice
from trainer.data.images.cache import bytes_allowed
from trainer.data.slots import BOOT, Slots, open_slots
from trainer.store.cachedir import cache_folder
from trainer.teachers import Teacher


def cache_bytes() -> int:
    """What MCF_TEACHER_CACHE_GIB allows; 0 = no cache. Raises DataError when it is no number."""
    return bytes_allowed("MCF_TEACHER_CACHE_GIB", 0)


class TapCache:
    """Features by image of the subset and whether it is mirrored; images beyond the limit are computed every time."""

    def __init__(self, run: RunSpec, teacher: Teacher, subset_digest: str, num_images: int, limit: int) -> None:
        """`limit`: bytes of all such files on this node together; the least recently used make room."""
        self.teacher, self.num_images, self.limit = teacher, num_images, limit
        self.states = 2 if run.data.flip else 1
        where = next(teacher.buffers()).device
        kind = torch.cuda.get_device_name(where) if where.type == "cuda" else "cpu"
        # Everything the features are a function of, up to the rounding of another device or version.
        self.name = _sha256(
            teacher.identity,
            subset_digest,
            run.input_size,
            run.data.fit,
            run.precision,
            kind,
            torch.__version__,
            BOOT,
            # Where a row lies.
            num_images,
            self.states,
        )
        self._path = cache_folder() / "taps" / self.name
        self._file: _File | None = None
        # Whoever makes room removes it at any time.
        with suppress(FileNotFoundError):
            self._open(Layout(**json.loads(self._path.with_suffix(".json").read_text())))

    @torch.no_grad()
    def wanted(self, cell: Slice, image_BCHW: Tensor) -> list[Tensor]:
        """teacher(image_BCHW), the slice's normalised images; each image goes through the teacher once."""
        place_B = (cell.index_B * self.states + (cell.flipped_B if self.states == 2 else 0)).numpy()
        missing_B, taps = np.ones(len(place_B), bool), list[Tensor]()
        if self._file:
            missing_B, taps = self._file.get(place_B, image_BCHW.device)
        if not missing_B.any():
            return taps
        new = torch.from_numpy(missing_B)
        image_NCHW = image_BCHW[new.to(image_BCHW.device)]
        computed = self.teacher(image_NCHW)
        if self._file is None:
            self._open(Layout.of(computed))
        if self._file and self._file.put(place_B[missing_B], computed) and self.states == 2:
            # Or the next epochs would still meet images in the state they had not been in.
            self._file.put(place_B[missing_B] ^ 1, self.teacher(image_NCHW.flip(3)))
        if missing_B.all():
            return computed
        for tap, missing in zip(taps, computed, strict=True):
            tap[new.to(tap.device)] = missing
        return taps

    def _open(self, layout: "Layout") -> None:
        slots = open_slots(self._path, self.num_images * self.states, layout.row_bytes, self.limit)
        if slots is None:
            return
        self._file = _File(slots, layout)
        # Two pods on one folder may have the same pid. A full disk costs the next run a pass of the teacher.
        aside = self._path.with_suffix(f".{uuid.uuid4().hex}")
        with suppress(OSError):
            aside.write_text(json.dumps(layout._asdict()))
            aside.replace(self._path.with_suffix(".json"))


class Layout(NamedTuple):
    """What a row of a file holds; only the first features tell."""

    shapes: list[list[int]]
    dtype: str

    @classmethod
    def of(cls, taps: list[Tensor]) -> "Layout":
        return cls([list(tap.shape[1:]) for tap in taps], str(taps[0].dtype).removeprefix("torch."))

    @property
    def kind(self) -> torch.dtype:
        return getattr(torch, self.dtype)

    @property
    def sizes(self) -> list[int]:
        """Bytes of each tap."""
        return [math.prod(shape) * self.kind.itemsize for shape in self.shapes]

    @property
    def row_bytes(self) -> int:
        return sum(self.sizes)


class _File:
    """Features of an image in a state as a row of bytes."""

    def __init__(self, slots: Slots, layout: Layout) -> None:
        self._slots, self._layout = slots, layout

    def get(self, row_B: np.ndarray, device: torch.device) -> tuple[np.ndarray, list[Tensor]]:
        """Which rows are missing, bool [B], and taps [B, P, D]: nonsense for those."""
        layout = self._layout
        row_BX = torch.empty((len(row_B), layout.row_bytes), dtype=torch.uint8)
        missing_B = ~np.array([self._slots.read(*asked) for asked in zip(row_B.tolist(), row_BX.numpy(), strict=True)])
        parts = row_BX.to(device).split(layout.sizes, dim=1)
        taps = [p.contiguous().view(layout.kind).view(-1, *s) for p, s in zip(parts, layout.shapes, strict=True)]
        return missing_B, taps

    def put(self, row_B: np.ndarray, taps: list[Tensor]) -> bool:
        """Whether there was room."""
        row_BX = torch.cat([tap.contiguous().flatten(1).view(torch.uint8) for tap in taps], dim=1).cpu().numpy()
        return all(self._slots.write(*kept) for kept in zip(row_B.tolist(), row_BX, strict=True))


def _sha256(*parts: object) -> str:
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()
