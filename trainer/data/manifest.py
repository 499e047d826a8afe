"""Which images a data set holds, and which of them a run trains on. No torch, no decoding.

Orders are drawn from contents, not from positions, so that they survive renaming and copying, and subsets of
one seed are nested.
"""

import hashlib
from collections.abc import Callable, Iterable, Iterator
from functools import cached_property
from typing import NamedTuple, Protocol

import numpy as np

from trainer.contract import Data
from trainer.data.images.cache import open_index
from trainer.data.images.database import LmdbImages, check_lmdb, lmdb_index
from trainer.data.images.folder import FolderImages, check_folder, folder_index
from trainer.data.images.index import DataError, Index, Kind, raw, text
from trainer.data.images.shards import ShardImages, check_shards, check_suffix, index_beside, shard_index

__all__ = [
    "DataError", "Images", "Manifest", "Rows", "Split", "make_index", "named_manifest", "open_images", "read_manifest",
]  # fmt: skip

# Rows whose contents are copied at a time.
CHUNK = 1 << 16


class Images(Protocol):
    """The encoded images of a data set, by row of its manifest. For many threads at once, and across forks."""

    @property
    def is_remote(self) -> bool:
        """Whether reading an image waits for a server, so that it pays to ask for many at once."""

    def get(self, row: int) -> bytes:
        """Raises DataError when the image is gone or has changed, StorageError when it cannot be read."""

    def key(self, row: int) -> str: ...


class Manifest:
    """The images of a data set in key order. Rows are numbers; keys and contents are read when asked for."""

    def __init__(self, index: Index) -> None:
        self.index = index

    def __len__(self) -> int:
        return len(self.index)

    @property
    def digest(self) -> str:
        """Two data sets with the same digest hold the same images under the same keys."""
        return self.index.digest

    def key(self, row: int) -> str:
        return text(self.index.key(row))

    def content(self, row: int) -> str:
        """sha256 of the encoded image, in hex."""
        return self.index.contents[row].tobytes().hex()

    def find(self, key: str) -> int | None:
        """The row of a key; None where there is none."""
        try:
            return self.index.find(raw(key))
        except UnicodeEncodeError:  # half a character, which JSON can say and no name can hold
            return None

    def split(self, *, held_out: int, subset_size: int | None, subset_seed: int) -> "Split":
        """Held-out images first, by an order no seed moves, then a nested subset of the rest.

        Raises DataError when the data holds fewer images than asked for.
        """
        largest = len(self) - held_out
        size = largest if subset_size is None else subset_size
        if not 1 <= size <= largest:
            raise DataError(
                f"asked for a subset of {subset_size} images; possible: 1 to {largest} "
                f"({len(self)} images less {min(held_out, len(self))} held out)"
            )
        kept_back = self._first("held out", held_out)
        # Of this many, enough are left when what is held out is taken away.
        candidates = self._first(f"subset {subset_seed}", size + held_out)
        train = candidates[~np.isin(candidates, kept_back)][:size]
        return Split(train=Rows(self, train), held_out=Rows(self, kept_back))

    def _first(self, label: str, count: int) -> np.ndarray:
        """The first rows in the label's order: by `order_words`, then by content, then by key."""
        contents = self.index.contents
        words = np.empty(len(contents), np.uint64)
        for start in range(0, len(words), CHUNK):
            words[start : start + CHUNK] = order_words(contents[start : start + CHUNK], label)
            self.index.let_go()
        # Stable sorts: copies of an image stay in key order.
        if count < len(words):
            last = max(count, 1) - 1
            rows = np.flatnonzero(words <= np.partition(words, last)[last])
            rows = rows[np.argsort(words[rows], kind="stable")]
        else:
            rows = np.argsort(words, kind="stable")
        return _by_content_where_equal(rows, words, contents)[:count]


class Rows:
    """Some rows of a manifest, in an order."""

    def __init__(self, manifest: Manifest, rows: np.ndarray) -> None:
        self.manifest, self.rows = manifest, rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, position: int) -> int:
        return int(self.rows[position])

    def __iter__(self) -> Iterator[int]:
        return map(int, self.rows)

    def key(self, position: int) -> str:
        return self.manifest.key(self[position])

    def keys(self) -> Iterator[str]:
        return map(self.manifest.key, self)

    def contents(self) -> Iterator[str]:
        return map(self.manifest.content, self)

    @cached_property
    def digest(self) -> str:
        """sha256 of the contents' digests (32 bytes each), in order: equal ones saw the same images."""
        digest = hashlib.sha256()
        for start in range(0, len(self), CHUNK):
            digest.update(self.manifest.index.contents[self.rows[start : start + CHUNK]].tobytes())
        return digest.hexdigest()

    def among(self, contents: Iterable[str]) -> set[str]:
        """Those of these contents that are in the rows."""
        wanted = set(contents)
        words = np.array([int.from_bytes(bytes.fromhex(each[:16]), "little") for each in wanted], dtype="<u8")
        candidates = self.rows[np.isin(_first_words(self.manifest.index.contents)[self.rows], words)]
        return wanted & {self.manifest.content(int(row)) for row in candidates}


