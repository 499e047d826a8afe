"""What is kept on this machine so that it is not read again: indexes, and shards and indexes that lie in S3.

MCF_CACHE_DIR   where; else ~/.cache/mcf
MCF_CACHE_GIB   how much of what lies in S3; the least recently opened goes first
"""

import fcntl
import hashlib
import os
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from trainer.data.images.index import DataError, Index
from trainer.store.cachedir import cache_folder
from trainer.store.objects import Entry, Store, open_store, split_uri

DEFAULT_GIB = 20.0
WAIT_SECONDS = 0.1


def cache_bytes() -> int:
    """Raises DataError when MCF_CACHE_GIB is no number."""
    return bytes_allowed("MCF_CACHE_GIB", DEFAULT_GIB)


def bytes_allowed(variable: str, default: float) -> int:
    """What a variable says in GiB. Raises DataError when it is no number."""
    asked = os.environ.get(variable, str(default))
    try:
        return int(float(asked) * 2**30)
    except (ValueError, OverflowError):
        raise DataError(f"{variable} is {asked!r}; possible: a number of GiB, such as {default:g}") from None


def kept_index(identity: str, write: Callable[[Path], object]) -> Index:
    """The index of a data set that looks like `identity`, written where this machine has none yet.

    Of several processes that ask at once, one writes and the others wait for it.
    """
    path = cache_folder() / "manifests" / f"{digest_of(identity)}.index"
    if not path.exists():
        with locked(path.with_suffix(".lock")):
            if not path.exists():
                write(path)
    return Index(path)


def open_index(address: str) -> Index:
    """The index at a path or s3:// address. Raises DataError, StorageError."""
    if not address.startswith("s3://"):
        return Index(address)
    folder, name = split_uri(address)
    store = open_store(folder)
    return Index(address, FileCache().open(store, store.stat(name)))


class FileCache:
    """Objects of a store as local files, their sizes together at most `limit` bytes. For several processes at once."""

    def __init__(self, folder: Path | None = None, limit: int | None = None) -> None:
        self.folder = folder or cache_folder() / "objects"
        self.limit = cache_bytes() if limit is None else limit

    def open(self, store: Store, entry: Entry) -> BinaryIO:
        """The object, fetched where it is not here yet; what is open can be read even after it had to make room.

        Raises DataError when it is larger than the cache or changes meanwhile, StorageError when it cannot be fetched.
        """
        path = self.folder / digest_of(f"{store.uri} {entry.name} {entry.size} {entry.version}")
        while True:
            with suppress(FileNotFoundError):
                file = path.open("rb")
                os.utime(file.fileno(), ns=(time.time_ns(),) * 2)  # the kernel's own clock for files ticks rarely
                return file
            with locked(path.with_suffix(".lock")):
                if not path.exists():
                    self._fetch(store, entry, path)

    def _fetch(self, store: Store, entry: Entry, path: Path) -> None:
        if entry.size > self.limit:
            raise DataError(
                f"{store.uri}/{entry.name} has {entry.size} bytes and the cache holds {self.limit}: raise MCF_CACHE_GIB"
            )
        part = path.with_suffix(".part")
        while not self._hold_place(part, entry.size):
            time.sleep(WAIT_SECONDS)  # what others are fetching can go once it is here
        try:
            store.get_file(entry.name, part)
            if part.stat().st_size != entry.size or store.stat(entry.name) != entry:
                raise DataError(f"{store.uri}/{entry.name} changed while it was read; index it again")
            with self._alone():
                part.replace(path)
        finally:
            with self._alone():
                self._discard(part)

    def _hold_place(self, part: Path, size: int) -> bool:
        """Make room for a part that counts with all its bytes from now on; False while others' parts are in the way."""
        with self._alone():
            self._discard(part)
            for other in self._kept(".part"):
                # Who fetches holds the lock, so a part whose lock is free was left by a process that was killed.
                with suppress(BlockingIOError), locked(other.with_suffix(".lock"), wait=False):
                    self._discard(other)
            free = self.limit - sum(path.stat().st_size for path in self._kept("", ".part"))
            for path in sorted(self._kept(""), key=_opened_at):
                if free >= size:
                    break
                free += path.stat().st_size
                path.unlink()
            if free >= size:
                with part.open("wb") as file:
                    file.truncate(size)  # which takes up no disk yet
            return free >= size

    def _discard(self, part: Path) -> None:
        # boto3 writes to a name of its own, which begins with that of the part.
        for left in self.folder.glob(f"{part.name}*"):
            left.unlink(missing_ok=True)

    def _kept(self, *suffixes: str) -> list[Path]:
        return [path for path in self.folder.iterdir() if path.suffix in suffixes]

    def _alone(self) -> AbstractContextManager[None]:
        """Nobody else adds a file, makes room, or counts."""
        return locked(self.folder / "room.lock")


@contextmanager
def locked(path: Path, *, wait: bool = True) -> Iterator[None]:
    """Alone among all processes and threads of this machine. Raises BlockingIOError where it would wait and may not."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield


def digest_of(identity: str) -> str:
    return hashlib.sha256(identity.encode("utf-8", "surrogateescape")).hexdigest()


def _opened_at(path: Path) -> int:
    return path.stat().st_mtime_ns
