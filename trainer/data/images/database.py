"""Images in an LMDB of the published layout: key = a line of the key list, value = the encoded image.

The entry `length`, which counts the images as decimal text, is no image. A damaged database ends the process that
reads it (SIGBUS, SIGSEGV), so what a spec names is read in a process of its own first:

    python -m trainer.data.images.database index OUT DATABASE [KEYS]
    python -m trainer.data.images.database check INDEX DATABASE

Both print lines of JSON: {"done": images} now and then, and {"error": why} where it cannot be used.
"""

import hashlib
import json
import os
import signal
import struct
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from trainer.data.images.cache import kept_index
from trainer.data.images.folder import SPOT_CHECKS
from trainer.data.images.index import About, DataError, Index, Row, text, write_index
from trainer.data.images.sorting import Sorter

LENGTH = b"length"
# A key has at most 511 bytes. What is longer is no list of keys, and not read as one line.
MAX_LINE = 4096
NUMBER = struct.Struct("<Q")
EVERY = 256
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
        with _lmdb_errors(self.path), _open(self.path).begin() as txn:
            value = txn.get(self.index.key(row))
        if value is None:
            raise DataError(f"image {self.key(row)!r} is gone from {self.path}")
        return self.index.checked(row, value)


def lmdb_index(path: str, keys: str | None, tick: Callable[[int], object]) -> Index:
    """The index of a database, or of the part that a key list names, kept as long as both files are the same.

    Raises DataError when one is missing, empty or damaged, and for a key that comes twice or is not there.
    """
    identity = f"lmdb {_identity(_file(path))} {_identity(_existing(keys)) if keys else ''}"
    return kept_index(identity, lambda to: _apart("index", str(to), path, *([keys] if keys else []), tick=tick))


def check_lmdb(path: str, index: Index) -> None:
    """Look up a few images. Raises DataError when the index is not of this database, or that is damaged."""
    _file(path)
    _apart("check", str(index.path), path)


def _apart(*call: str, tick: Callable[[int], object] = lambda images: None) -> None:
    """Read in a process of its own, whose end is not ours."""
    command = [sys.executable, "-m", "trainer.data.images.database", *call]
    error, done = None, 0
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout
        for line in child.stdout:
            said = json.loads(line)
            error = said.get("error", error)
            tick(said.get("done", done) - done)
            done = said.get("done", done)
    if child.returncode < 0:
        how = signal.Signals(-child.returncode).name
        raise DataError(f"{call[2]} is cut short or damaged: reading it ends a process ({how}). Copy it again")
    if error:
        raise DataError(error)
    if child.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with {child.returncode}; what it said is in the log")


def main(command: str, file: str, path: str, keys: str | None = None) -> None:
    """What one call of this module does. Raises DataError."""
    with _lmdb_errors(path), _open(path).begin(buffers=True) as txn:
        if command == "index":
            rows = _listed(txn, path, keys) if keys else _all(txn)
            write_index(Path(file), _digested(rows), About("lmdb", path, key_list=keys is not None))
        else:
            _check(txn, path, Index(file))


def _digested(rows: Iterable[tuple[bytes, Any]]) -> Iterator[Row]:
    number = 0
    for number, (key, value) in enumerate(rows, start=1):
        yield Row(key, hashlib.sha256(value).digest(), len(value))
        if number % EVERY == 0:
            say(done=number)
    say(done=number)


def _check(txn: Any, path: str, index: Index) -> None:
    env = _open(path)
    if _file(path).stat().st_size < (env.info()["last_pgno"] + 1) * env.stat()["psize"]:
        # Pages that nothing was written to may lack at the end. Whether only those do, the others say.
        for _, value in txn.cursor():
            hashlib.sha256(value)
    for row in np.linspace(0, len(index) - 1, num=min(SPOT_CHECKS, len(index)), dtype=np.int64):
        value = txn.get(index.key(row))
        if value is None or len(value) != index.sizes[row]:
            what = "does not hold" if value is None else "holds otherwise"
            raise DataError(f"{index.address} is not the index of {path}, which {what} {text(index.key(row))!r}")


def keys_of(path: str) -> Iterator[bytes]:
    """Every key of a database that is an image's, in key order."""
    with _lmdb_errors(path), _open(path).begin() as txn:
        yield from (key for key in txn.cursor().iternext(values=False) if key != LENGTH)


class _NoKey(DataError):
    """A line of a key list that is none. Not what it says: any file of this machine may have been named."""

    def __init__(self, keys: str, line: int, path: str) -> None:
        super().__init__(f"line {line} of {keys} is no key of an image in {path}")


def _all(txn: Any) -> Iterator[tuple[bytes, Any]]:
    # A database is sorted by the bytes of its keys, as an index is.
    return ((bytes(key), value) for key, value in txn.cursor() if key != LENGTH)


def _listed(txn: Any, path: str, keys: str) -> Iterator[tuple[bytes, Any]]:
    listed = Sorter()
    with _existing(keys).open("rb") as file:
        for place, line in enumerate(iter(lambda: file.readline(MAX_LINE), b""), start=1):
            if len(line) == MAX_LINE:
                raise _NoKey(keys, place, path)
            # Lists come from every system: with Windows line ends, a byte order mark, an empty line at the end.
            if key := line.removeprefix(BYTE_ORDER_MARK).rstrip(b"\r\n"):
                listed.add(key, NUMBER.pack(place))
    for key, number in listed:
        value = _value(txn, key)
        if value is None:
            raise _NoKey(keys, NUMBER.unpack(number)[0], path)
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
    found = Path(path)
    if not found.exists():
        raise DataError(f"there is no file {path}")
    if not (found.is_file() or found.is_dir()):
        raise DataError(f"{path} is no file that can be read: it is a device or a pipe")
    return found


def _file(path: str) -> Path:
    found = _existing(path)
    if found.is_dir() and not (found / "data.mdb").is_file():
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


@contextmanager
def _lmdb_errors(path: str) -> Iterator[None]:
    try:
        yield
    except _lmdb().Error as error:
        raise DataError(f"{path} is no LMDB that can be read: {error}") from error


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
            with _lmdb_errors(path):
                env = _lmdb().open(path, readonly=True, lock=False, readahead=False, subdir=Path(path).is_dir())
            _environments[path] = version, env
        return env


_environments: dict[str, tuple[Any, Any]] = {}
_opening = threading.Lock()


def say(**what: object) -> None:
    print(json.dumps(what), flush=True)  # noqa: T201


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except (DataError, OSError) as error:
        say(error=str(error))
        raise SystemExit(1) from None
