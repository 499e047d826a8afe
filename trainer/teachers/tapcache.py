"""The teacher's features of the training images, computed once: for runs that see a small subset many times.

A fifth of a step is the teacher looking at images it has seen before. With MCF_TEACHER_CACHE_GIB more than
0, what it makes of an image and of its mirror image is kept in a file under MCF_CACHE_DIR, shared by this node's
workers and by later runs with the same teacher and subset. The losses are those of a run without it.
"""

import fcntl
import hashlib
import json
import math
import os
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from trainer.contract import RunSpec
from trainer.data.batches import Slice
from trainer.data.images.cache import locked
from trainer.data.manifest import DataError
from trainer.store.cachedir import cache_folder
from trainer.teachers import Teacher

BOOT = Path("/proc/sys/kernel/random/boot_id")


def cache_bytes() -> int:
    """What MCF_TEACHER_CACHE_GIB allows; 0 = no cache. Raises DataError when it is no number."""
    asked = os.environ.get("MCF_TEACHER_CACHE_GIB", "0")
    try:
        return int(float(asked) * 2**30)
    except ValueError:
        raise DataError(f"MCF_TEACHER_CACHE_GIB is {asked!r}; possible: a number of GiB, or 0 for no cache") from None


class TapCache:
    """Features by image of the subset and whether it is mirrored; images beyond the limit are computed every time."""

    def __init__(self, run: RunSpec, teacher: Teacher, subset_digest: str, num_images: int, limit: int) -> None:
        """`limit`: bytes of all such files on this node together; the least recently used make room."""
        self.teacher, self.num_images, self.limit = teacher, num_images, limit
        self.states = 2 if run.data.flip else 1
        where = next(teacher.buffers()).device
        kind = torch.cuda.get_device_name(where) if where.type == "cuda" else "cpu"
        # Everything the features are a function of, up to the rounding of another device or version. After a crash
        # of the machine what lay in a file may not be what its marks say, so a file lives for one boot.
        self.name = _sha256(
            teacher.identity, subset_digest, run.input_size, run.data.fit, run.precision, kind, torch.__version__,
            BOOT.read_text() if BOOT.exists() else "",
        )  # fmt: skip
        self._path = cache_folder() / "taps" / self.name
        layout = self._path.with_suffix(".json")
        self._file = self._opened(Layout(**json.loads(layout.read_text()))) if layout.exists() else None

    @torch.no_grad()
    def wanted(self, cell: Slice, image_BCHW: Tensor) -> list[Tensor]:
        """teacher(image_BCHW), the slice's normalised images; each image goes through the teacher once."""
        place_B = (cell.index_B * self.states + (cell.flipped_B if self.states == 2 else 0)).numpy()
        missing_B = np.ones(len(place_B), bool) if self._file is None else ~self._file.has(place_B)
        if missing_B.any():
            new = torch.from_numpy(missing_B)
            taps = self.teacher(image_BCHW[new.to(image_BCHW.device)])
            if self._file is None:
                self._file = self._opened(Layout.of(taps))
            self._file.put(place_B[missing_B], taps)
            if self.states == 2:  # or the next epochs would still meet images in the state they had not been in
                mirrored = self.teacher(image_BCHW[new.to(image_BCHW.device)].flip(3))
                self._file.put(place_B[missing_B] ^ 1, mirrored)
            if missing_B.all():
                return taps
            found = self._file.get(place_B, image_BCHW.device)
            for tap, computed in zip(found, taps, strict=True):
                tap[new.to(tap.device)] = computed  # those beyond the limit are not in the file
            return found
        assert self._file
        return self._file.get(place_B, image_BCHW.device)

    def _opened(self, layout: "Layout") -> "_File":
        return _File(self._path, layout, self.num_images * self.states, self.limit)


class Layout(NamedTuple):
    """What a row of a file holds; only the first features tell."""

    shapes: list[list[int]]
    dtype: str

    @classmethod
    def of(cls, taps: list[Tensor]) -> "Layout":
        return cls([list(tap.shape[1:]) for tap in taps], str(taps[0].dtype).removeprefix("torch."))


class _File:
    """Rows of bytes and, beside them, a mark for each row that is written. Held by a shared lock while it is in use."""

    def __init__(self, path: Path, layout: Layout, num_rows: int, limit: int) -> None:
        self.shapes, self.dtype = layout.shapes, getattr(torch, layout.dtype)
        self.sizes = [math.prod(shape) * self.dtype.itemsize for shape in self.shapes]
        self.row_bytes = sum(self.sizes)
        with locked(path.parent / "room.lock"):
            room = limit - _make_room(path, limit - num_rows * self.row_bytes)
            self.num_rows = max(0, min(num_rows, room // self.row_bytes))
            self._marks = np.memmap(_grown(path.with_suffix(".marks"), num_rows), np.uint8, "r+")
            # Sparse: what is not written takes up nothing.
            grown = _grown(path, max(1, self.num_rows) * self.row_bytes)
            self._rows = torch.from_numpy(np.memmap(grown, np.uint8, "r+")).view(-1, self.row_bytes)
            self.num_rows = min(self.num_rows, len(self._rows))
            self._lock = path.open("rb")
            fcntl.flock(self._lock, fcntl.LOCK_SH)
            os.utime(path)
            aside = path.with_suffix(".aside")
            aside.write_text(json.dumps(layout._asdict()))
            aside.replace(path.with_suffix(".json"))

    def has(self, row_B: np.ndarray) -> np.ndarray:
        """Which rows are written, bool [B]."""
        return (row_B < self.num_rows) & (self._marks[np.minimum(row_B, len(self._marks) - 1)] == 1)

    def get(self, row_B: np.ndarray, device: torch.device) -> list[Tensor]:
        """Taps [B, P, D] of these rows; nonsense for what is not written."""
        rows = self._rows[torch.from_numpy(np.minimum(row_B, max(self.num_rows, 1) - 1))].to(device)
        parts = rows.split(self.sizes, dim=1)
        return [p.contiguous().view(self.dtype).view(-1, *s) for p, s in zip(parts, self.shapes, strict=True)]

    def put(self, row_B: np.ndarray, taps: list[Tensor]) -> None:
        kept = np.flatnonzero(row_B < self.num_rows)
        if not len(kept):
            return
        chosen = torch.from_numpy(kept).to(taps[0].device)
        rows = torch.cat([tap[chosen].contiguous().flatten(1).view(torch.uint8) for tap in taps], dim=1)
        self._rows[torch.from_numpy(row_B[kept])] = rows.cpu()
        # Last: a process that is killed between the two leaves a row that nobody reads.
        self._marks[row_B[kept]] = 1


def _make_room(path: Path, allowed: int) -> int:
    """Remove files that nobody uses, the least recently used first, until the others take up `allowed` bytes.

    Returns how many bytes they take up.
    """
    others = [other for other in path.parent.glob("*") if not other.suffix and other != path]
    taken = sum(other.stat().st_size for other in others)
    for other in sorted(others, key=lambda file: file.stat().st_mtime_ns):
        if taken <= allowed:
            break
        with other.open("rb") as file, suppress(BlockingIOError):
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            taken -= other.stat().st_size
            other.unlink()
            for beside in other.with_suffix(".marks"), other.with_suffix(".json"):
                beside.unlink(missing_ok=True)
    return taken


def _grown(path: Path, size: int) -> Path:
    with path.open("ab") as file:
        if file.tell() < size:
            file.truncate(size)
    return path


def _sha256(*parts: object) -> str:
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()
