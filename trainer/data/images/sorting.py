"""More records than memory holds, sorted; and many reads at once, in order."""

import heapq
import struct
import tempfile
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import IO, TypeVar

# Records sorted in memory at a time: some 60 MB of Python objects, and 80 files for 20 million records.
CHUNK = 1 << 18
THREADS = 8
AHEAD = 64

Item = TypeVar("Item")
Answer = TypeVar("Answer")
Record = tuple[bytes, bytes]


class Sorter:
    """Records (key, payload) by key, in files without a name once they are many. Can be gone through repeatedly."""

    def __init__(self, folder: Path | None = None, chunk: int = CHUNK) -> None:
        self._folder, self._chunk = folder, chunk
        self._waiting: list[Record] = []
        self._files: list[IO[bytes]] = []

    def add(self, key: bytes, payload: bytes) -> None:
        self._waiting.append((key, payload))
        if len(self._waiting) >= self._chunk:
            self._spill()

    def __iter__(self) -> Iterator[Record]:
        self._waiting.sort()
        return heapq.merge(*map(_records, self._files), iter(self._waiting))

    def _spill(self) -> None:
        self._waiting.sort()
        file = tempfile.TemporaryFile(dir=self._folder)  # noqa: SIM115 - lives as long as this object
        for key, payload in self._waiting:
            file.write(struct.pack("<II", len(key), len(payload)) + key + payload)
        self._files.append(file)
        self._waiting = []


def _records(file: IO[bytes]) -> Iterator[Record]:
    file.seek(0)
    while head := file.read(8):
        key, payload = struct.unpack("<II", head)
        yield file.read(key), file.read(payload)


def read_ahead(function: Callable[[Item], Answer], items: Iterable[Item]) -> Iterator[Answer]:
    """function(item) of each item, in order, by a few threads that are never far ahead of the caller."""
    with ThreadPoolExecutor(THREADS) as pool:
        waiting: deque[Future[Answer]] = deque()
        try:
            for item in items:
                waiting.append(pool.submit(function, item))
                if len(waiting) > AHEAD:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()
