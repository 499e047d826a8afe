"""Writing tar shards: which image goes where follows from the images alone, so an interrupted writer goes on."""

import hashlib
import os
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import IO, NamedTuple

from trainer.data.images.cache import open_index
from trainer.data.images.folder import is_image
from trainer.data.images.index import About, DataError, Index, Row, Shard, raw, text, write_index
from trainer.data.images.shards import BESIDE, SUFFIX, pack, unpack
from trainer.data.images.sorting import Sorter, read_ahead
from trainer.data.manifest import Images, Rows
from trainer.store.objects import ASIDE, DirectoryStore, Store, open_store

BLOCK = tarfile.BLOCKSIZE
END = bytes(2 * BLOCK)
# How files of these kinds begin; a name without a suffix gets one, or no reader takes the file for an image.
BEGINNINGS = {
    b"\xff\xd8\xff": ".jpg",
    b"\x89PNG": ".png",
    b"BM": ".bmp",
    b"RIFF": ".webp",
    b"II": ".tif",
    b"MM": ".tif",
}


class Member(NamedTuple):
    """One image with its place in a shard."""

    row: int
    header: bytes
    row_in_index: Row


def write_shards(
    images: Images, rows: Rows, out: str, shard_bytes: int, tick: Callable[[int], object] = lambda images: None
) -> Index:
    """Write images, in the order of the rows, as tar files of at most `shard_bytes` below `out`, and their index last.

    An image larger than that has a shard of its own. Shards that an earlier, interrupted call has finished are left
    as they are. `out` is a folder or s3:// prefix.
    Raises DataError when it holds other shards or an image has changed, StorageError when it cannot be written.
    """
    store = open_store(out)
    # Shards of another selection or size have other names, and never mix with these.
    name = hashlib.sha256(f"{rows.digest} {shard_bytes}".encode()).hexdigest()[:8]
    there = {entry.name: entry.size for entry in store.list() if entry.name.endswith(SUFFIX)}
    if foreign := [shard for shard in there if not shard.startswith(f"{name}-")]:
        raise DataError(f"{out} already holds other shards, such as {foreign[0]}; name an empty folder")
    store.discard_unfinished()
    listed = Sorter()
    for number, members in enumerate(_plan(images, rows, shard_bytes)):
        shard, size = f"{name}-{number:06d}{SUFFIX}", _end(members[-1]) + len(END)
        if there.get(shard) != size:
            _put(store, shard, partial(_write, images=images, members=members))
        for member in members:
            listed.add(member.row_in_index.key, pack(member.row_in_index))
        tick(len(members))
    shards = tuple(Shard(*vars(entry).values()) for entry in store.list(f"{name}-") if entry.name.endswith(SUFFIX))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, BESIDE)
        write_index(path, (unpack(*record) for record in listed), About("shards", out, shards))
        store.put_file(BESIDE, path)
    return open_index(f"{out.rstrip('/')}/{BESIDE}")


def _plan(images: Images, rows: Rows, shard_bytes: int) -> Iterator[list[Member]]:
    """The members of each shard."""
    index = rows.manifest.index
    members: list[Member] = []
    number = 0
    for row in rows:
        key, size = _name(images, row), int(index.sizes[row])
        header = _header(key, size)
        if members and _whole_blocks(_end(members[-1]) + len(header) + size) + len(END) > shard_bytes:
            yield members
            members, number = [], number + 1
        start = (_end(members[-1]) if members else 0) + len(header)
        members.append(Member(row, header, Row(raw(key), index.contents[row].tobytes(), size, number, start)))
    if members:
        yield members


def _write(file: IO[bytes], images: Images, members: list[Member]) -> None:
    for member, data in zip(members, read_ahead(images.get, (member.row for member in members)), strict=True):
        if hashlib.sha256(data).digest() != member.row_in_index.content:
            raise DataError(f"image {images.key(member.row)!r} has changed since it was indexed")
        file.write(member.header + data + bytes(-len(data) % BLOCK))
    file.write(END)


def _put(store: Store, name: str, write: Callable[[IO[bytes]], None]) -> None:
    here = store.root if isinstance(store, DirectoryStore) else None
    if here:
        here.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=here, prefix=ASIDE, delete=False) as file:
        aside = Path(file.name)
        try:
            write(file)
            file.flush()
            if here:
                os.fsync(file.fileno())
                aside.chmod(0o644)
                aside.replace(here / name)
            else:
                store.put_file(name, aside)
        finally:
            aside.unlink(missing_ok=True)


def _header(name: str, size: int) -> bytes:
    info = tarfile.TarInfo(name)
    info.size = size
    return info.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape")


def _name(images: Images, row: int) -> str:
    key = images.key(row)
    if is_image(key):
        return key
    data = images.get(row)
    found = [suffix for beginning, suffix in BEGINNINGS.items() if data.startswith(beginning)]
    if not found:
        raise DataError(
            f"image {text(raw(key))!r} is of no kind that a shard can hold ({', '.join(BEGINNINGS.values())})"
        )
    return key + found[0]


def _end(member: Member) -> int:
    """First byte after the image and its padding."""
    return _whole_blocks(member.row_in_index.start + member.row_in_index.size)


def _whole_blocks(size: int) -> int:
    return -(-size // BLOCK) * BLOCK
