"""Images in uncompressed tar files, as webdataset reads and writes them; the key is the name inside the tar.

What is no image by its name (labels, captions, masks as .npy) is passed over. Files with the same name up to the first
dot are a sample; which of several pictures is the image, `data.suffix` says. An index beside the shards is used where
it belongs to them; `mcf data shard` writes one.
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
# A `data.suffix`: every picture is an image of its own.
ALL = "*"
READ_BYTES = 1 << 20
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


def index_beside(uri: str, suffix: str | None) -> Index | None:
    """The index that lies beside the shards; None without one. Raises DataError when it belongs to others."""
    try:
        open_store(uri).stat(BESIDE)
    except ObjectMissing:
        return None
    index = open_index(f"{uri.rstrip('/')}/{BESIDE}")
    check_shards(uri, index)
    check_suffix(index, suffix)
    return index


def check_suffix(index: Index, suffix: str | None) -> None:
    """Raises DataError when the index is of other files of the samples."""
    if suffix is not None and index.about.suffix != suffix:
        made = "without a suffix" if index.about.suffix is None else f"with the suffix {index.about.suffix}"
        raise DataError(f"{index.address} was made {made}, and data.suffix is {suffix}; leave it out, or index anew")


def shard_index(uri: str, suffix: str | None, tick: Callable[[int], object]) -> Index:
    """An index made by reading all shards, kept as long as they are the same.

    Raises DataError when there are no shards, one is damaged, a key comes twice, or a sample has several pictures and
    no suffix says which is the image.
    """
    store, shards = open_store(uri), list_shards(uri)
    where = uri if store.uri.startswith("s3://") else str(Path(uri).resolve())
    about = About("shards", uri, tuple(shards), suffix=suffix)
    # Of before version 2, indexes knew nothing of samples, nor of what follows the first end mark of a tar.
    identity = f"version 2 {where} {shards} {suffix}"
    return kept_index(identity, lambda path: write_index(path, _rows(store, shards, suffix, tick), about))


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


def members(file: BinaryIO, name: str, suffix: str | None) -> Iterator[tuple[bytes, int, int]]:
    """(key, first byte, size) of each image in a tar, or in several one after the other.

    Raises DataError when it is damaged, cut short or compressed.
    """
    start: int | None = 0
    try:
        while start is not None:
            file.seek(start)
            with tarfile.open(fileobj=file, mode="r:") as tar:
                for member in tar:
                    key = member.name.removeprefix("./")
                    if member.type in (tarfile.REGTYPE, tarfile.AREGTYPE) and _is_chosen(key, suffix):
                        yield raw(key), member.offset_data, member.size
                    tar.members = []  # type: ignore[attr-defined]  # or it remembers every one
                # Python takes anything that is no header for the end; a whole tar ends in blocks of zeros.
                file.seek(tar.offset)
                if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
                    raise DataError(f"{name} is cut short or damaged at byte {tar.offset}")
            start = _after_zeros(file)
    except tarfile.TarError as error:
        raise DataError(f"{name} is no whole uncompressed tar: {error}") from error


def _after_zeros(file: BinaryIO) -> int | None:
    """The next block that is not all zeros, where another tar begins; None at the end of the file."""
    while data := file.read(READ_BYTES):
        if rest := data.lstrip(b"\0"):
            place = file.tell() - len(rest)
            return place - place % tarfile.BLOCKSIZE
    return None


def _is_chosen(key: str, suffix: str | None) -> bool:
    if suffix in (None, ALL):
        return is_image(key)
    return _sample(key)[1].lower() == suffix.lower().removeprefix(".")


def _sample(key: str) -> tuple[str, str]:
    """The name that all files of a sample have in common, and what follows its dot: webdataset's rule."""
    folder, slash, name = key.rpartition("/")
    sample, _, suffix = name.partition(".")
    return f"{folder}{slash}{sample}", suffix


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


def _rows(
    store: Store, shards: list[Shard], suffix: str | None, tick: Callable[[int], object]
) -> Iterator[Row]:  # fmt: skip
    rows = Sorter()
    for number, shard in enumerate(shards):
        with open_shard(store, shard) as file:
            place = f"{store.uri}/{shard.name}"
            for row in read_ahead(partial(_digested, file, number), members(file, place, suffix)):
                rows.add(row.key, pack(row))
                tick(1)
    found = (unpack(*record) for record in rows)
    return found if suffix else _one_a_sample(found)


def _one_a_sample(rows: Iterator[Row]) -> Iterator[Row]:
    """The rows, which are sorted: files of a sample follow each other. Raises DataError for a second one of it."""
    last = ""
    for row in rows:
        key = text(row.key)
        sample, suffix = _sample(key)
        if last and sample == _sample(last)[0] and key != last:
            raise DataError(
                f"sample {sample!r} has several pictures, {last!r} and {key!r}: data.suffix says which is the image, "
                f"such as {suffix!r}; {ALL!r} takes every picture as an image of its own"
            )
        last = key
        yield row


def _digested(file: BinaryIO, number: int, member: tuple[bytes, int, int]) -> Row:
    key, start, size = member
    data = os.pread(file.fileno(), size, start)
    if len(data) != size:
        raise DataError(f"{file.name} is cut short: {text(key)!r} should have {size} bytes and has {len(data)}")
    return Row(key, hashlib.sha256(data).digest(), size, number, start)
