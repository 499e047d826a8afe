"""Which images a data set holds, and which of them a run trains on. No torch, no decoding.

A manifest lists (key, sha256 of the bytes). Orders are drawn by hashing contents, not positions, so that
they survive renaming and copying, and subsets of one seed are nested (method 2.3).
"""

import hashlib
import json
import os
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from trainer.storage import Entry, Store, open_store

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".ppm", ".tif", ".tiff")


class DataError(Exception):
    """The data is not what the spec says: missing, empty, or other than it was."""


@dataclass(frozen=True)
class Manifest:
    """Images of a data set in key order: pairs (key, sha256 of the encoded bytes)."""

    images: tuple[tuple[str, str], ...]

    @cached_property
    def digest(self) -> str:
        return _digest(f"{key} {content}" for key, content in self.images)

    def split(self, *, held_out: int, subset_size: int | None, subset_seed: int) -> "Split":
        """Held-out images first, by an order no seed moves, then a nested subset of the rest.

        Raises DataError when the data holds fewer images than asked for.
        """
        by_fixed_order = self._ordered("held out")
        rest_keys = {key for key, _ in by_fixed_order[held_out:]}
        rest = [image for image in self._ordered(f"subset {subset_seed}") if image[0] in rest_keys]
        size = len(rest) if subset_size is None else subset_size
        if not 1 <= size <= len(rest):
            raise DataError(
                f"asked for a subset of {subset_size} images; possible: 1 to {len(rest)} "
                f"({len(self.images)} images less {min(held_out, len(self.images))} held out)"
            )
        return Split(train=tuple(rest[:size]), held_out=tuple(by_fixed_order[:held_out]))

    def _ordered(self, label: str) -> list[tuple[str, str]]:
        # The key breaks ties between copies of one image.
        return sorted(self.images, key=lambda image: (_sha(f"{label} {image[1]}"), image[0]))


@dataclass(frozen=True)
class Split:
    """Images to train on and images never trained on, each in its own fixed order."""

    train: tuple[tuple[str, str], ...]
    held_out: tuple[tuple[str, str], ...]

    @cached_property
    def train_digest(self) -> str:
        """Two runs with the same digest saw the same images."""
        return _digest(content for _, content in self.train)

    @cached_property
    def held_out_digest(self) -> str:
        return _digest(content for _, content in self.held_out)


def read_manifest(uri: str, format: str = "folder", keys: str | None = None, *, cache: Path | None = None) -> Manifest:
    """List and digest a data set.

    Contents are read once: the result is kept under `cache` (default ~/.cache/mcf/manifests) and found
    again as long as the listing (names, sizes, versions) is the same.

    Raises DataError when there is nothing to train on, StorageError when the address cannot be read.
    """
    if format == "lmdb":
        return _lmdb_manifest(uri, keys)
    store = open_store(uri)
    if not uri.startswith("s3://") and not Path(uri).is_dir():
        raise DataError(f"there is no folder {uri}")
    listing = [entry for entry in store.list() if entry.name.lower().endswith(IMAGE_SUFFIXES)]
    if not listing:
        raise DataError(f"{uri} holds no images ({', '.join(IMAGE_SUFFIXES)})")
    kept = _cache_file(cache, uri, listing)
    if kept.exists():
        return Manifest(tuple((key, content) for key, content in json.loads(kept.read_text())))
    with ThreadPoolExecutor(8) as pool:
        contents = pool.map(lambda entry: hashlib.sha256(store.get(entry.name)).hexdigest(), listing)
        manifest = Manifest(tuple(zip((entry.name for entry in listing), contents, strict=True)))
    _write_aside(kept, json.dumps(manifest.images))
    return manifest


def open_images(uri: str, format: str = "folder") -> "Store | LmdbImages":
    """Where the encoded bytes of an image come from: `.get(key) -> bytes`."""
    return LmdbImages(uri) if format == "lmdb" else open_store(uri)


class LmdbImages:
    """Read-only LMDB in the published layout: key = a line of the key list, value = encoded image bytes."""

    def __init__(self, path: str) -> None:
        self.path = path

    def get(self, key: str) -> bytes:
        with _open_lmdb(self.path).begin(buffers=False) as txn:
            value = txn.get(key.encode())
        if value is None:
            raise DataError(f"{self.path} holds no image {key!r}")
        return bytes(value)


def _lmdb_manifest(path: str, keys: str | None) -> Manifest:
    with _open_lmdb(path).begin(buffers=True) as txn:
        names = Path(keys).read_text().splitlines() if keys else _lmdb_keys(txn)
        images = []
        for name in names:
            value = txn.get(name.encode())
            if value is None:
                raise DataError(f"{keys} names {name!r}, which {path} does not hold")
            images.append((name, hashlib.sha256(value).hexdigest()))
    if not images:
        raise DataError(f"{path} holds no images")
    return Manifest(tuple(sorted(images)))


def _lmdb_keys(txn) -> Iterator[str]:  # type: ignore[no-untyped-def]
    # `length` is the published layout's own entry: the number of images as decimal text.
    return (bytes(key).decode() for key in txn.cursor().iternext(values=False) if bytes(key) != b"length")


def _open_lmdb(path: str):  # type: ignore[no-untyped-def]
    """The one environment of this database in this process; a database that was replaced is opened anew.

    LMDB refuses a second one, whoever asks. A fork may go on with it: without locks it is nothing but a mapped file.
    """
    try:
        import lmdb  # optional: only the trainer's extra has it
    except ImportError as error:
        raise DataError("reading LMDB needs the package lmdb: pip install 'mcf[trainer]'") from error
    folder = Path(path)
    if not folder.exists():
        raise DataError(f"there is no LMDB at {path}")
    stat = (folder / "data.mdb" if folder.is_dir() else folder).stat()
    with _opening_lmdb:
        version, env = _open_lmdbs.get(path, (None, None))
        if version != (stat.st_ino, stat.st_mtime_ns):
            if env is not None:
                env.close()
            env = lmdb.open(path, readonly=True, lock=False, readahead=False, subdir=folder.is_dir())
            _open_lmdbs[path] = ((stat.st_ino, stat.st_mtime_ns), env)
        return env


_open_lmdbs: dict[str, tuple[tuple[int, int], Any]] = {}
_opening_lmdb = threading.Lock()


def _cache_file(cache: Path | None, uri: str, listing: list[Entry]) -> Path:
    folder = cache or Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "mcf" / "manifests"
    where = uri if uri.startswith("s3://") else str(Path(uri).resolve())
    return folder / f"{_digest([where, *(f'{e.name} {e.size} {e.version}' for e in listing)])}.json"


def _write_aside(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_suffix(f".{os.getpid()}")
    aside.write_text(text)
    aside.replace(path)


def _digest(lines: "list[str] | Iterator[str]") -> str:
    digest = hashlib.sha256()
    for line in lines:
        digest.update(line.encode() + b"\n")
    return digest.hexdigest()


def _sha(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