class Split(NamedTuple):
    """Images to train on and images never trained on, each in its own fixed order."""

    train: Rows
    held_out: Rows

    @property
    def manifest(self) -> Manifest:
        return self.train.manifest


def read_manifest(data: Data, tick: Callable[[int], object] = lambda images: None) -> Manifest:
    """What a data set holds: by the index the spec names or shards have beside them, else by digesting every image.

    Images are digested once: what was found is kept under ~/.cache/mcf and used again as long as the listing
    (names, sizes, versions) is the same. `tick` is called with the number of images digested since.

    Raises DataError when there is nothing to train on or the index belongs to other data, StorageError when an
    address cannot be read.
    """
    if data.index is None:
        index = index_beside(data.uri, data.suffix) if data.format == "shards" else None
        return Manifest(index or make_index(data, tick))
    manifest = named_manifest(data.index, data.format)
    CHECKS[data.format](data.uri, manifest.index)
    check_suffix(manifest.index, data.suffix)
    return manifest


def named_manifest(address: str, format: Kind) -> Manifest:
    """What an index says, whether or not the data is like that. Raises DataError, StorageError."""
    index = open_index(address)
    if index.about.kind != format:
        raise DataError(f"{address} is the index of a data set of format {index.about.kind}; the spec says {format}")
    return Manifest(index)


def make_index(data: Data, tick: Callable[[int], object]) -> Index:
    """What the data itself says, whatever index there is of it. Raises DataError, StorageError."""
    match data.format:
        case "folder":
            return folder_index(data.uri, tick)
        case "lmdb":
            return lmdb_index(data.uri, data.keys, tick)
        case "shards":
            return shard_index(data.uri, data.suffix, tick)


def open_images(data: Data, manifest: Manifest) -> Images:
    """Where the encoded images of a manifest come from."""
    return IMAGES[data.format](data.uri, manifest.index)


CHECKS: dict[str, Callable[[str, Index], object]] = {
    "folder": check_folder, "lmdb": check_lmdb, "shards": check_shards,
}  # fmt: skip
IMAGES: dict[str, Callable[[str, Index], Images]] = {
    "folder": FolderImages, "lmdb": LmdbImages, "shards": ShardImages,
}  # fmt: skip


def order_words(contents: np.ndarray, label: str) -> np.ndarray:
    """A word for every content digest [N, 32] that puts them in the label's order: uint64 [N].

    The first eight bytes of the content's sha256, as a little-endian number, are combined by exclusive or with
    the first eight of the sha256 of the label, and mixed by the finalizer of SplitMix64 (Steele, Lea and Flood
    2014, with Stafford's constants 13). It maps no two numbers to one, so words are equal where the first
    eight bytes of the contents are. These words decide which images a subset holds and must never change.
    """
    words = _first_words(contents)
    words ^= np.frombuffer(hashlib.sha256(label.encode()).digest()[:8], "<u8")
    for shift, factor in (30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB):
        words ^= words >> np.uint64(shift)
        words *= np.uint64(factor)
    words ^= words >> np.uint64(31)
    return words


def _first_words(contents: np.ndarray) -> np.ndarray:
    return contents.view("<u8")[:, 0].astype(np.uint64)


def _by_content_where_equal(rows: np.ndarray, words: np.ndarray, contents: np.ndarray) -> np.ndarray:
    """Rows in order of words, put in order of contents where words are equal and contents are not."""
    ordered = words[rows]
    equal = np.flatnonzero(ordered[1:] == ordered[:-1])
    unlike = equal[(contents[rows[equal]] != contents[rows[equal + 1]]).any(axis=1)]
    for word in np.unique(ordered[unlike]):
        places = np.flatnonzero(ordered == word)
        rows[places] = sorted(rows[places], key=lambda row: (contents[row].tobytes(), row))
    return rows
