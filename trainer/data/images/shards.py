"""Images in uncompressed tar files, as webdataset reads and writes them; the key is the name inside the tar.

What is no image by its name (labels, captions, masks as .npy) is passed over. An index beside the shards is used
where it belongs to them; `mcf data shard` writes one.
"""

import hashlib
import os
import struct
import tarfile
from collections.abc import Callable, Iterator
from functools import lru_cache, partial
from pathlib import Path
from typing import BinaryIO

import numpy as np

from trainer.data.images.cache import FileCache, cache_bytes, kept_index, open_index
from trainer.data.images.folder import is_image
from trainer.data.images.index import About, DataError, Index, Row, Shard, raw, text, write_index
from trainer.data.images.sorting import Sorter, read_ahead
from trainer.store.objects import Entry, ObjectMissing, Store, open_store

SUFFIX = ".tar"
BESIDE = "index.mcf"
# Shards a process has open; each may hold a cached file on the disk that made room for another.
OPEN_FILES = 32
PAYLOAD = struct.Struct("<32sQIQ")


class ShardImages:
    """Encoded images by row of their index, read where they stand in their shard.

    Shards on s3 are fetched whole into the cache. Those that do not fit, counted from the first, are not fetched at
    all, and their images are read one by one: a random order through a cache that is too small would fetch a whole
    shard for nearly every image.
    """

    def __init__(self, uri: str, index: Index) -> None:
        """Raises DataError when the shards are not those of the index, StorageError when they cannot be listed."""
        self.uri, self.index, self.store = uri, index, open_store(uri)
        self.shards = check_shards(uri, index)
        self.num_whole = len(self.shards)
        if self.is_remote:
            sizes = np.cumsum([shard.size for shard in self.shards])
            # The index is in the cache as well, where it lies beside the shards.
            self.num_whole = int(np.searchsorted(sizes, cache_bytes() - index.file_bytes, side="right"))
        # The file closes when the last thread that reads it lets go of it.
        self._file = lru_cache(OPEN_FILES)(self._open)

    def __reduce__(self) -> tuple[type["ShardImages"], tuple[str, Index]]:
        return ShardImages, (self.uri, self.index)  # open files are a process's own

    def key(self, row: int) -> str:
        return text(self.index.key(row))

    def get(self, row: int) -> bytes:
        """Raises DataError when the shard has changed, StorageError when it cannot be read."""
        index = self.index
        assert index.shards is not None
        assert index.starts is not None
        number, start, size = int(index.shards[row]), int(index.starts[row]), int(index.sizes[row])
        if number < self.num_whole:
            file = self._file(number)  # held here, or another thread could close it before it is read
            return index.checked(row, os.pread(file.fileno(), size, start))
        shard = self.shards[number]
        data, version = self.store.get_range(shard.name, start, size)
        if version != shard.version:
            raise DataError(f"{self.uri}/{shard.name} has changed since the run began")
        return index.checked(row, data)

    @property
    def is_remote(self) -> bool:
        return self.uri.startswith("s3://")

    def _open(self, number: int) -> BinaryIO:
        return open_shard(self.store, self.shards[number])


def index_beside(uri: str) -> Index | None:
    """The index that lies beside the shards; None without one. Raises DataError when it belongs to others."""
    try:
        open_store(uri).stat(BESIDE)
    except ObjectMissing:
        return None
    index = open_index(f"{uri.rstrip('/')}/{BESIDE}")
    check_shards(uri, index)
    return index


def shard_index(uri: str, tick: Callable[[int], object]) -> Index:
    """An index made by reading all shards, kept as long as they are the same.

    Raises DataError when there are no shards, one is damaged, or a key comes twice.
    """
    store, shards = open_store(uri), list_shards(uri)
    where = uri if store.uri.startswith("s3://") else str(Path(uri).resolve())
    about = About("shards", uri, tuple(shards))
    return kept_index(f"{where} {shards}", lambda path: write_index(path, _rows(store, shards, tick), about))


