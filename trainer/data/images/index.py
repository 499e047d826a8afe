"""The index of a data set: one file that says which images it holds, read by mapping it into memory.

    bytes 0 to 7     MCFINDEX
    bytes 8 to 15    length of the header
    header           JSON: version, count, digest, where the columns are, what was indexed
    columns          from a multiple of 64 bytes on
        keys         key after key, sorted by their bytes
        offsets      u8 [N+1]   where each key begins in `keys`
        contents     u1 [N,32]  sha256 of the encoded image
        sizes        u8 [N]     bytes of the encoded image
        shards       u4 [N]     tar shards only: which one
        starts       u8 [N]     tar shards only: first byte of the image in its shard

All numbers are little-endian. The digest is the sha256 of the lines "<key> <sha256 in hex>" in key order, so it
says the same of a folder, an LMDB and shards that hold the same images under the same keys.
"""

import hashlib
import json
import mmap
import shutil
import struct
import tempfile
from bisect import bisect_left
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import IO, Literal, NamedTuple

import numpy as np

MAGIC = b"MCFINDEX"
VERSION = 1
ALIGNMENT = 64
COLUMNS = {"keys": "<u1", "offsets": "<u8", "contents": "<u1", "sizes": "<u8", "shards": "<u4", "starts": "<u8"}
SHARD_COLUMNS = ("shards", "starts")

Kind = Literal["folder", "lmdb", "shards"]


class DataError(Exception):
    """The data is not what the spec says: missing, empty, or other than it was."""


class Row(NamedTuple):
    """One image."""

    key: bytes
    content: bytes
    """sha256 of the encoded image, 32 bytes."""
    size: int
    shard: int = 0
    start: int = 0


class Shard(NamedTuple):
    """One tar file: name below the data set's address, bytes, and the tag its store gave this content."""

    name: str
    size: int
    version: str


@dataclass(frozen=True)
class About:
    """What was indexed."""

    kind: Kind
    uri: str
    shards: tuple[Shard, ...] = ()
    key_list: bool = False
    """Whether the keys come from a list, which may name a part of an LMDB."""
    suffix: str | None = None
    """Tar shards only: which files of the samples are the images, as `data.suffix` says it."""


