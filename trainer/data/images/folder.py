"""Images as files in a folder, or as objects below an s3:// address; the key is the name below it."""

import hashlib
import heapq
import logging
import struct
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from trainer.data.images.cache import kept_index
from trainer.data.images.index import About, DataError, Index, Row, raw, text, write_index
from trainer.data.images.sorting import Sorter, read_ahead
from trainer.store.objects import ObjectMissing, open_store

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".ppm", ".tif", ".tiff")
# Images whose sizes are looked up to tell whether an index belongs to a folder.
SPOT_CHECKS = 16
NAMED = 3

logger = logging.getLogger(__name__)


class FolderImages:
    """Encoded images of a folder by row of its index."""

    def __init__(self, uri: str, index: Index) -> None:
        self.store, self.index = open_store(uri), index
        self.is_remote = uri.startswith("s3://")

    def key(self, row: int) -> str:
        return text(self.index.key(row))

    def get(self, row: int) -> bytes:
        """Raises DataError when the image is gone or has changed, StorageError when it cannot be read."""
        try:
            return self.index.checked(row, self.store.get(self.key(row)))
        except ObjectMissing as error:
            raise DataError(f"image {self.key(row)!r} is gone from {self.store.uri}") from error


def folder_index(uri: str, tick: Callable[[int], object]) -> Index:
    """The index of a folder, found again as long as its listing (names, sizes, versions) is the same.

    Raises DataError when there is no such folder or no image in it, StorageError when it cannot be read.
    """
    listing = list_images(uri)
    return kept_index(_identity(uri, listing), lambda path: write_index(path, _rows(uri, listing, tick), _about(uri)))


def list_images(uri: str) -> Sorter:
    """Names of a folder's images in key order, with size and version. Raises DataError when there is no folder."""
    if not uri.startswith("s3://") and not Path(uri).is_dir():
        raise DataError(f"there is no folder {uri}")
    listing, skipped = Sorter(), NotRead()
    for entry in open_store(uri).scan(skipped.add):
        if is_image(entry.name):
            listing.add(raw(entry.name), struct.pack("<Q", entry.size) + entry.version.encode())
    if skipped:
        logger.warning("not read in %s: %s", uri, skipped)
    return listing


class NotRead:
    """What a listing passes over: how many of each kind, and the first of them by name."""

    def __init__(self) -> None:
        self._names: dict[str, list[str]] = {}
        self._counts: Counter[str] = Counter()

    def add(self, name: str, why: str) -> None:
        self._counts[why] += 1
        # The first by name, in whatever order they come.
        self._names[why] = heapq.nsmallest(NAMED, [*self._names.get(why, []), name])

    def __bool__(self) -> bool:
        return bool(self._counts)

    def __str__(self) -> str:
        return "; ".join(
            f"{count} ({why}): {', '.join(self._names[why])}{', ...' if count > NAMED else ''}"
            for why, count in sorted(self._counts.items())
        )


def not_read(uri: str, is_read: Callable[[str], bool]) -> NotRead:
    """Everything that a data set at this address does not consist of. Raises StorageError."""
    found = NotRead()
    for entry in open_store(uri).scan(found.add):
        if not is_read(entry.name):
            found.add(entry.name, "files of other kinds")
    return found


def is_image(name: str) -> bool:
    return name.lower().endswith(IMAGE_SUFFIXES)


def check_folder(uri: str, index: Index) -> None:
    """Look up a few images. Raises DataError when the index is not of this folder."""
    store = open_store(uri)
    for row in np.linspace(0, len(index) - 1, num=min(SPOT_CHECKS, len(index)), dtype=np.int64):
        key, size = text(index.key(row)), int(index.sizes[row])
        try:
            found = store.stat(key).size
        except ObjectMissing as error:
            raise DataError(
                f"{index.address} is not the index of {uri}: it names {key!r}, which is not there"
            ) from error
        if found != size:
            raise DataError(f"{index.address} is not the index of {uri}: {key!r} has {found} bytes, there {size}")


def _rows(uri: str, listing: Sorter, tick: Callable[[int], object]) -> Iterator[Row]:
    store = open_store(uri)

    def digest(name: bytes) -> Row:
        data = store.get(text(name))
        return Row(name, hashlib.sha256(data).digest(), len(data))

    for row in read_ahead(digest, (name for name, _ in listing)):
        yield row
        tick(1)


def _about(uri: str) -> About:
    return About("folder", uri)


def _identity(uri: str, listing: Sorter) -> str:
    digest = hashlib.sha256((uri if uri.startswith("s3://") else str(Path(uri).resolve())).encode())
    for name, payload in listing:
        digest.update(b"\n" + name + b" " + payload)
    return digest.hexdigest()