def list_shards(uri: str) -> list[Shard]:
    """The shards of a folder or s3:// prefix, by name. Raises DataError when there are none."""
    if not uri.startswith("s3://") and not Path(uri).is_dir():
        raise DataError(f"there is no folder {uri}")
    found = [Shard(*vars(entry).values()) for entry in open_store(uri).list() if entry.name.endswith(SUFFIX)]
    if not found:
        raise DataError(f"{uri} holds no shards (*{SUFFIX})")
    return found


def check_shards(uri: str, index: Index) -> list[Shard]:
    """The shards as they are now, in the order of the index. Raises DataError when they are not those it is of."""
    known, found = index.about.shards, {shard.name: shard for shard in list_shards(uri)}
    if unlike := sorted(found.keys() ^ {shard.name for shard in known}):
        where = uri if unlike[0] in found else "the index"
        raise DataError(f"{index.address} is not the index of {uri}: {unlike[0]} is in {where} alone")
    for shard in known:
        now = found[shard.name]
        if now.size != shard.size:
            raise DataError(
                f"{uri}/{shard.name} has {now.size} bytes and had {shard.size} when it was indexed: it was cut short "
                "or changed; copy it again, or index the data anew"
            )
        # On a disk the version is a time, which copying changes.
        if uri.startswith("s3://") and uri == index.about.uri and now.version != shard.version:
            raise DataError(f"{uri}/{shard.name} has changed since it was indexed; index the data anew")
    return [found[shard.name] for shard in known]


def members(file: BinaryIO, name: str) -> Iterator[tuple[bytes, int, int]]:
    """(key, first byte, size) of each image in a tar. Raises DataError when it is damaged, cut short or compressed."""
    try:
        with tarfile.open(fileobj=file, mode="r:") as tar:
            for member in tar:
                key = member.name.removeprefix("./")
                if member.type in (tarfile.REGTYPE, tarfile.AREGTYPE) and is_image(key):
                    yield raw(key), member.offset_data, member.size
                tar.members = []  # type: ignore[attr-defined]  # or it remembers every one
            # Python takes anything that is no header for the end; a whole tar ends in blocks of zeros.
            file.seek(tar.offset)
            if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
                raise DataError(f"{name} is cut short or damaged at byte {tar.offset}")
    except tarfile.TarError as error:
        raise DataError(f"{name} is no whole uncompressed tar: {error}") from error


def open_shard(store: Store, shard: Shard) -> BinaryIO:
    """A shard as a local file. Raises DataError when it is not as long as it should be, StorageError."""
    if store.uri.startswith("s3://"):
        return FileCache().open(store, Entry(*shard))
    file = Path(store.uri.removeprefix("file://"), shard.name).open("rb")  # noqa: SIM115 - the caller's
    if (size := os.fstat(file.fileno()).st_size) != shard.size:
        file.close()
        raise DataError(f"{store.uri}/{shard.name} has {size} bytes and had {shard.size} when it was indexed")
    return file


def pack(row: Row) -> bytes:
    """What a Sorter keeps of a row beside its key."""
    return PAYLOAD.pack(*row[1:])


def unpack(key: bytes, payload: bytes) -> Row:
    return Row(key, *PAYLOAD.unpack(payload))


def _rows(store: Store, shards: list[Shard], tick: Callable[[int], object]) -> Iterator[Row]:
    rows = Sorter()
    for number, shard in enumerate(shards):
        with open_shard(store, shard) as file:
            place = f"{store.uri}/{shard.name}"
            for row in read_ahead(partial(_digested, file, number), members(file, place)):
                rows.add(row.key, pack(row))
                tick(1)
    return (unpack(*record) for record in rows)


def _digested(file: BinaryIO, number: int, member: tuple[bytes, int, int]) -> Row:
    key, start, size = member
    data = os.pread(file.fileno(), size, start)
    if len(data) != size:
        raise DataError(f"{file.name} is cut short: {text(key)!r} should have {size} bytes and has {len(data)}")
    return Row(key, hashlib.sha256(data).digest(), size, number, start)
