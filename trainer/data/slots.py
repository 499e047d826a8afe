"""Rows of equal size that this node keeps for all processes that are here: written once, read by everybody. No torch.

One file, bounded together with all others of its folder:

    marks   a byte for each row: 1 once the row is written
    rows    sparse: what is not written takes up nothing

A row is written before its mark and read after it, so nobody reads what a process that was killed has half written.
After a crash of the machine a file may hold a mark without its row, so its name should hold BOOT. Everything goes
through system calls and nothing through a map: where a disk is full or broken a map ends the process (SIGBUS).
"""

import fcntl
import logging
import os
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import IO

import numpy as np

logger = logging.getLogger(__name__)

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
BOOT = _BOOT_ID.read_text().strip() if _BOOT_ID.exists() else ""
"""Changes whenever the machine starts."""

WRITTEN = b"\1"  # a mark
PAGE = 4096
# A row takes up a part of a page at either end, and one for its mark.
EXTRA = 3 * PAGE
# What room.lock says the folder takes up, or more; nothing where nobody has counted.
TAKEN = struct.Struct("<q")
# Rows between two looks at how much of the disk is free.
LOOK_EVERY = 256
# Locks of the open file, not of the process, which Linux alone has: threads lock side by side. 0 elsewhere.
SET_LOCK: int = getattr(fcntl, "F_OFD_SETLK", 0)
# `struct flock`: kind, whence, start, length, pid.
LOCK = struct.Struct("@hhqqi4x")
# Longer than an image takes. Then its process hangs, or waits for a store that is away.
PATIENCE_SECONDS = 10.0
PAUSE_SECONDS = 0.002
# Of what the folder takes up and what is free beside it. Others need the disk, too.
SHARE_OF_DISK = 0.5


def open_slots(
    path: Path, num_rows: int, row_bytes: int, limit: int, wanted: np.ndarray | None = None
) -> "Slots | None":
    """The rows kept at `path`; None, and a warning, where this machine cannot keep any."""
    try:
        return Slots(path, num_rows, row_bytes, limit, wanted)
    except OSError as error:
        logger.warning("nothing is kept in %s, which costs time and no more: %s", path.parent, error)
        return None