class Index:
    """The columns of an index file, none of which is read before it is looked at."""

    def __init__(self, address: Path | str, file: IO[bytes] | None = None) -> None:
        """`file`: what lies there, already open. Raises DataError when it is missing, cut short, or no index."""
        self.address = str(address)
        try:
            with file or Path(address).open("rb") as file:
                self.path = Path(file.name)
                self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            header, start = self._header()
            self.digest: str = header["digest"]
            self.about = About(
                **header["about"] | {"shards": tuple(Shard(*each) for each in header["about"]["shards"])}
            )
            columns = {
                name: self._column(name, start + place[0], place[1]) for name, place in header["columns"].items()
            }
        except FileNotFoundError as error:
            raise DataError(f"there is no index {address}; `mcf data index` makes one") from error
        except (OSError, ValueError, KeyError, TypeError, struct.error) as error:
            raise DataError(f"{address} is no complete index of version {VERSION}: {error}; make it anew") from error
        self._keys_start = start + header["columns"]["keys"][0]
        self.offsets = columns["offsets"]
        self.contents = columns["contents"].reshape(-1, 32)
        self.sizes = columns["sizes"]
        self.shards, self.starts = columns.get("shards"), columns.get("starts")

    def __reduce__(self) -> tuple[type["Index"], tuple[Path]]:
        return Index, (self.path,)  # another process maps the file for itself

    def __len__(self) -> int:
        return len(self.sizes)

    @cached_property
    def num_bytes(self) -> int:
        """Bytes of all encoded images."""
        return int(self.sizes.sum())

    @property
    def file_bytes(self) -> int:
        return len(self._map)

    def key(self, row: int) -> bytes:
        start = self._keys_start
        return self._map[start + int(self.offsets[row]) : start + int(self.offsets[row + 1])]

    def let_go(self) -> None:
        """Count no longer as this process's memory what was read so far; what is looked at again comes back."""
        self._map.madvise(mmap.MADV_DONTNEED)

    def find(self, key: bytes) -> int | None:
        """The row of a key; None where there is none."""
        row = bisect_left(range(len(self)), key, key=self.key)
        return row if row < len(self) and self.key(row) == key else None

    def checked(self, row: int, data: bytes) -> bytes:
        """The data. Raises DataError when its size is not that of the row, for then the image was changed."""
        if len(data) != self.sizes[row]:
            raise DataError(
                f"image {text(self.key(row))!r} has {len(data)} bytes, {int(self.sizes[row])} when it was indexed: "
                f"{self.about.uri} has changed, `mcf data verify` finds what else has"
            )
        return data

    def _header(self) -> tuple[dict, int]:
        magic, length = struct.unpack_from("<8sQ", self._map)
        if magic != MAGIC:
            raise ValueError("it begins otherwise")
        header = json.loads(self._map[16 : 16 + length])
        if header["version"] != VERSION:
            raise ValueError(f"it is of version {header['version']}")
        start = _aligned(16 + length)
        end = start + max(first + size for first, size in header["columns"].values())
        if len(self._map) != end:
            raise ValueError(f"it has {len(self._map)} bytes and should have {end}")
        return header, start

    def _column(self, name: str, first: int, size: int) -> np.ndarray:
        dtype = np.dtype(COLUMNS[name])
        return np.frombuffer(self._map, dtype, count=size // dtype.itemsize, offset=first)


def write_index(path: Path, rows: Iterable[Row], about: About) -> Index:
    """Write rows, whose keys rise, as an index. Memory does not grow with them, and nothing half lies at `path`.

    Raises DataError when a key comes twice, or when there are no rows.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    names = [name for name in COLUMNS if about.kind == "shards" or name not in SHARD_COLUMNS]
    with ExitStack() as stack:
        # Files without a name: whatever ends this process, nothing is left lying around.
        files: dict[str, IO[bytes]] = {
            name: stack.enter_context(tempfile.TemporaryFile(dir=path.parent)) for name in names
        }
        digest = _write_columns(files, rows, about)
        sizes = {name: file.tell() for name, file in files.items()}
        header = {"version": VERSION, "digest": digest, "about": asdict(about), "columns": _places(sizes)}
        _assemble(path, json.dumps(header).encode(), files)
    return Index(path)


def _write_columns(files: dict[str, IO[bytes]], rows: Iterable[Row], about: About) -> str:
    digest = hashlib.sha256()
    last, end = b"", 0
    number, short = struct.Struct("<Q").pack, struct.Struct("<I").pack
    keys, offsets, contents, sizes = (files[name].write for name in ("keys", "offsets", "contents", "sizes"))
    offsets(number(0))
    for row in rows:
        if row.key <= last:
            what = "comes twice" if row.key == last else f"comes after {text(last)!r}"
            raise DataError(f"{about.uri}: key {text(row.key)!r} {what}; every image needs a key of its own")
        last, end = row.key, end + len(row.key)
        digest.update(b"%b %b\n" % (row.key, row.content.hex().encode()))
        keys(row.key)
        offsets(number(end))
        contents(row.content)
        sizes(number(row.size))
        if about.kind == "shards":
            files["shards"].write(short(row.shard))
            files["starts"].write(number(row.start))
    if not last:
        raise DataError(f"{about.uri} holds no images")
    return digest.hexdigest()


def _places(sizes: dict[str, int]) -> dict[str, tuple[int, int]]:
    places, first = {}, 0
    for name, size in sizes.items():
        places[name] = first, size
        first = _aligned(first + size)
    return places


def _assemble(path: Path, header: bytes, files: dict[str, IO[bytes]]) -> None:
    aside = tempfile.NamedTemporaryFile(dir=path.parent, prefix=".aside-", delete=False)  # noqa: SIM115
    try:
        with aside as out:
            out.write(struct.pack("<8sQ", MAGIC, len(header)) + header)
            for file in files.values():
                out.write(bytes(_aligned(out.tell()) - out.tell()))
                file.seek(0)
                shutil.copyfileobj(file, out, 1 << 20)
        # A temporary file is its owner's alone; an index may be read by whoever may read the data.
        Path(aside.name).chmod(0o644)
        Path(aside.name).replace(path)
    finally:
        Path(aside.name).unlink(missing_ok=True)


def _aligned(position: int) -> int:
    return -(-position // ALIGNMENT) * ALIGNMENT


def text(key: bytes) -> str:
    """A key as text; what is not UTF-8 comes back to the same bytes through `raw`."""
    return key.decode("utf-8", "surrogateescape")


def raw(key: str) -> bytes:
    """A key as the bytes it is kept and sorted by."""
    return key.encode("utf-8", "surrogateescape")
