"""Images in an LMDB of the published layout: key = a line of the key list, value = the encoded image.

The entry `length`, which counts the images as decimal text, is no image.
"""

import hashlib
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from trainer.data.images.cache import kept_index
from trainer.data.images.folder import SPOT_CHECKS
from trainer.data.images.index import About, DataError, Index, Row, text, write_index
from trainer.data.images.sorting import Sorter

LENGTH = b"length"
BYTE_ORDER_MARK = b"\xef\xbb\xbf"


class LmdbImages:
    """Encoded images of a database by row of its index. Every process opens it for itself."""

    is_remote = False

    def __init__(self, path: str, index: Index) -> None:
        self.path, self.index = path, index

    def key(self, row: int) -> str:
        return text(self.index.key(row))

    def get(self, row: int) -> bytes:
        """Raises DataError when the image is gone or has changed."""
        with _open(self.path).begin() as txn:
            value = txn.get(self.index.key(row))
        if value is None:
            raise DataError(f"image {self.key(row)!r} is gone from {self.path}")
        return self.index.checked(row, value)


def lmdb_index(path: str, keys: str | None, tick: Callable[[int], object]) -> Index:
    """The index of a database, or of the part that a key list names, kept as long as both files are the same.

    Raises DataError when one is missing or empty, and for a key that comes twice or is not there.
    """
    identity = f"lmdb {_identity(_file(path))} {_identity(_existing(keys)) if keys else ''}"
    about = About("lmdb", path, key_list=keys is not None)

    def rows() -> Iterator[Row]:
        with _open(path).begin(buffers=True) as txn:
            for key, value in _listed(txn, path, keys) if keys else _all(txn):
                yield Row(key, hashlib.sha256(value).digest(), len(value))
                tick(1)

    return kept_index(identity, lambda to: write_index(to, rows(), about))


def check_lmdb(path: str, index: Index) -> None:
    """Look up a few images. Raises DataError when the index is not of this database."""
    with _open(path).begin(buffers=True) as txn:
        for row in np.linspace(0, len(index) - 1, num=min(SPOT_CHECKS, len(index)), dtype=np.int64):
            value = txn.get(index.key(row))
            if value is None or len(value) != index.sizes[row]:
                what = "does not hold" if value is None else "holds otherwise"
                raise DataError(f"{index.address} is not the index of {path}, which {what} {text(index.key(row))!r}")


def keys_of(path: str) -> Iterator[bytes]:
    """Every key of a database that is an image's, in key order."""
    with _open(path).begin() as txn:
        yield from (key for key in txn.cursor().iternext(values=False) if key != LENGTH)


def _all(txn: Any) -> Iterator[tuple[bytes, Any]]:
    # A database is sorted by the bytes of its keys, as an index is.
    return ((bytes(key), value) for key, value in txn.cursor() if key != LENGTH)


def _listed(txn: Any, path: str, keys: str) -> Iterator[tuple[bytes, Any]]:
    listed = Sorter()
    with _existing(keys).open("rb") as file:
        for line in file:
            # Lists come from every system: with Windows line ends, a byte order mark, an empty line at the end.
            if key := line.removeprefix(BYTE_ORDER_MARK).rstrip(b"\r\n"):
                listed.add(key, b"")
    for key, _ in listed:
        value = _value(txn, key)
        if value is None:
            raise DataError(f"{keys} names {text(key)!r}, which {path} does not hold as an image")
        yield key, value


def _value(txn: Any, key: bytes) -> Any:
    if key == LENGTH:
        return None
    try:
        return txn.get(key)
    except _lmdb().BadValsizeError:  # longer than a key of a database can be
        return None


def _existing(path: str) -> Path:
    if path.startswith("s3://"):
        raise DataError(f"an LMDB and its key list are read from a disk, not from {path}; `mcf data shard` writes tar")
    if not Path(path).exists():
        raise DataError(f"there is no file {path}")
    return Path(path)


def _file(path: str) -> Path:
    found = _existing(path)
    if found.is_dir() and not (found / "data.mdb").exists():
        raise DataError(f"there is no LMDB in {path}: it has no data.mdb")
    return found / "data.mdb" if found.is_dir() else found


def _identity(path: Path) -> str:
    stat = path.stat()
    return f"{path.resolve()} {stat.st_ino} {stat.st_size} {stat.st_mtime_ns}"


def _lmdb() -> Any:
    try:
        import lmdb  # optional: neither the contract nor the client has it
    except ImportError as error:
        raise DataError("reading LMDB needs the package lmdb: pip install 'mcf[trainer]'") from error
    return lmdb


def _open(path: str) -> Any:
    """The one environment of this database in this process; a database that was replaced is opened anew.

    LMDB refuses a second one, whoever asks. A fork closes what it inherits and opens its own.
    """
    file = _file(path)
    stat = file.stat()
    version = os.getpid(), stat.st_ino, stat.st_mtime_ns
    known, env = _environments.get(path, (None, None))
    if known == version:
        return env
    with _opening:
        known, env = _environments.get(path, (None, None))
        if known != version:
            if env is not None:
                env.close()
            env = _lmdb().open(path, readonly=True, lock=False, readahead=False, subdir=Path(path).is_dir())
            _environments[path] = version, env
        return env


_environments: dict[str, tuple[Any, Any]] = {}
_opening = threading.Lock()