class Slots:
    """For many threads at once. Held by a shared lock, so that nobody removes the file while it is in use."""

    def __init__(
        self, path: Path, num_rows: int, row_bytes: int, limit: int, wanted: np.ndarray | None = None
    ) -> None:  # fmt: skip
        """`limit`: bytes on the disk of all files of the folder together. `wanted`: those asked for, or all.

        What nobody uses makes room for them, the least recently used first. Raises OSError.
        """
        self.row_bytes = row_bytes
        self._folder, self._limit, self._threads = path.parent, limit, threading.Lock()
        self._first = -(-num_rows // PAGE) * PAGE
        self._writes, self._waits = True, bool(SET_LOCK)
        self._allowed = self._looked = 0
        self._folder.mkdir(parents=True, exist_ok=True)
        with ExitStack() as stack:
            self._room = stack.enter_context(_opened(self._folder / "room.lock"))
            with self._alone():
                # Nobody removes a file without that lock, so what is opened here is there until it is held.
                self._file = stack.enter_context(_opened(path))
                self._number = self._file.fileno()
                self._make_room(path, num_rows, wanted)
                fcntl.flock(self._number, fcntl.LOCK_SH)
                os.utime(self._number)
            self._opened = stack.pop_all()

    def has(self, row: int) -> bool:
        with suppress(OSError):
            return os.pread(self._number, 1, row) == WRITTEN
        return False

    def read(self, row: int, into: np.ndarray) -> bool:
        """Fill uint8 [row_bytes], which may hold anything where the row is not there."""
        with suppress(OSError):
            return self.has(row) and os.preadv(self._number, [into.data], self._place(row)) == self.row_bytes
        return False

    def write(self, row: int, data: np.ndarray) -> bool:
        """Keep uint8 [row_bytes]; False where there is no room. Two that write a row have to write the same."""
        with self._alone():
            try:
                self._writes = self._writes and self._take()
                if self._writes:
                    _write(self._number, data.data, self._place(row))
                    # Last: a process that is killed between the two leaves a row that nobody reads.
                    _write(self._number, WRITTEN, row)
            except OSError as error:
                logger.warning("nothing more is kept in %s, which costs time and no more: %s", self._folder, error)
                self._writes = False
            return self._writes

    @contextmanager
    def claimed(self, row: int) -> Iterator[None]:
        """Make a row while no other process of this node makes it: whoever comes second finds it.

        The lock of one that is killed goes with it. One that hangs is not waited for.
        """
        taken = self._writes and self._waits and self._claim(row)
        try:
            yield
        finally:
            if taken:
                fcntl.fcntl(self._number, SET_LOCK, LOCK.pack(fcntl.F_UNLCK, os.SEEK_SET, row, 1, 0))

    def close(self) -> None:
        self._opened.close()

    def _claim(self, row: int) -> bool:
        asked, until = LOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, row, 1, 0), time.monotonic() + PATIENCE_SECONDS
        while self._waits:
            try:
                fcntl.fcntl(self._number, SET_LOCK, asked)
                return True
            except BlockingIOError:
                self._waits = self._waits and time.monotonic() < until
                time.sleep(PAUSE_SECONDS)
            except OSError:  # a file system without such locks: some rows are made twice
                self._waits = False
        return False

    def _place(self, row: int) -> int:
        return self._first + row * self.row_bytes

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Nobody else adds a row, makes room, or counts."""
        with self._threads:
            fcntl.flock(self._room, fcntl.LOCK_EX)
            try:
                yield
            finally:
                fcntl.flock(self._room, fcntl.LOCK_UN)

    def _take(self) -> bool:
        """Whether there is room for one more row, which then counts. To count files costs as much as to write."""
        more, said = self.row_bytes + EXTRA, os.pread(self._room.fileno(), TAKEN.size, 0)
        taken = TAKEN.unpack(said)[0] if len(said) == TAKEN.size else None
        self._looked += 1
        if taken is None or self._looked % LOOK_EVERY == 1 or taken + more > self._allowed:
            taken = self._count()
        if taken + more > self._allowed:
            return False
        self._say_taken(taken + more)
        return True

    def _count(self) -> int:
        """Bytes on the disk that the folder's files take up, fewer than their sizes say."""
        taken = 0
        with os.scandir(self._folder) as files:
            for file in files:
                with suppress(FileNotFoundError):
                    taken += file.stat().st_blocks * 512
        disk = os.statvfs(self._folder)
        self._allowed = min(self._limit, int((taken + disk.f_bavail * disk.f_frsize) * SHARE_OF_DISK))
        return taken

    def _say_taken(self, taken: int) -> None:
        with suppress(OSError):  # a full disk: rows are read all the same, and who writes counts first
            os.pwrite(self._room.fileno(), TAKEN.pack(taken), 0)

    def _make_room(self, path: Path, num_rows: int, wanted: np.ndarray | None) -> None:
        taken, each = self._count(), self.row_bytes + EXTRA
        is_there = np.zeros(num_rows, bool)
        marks = np.frombuffer(os.pread(self._number, num_rows, 0), np.uint8)
        is_there[: len(marks)] = marks == 1
        is_there = is_there if wanted is None else is_there[wanted]
        missing = each * int((~is_there).sum())
        others = (other for other in self._folder.iterdir() if not other.suffix and other != path)
        for other in sorted(others, key=lambda file: file.stat().st_mtime_ns):
            if taken + missing <= self._allowed:
                break
            with other.open("r+b") as file, suppress(BlockingIOError):
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                for gone in self._folder.glob(f"{other.name}*"):
                    gone.unlink()
                taken = self._count()
        if taken + missing > self._allowed >= each * len(is_there):
            # Full of rows that nobody asks for any more, unless somebody does.
            with suppress(BlockingIOError):
                fcntl.flock(self._number, fcntl.LOCK_EX | fcntl.LOCK_NB)
                self._file.truncate(0)
                taken = self._count()
        self._say_taken(taken)
        size = self._first + num_rows * self.row_bytes
        if os.fstat(self._number).st_size < size:
            self._file.truncate(size)


def _opened(path: Path) -> IO[bytes]:
    """To be read and written, and made where it is not there."""
    return open(path, "r+b", buffering=0, opener=lambda name, flags: os.open(name, flags | os.O_CREAT, 0o666))


def _write(number: int, data: bytes | memoryview, place: int) -> None:
    left = memoryview(data)
    while left:
        done = os.pwrite(number, left, place)
        left, place = left[done:], place + done
