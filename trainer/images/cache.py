"""What is kept on this machine so that it is not read again: indexes, and shards and indexes that lie in S3.

MCF_CACHE_DIR   where; else ~/.cache/mcf
MCF_CACHE_GIB   how much of what lies in S3; the least recently opened goes first
"""

import fcntl
import hashlib
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from trainer.images.index import DataError, Index
from trainer.storage import Entry, Store, open_store, split_uri

DEFAULT_GIB = 20.0


def cache_folder() -> Path:
    if named := os.environ.get("MCF_CACHE_DIR"):
        return Path(named)
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "mcf"


def cache_bytes() -> int:
    """Raises DataError when MCF_CACHE_GIB is no number."""
    asked = os.environ.get("MCF_CACHE_GIB", str(DEFAULT_GIB))
    try:
        return int(float(asked) * 2**30)
    except ValueError:
        raise DataError(f"MCF_CACHE_GIB is {asked!r}; possible: a number, such as {DEFAULT_GIB}") from None


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
        return Index(Path(address))
    folder, name = split_uri(address)
    store = open_store(folder)
    return Index(Path(address), FileCache().open(store, store.stat(name)))


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
                os.utime(file.fileno())
                return file
            with locked(path.with_suffix(".lock")):
                if not path.exists():
                    self._fetch(store, entry, path)

    def _fetch(self, store: Store, entry: Entry, path: Path) -> None:
        part = path.with_suffix(".part")
        with locked(self.folder / "room.lock"):
            self._make_room(store, entry)
            # Holds the place: it counts with all its bytes from now on, and takes up none of them on disk.
            with part.open("wb") as file:
                file.truncate(entry.size)
        try:
            store.get_file(entry.name, part)
            if part.stat().st_size != entry.size or store.stat(entry.name) != entry:
                raise DataError(f"{store.uri}/{entry.name} changed while it was read; index it again")
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)

    def _make_room(self, store: Store, entry: Entry) -> None:
        if entry.size > self.limit:
            raise DataError(
                f"{store.uri}/{entry.name} has {entry.size} bytes and the cache holds {self.limit}: raise MCF_CACHE_GIB"
            )
        for part in self.folder.glob("*.part*"):
            # Who fetches holds the lock, so a part whose lock is free was left by a process that was killed.
            with suppress(BlockingIOError), locked(part.with_suffix(".lock"), wait=False):
                part.unlink(missing_ok=True)
        files = sorted((path for path in self.folder.iterdir() if path.suffix in ("", ".part")), key=_opened_at)
        free = self.limit - sum(path.stat().st_size for path in files)
        for path in files:
            if free >= entry.size:
                break
            if not path.suffix:
                free += path.stat().st_size
                path.unlink()


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
