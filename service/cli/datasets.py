"""What `mcf data` does: the parts of trainer.data.images, with progress for people."""

import contextlib
import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np

from service.cli.progress import progress
from service.connection import McfError
from trainer.contract import Data, Evaluation
from trainer.data.images.folder import is_image, not_read
from trainer.data.images.index import Kind
from trainer.data.images.sharding import write_shards
from trainer.data.images.shards import BESIDE, SUFFIX
from trainer.data.manifest import DataError, Manifest, Rows, Split, make_index, open_images, read_manifest
from trainer.store.objects import ObjectMissing, StorageError, open_store, split_uri

READ: dict[str, Callable[[str], bool]] = {
    "folder": is_image, "shards": lambda name: name.endswith(SUFFIX) or name == BESIDE,
}  # fmt: skip
"""Format -> whether a file of this name is a part of the data."""
# Names that are looked at to tell what a data set is.
GLANCE = 1000
FIRST_KEYS = 3
UNITS = ("bytes", "KiB", "MiB", "GiB", "TiB")


class Subset(NamedTuple):
    """Which images, as the fields of a spec say it."""

    size: int | None
    seed: int
    held_out: int | None

    def of(self, manifest: Manifest) -> Split:
        held_out = Evaluation().held_out if self.held_out is None else self.held_out
        return manifest.split(held_out=held_out, subset_size=self.size, subset_seed=self.seed)

    def rows(self, manifest: Manifest) -> Rows:
        """In a shuffled order. With what is held out, so that a run on these alone splits them as one on all does."""
        if self.size is None:
            return manifest.split(held_out=0, subset_size=None, subset_seed=self.seed).train
        split = self.of(manifest)
        return Rows(manifest, np.concatenate([split.held_out.rows, split.train.rows]))


def described(
    uri: str, format: str | None, keys: str | None, suffix: str | None, index: str | None = None
) -> Data:  # fmt: skip
    """The `data` of a spec, with absolute paths and what the data looks like where it is not said."""
    uri = absolute(uri)
    with _for_people():
        kind: Kind = Data.model_validate({"format": format}).format if format else _looks_like(uri)
    if keys and kind != "lmdb":
        raise McfError(f"--keys is for an LMDB, and {uri} is read as {kind}; `--format lmdb` if it is one")
    if suffix and kind != "shards":
        raise McfError(f"--suffix is for shards, and {uri} is read as {kind}; `--format shards` if it holds some")
    return Data(uri=uri, format=kind, keys=keys and absolute(keys), suffix=suffix, index=index and absolute(index))


def index(data: Data, output: str | None) -> None:
    """Write the index of a data set to a path or s3:// address."""
    to = absolute(output) if output else _index_of(data)
    with _for_people(), _counting("indexing") as tick:
        found = make_index(data, tick)
        folder, name = split_uri(to)
        open_store(folder).put_file(name, found.path)
    print(f"{len(found)} images, {_bytes(found.num_bytes)}, digest {found.digest}")
    print(f"index: {to}" + ("" if data.format == "shards" and output is None else " (data.index of a spec)"))


def shard(data: Data, out: str, shard_bytes: int, subset: Subset) -> None:
    """Write a data set, or a subset, as shards."""
    out = absolute(out)
    with _for_people():
        with _counting("indexing") as tick:
            manifest = read_manifest(data, tick)
        rows = subset.rows(manifest)
        with _counting("sharding", len(rows)) as tick:
            written = write_shards(open_images(data, manifest), rows, out, shard_bytes, tick)
    print(f"{len(written)} images, {_bytes(written.num_bytes)}, in {len(written.about.shards)} shards: {out}")
    print(f"digest {written.digest}, index {BESIDE} beside them")


def verify(data: Data) -> int:
    """Print every image with which something is wrong; returns how many. Decodes in a process that may load torch."""
    if importlib.util.find_spec("torch") is None:
        raise McfError("Decoding needs the trainer's packages: pip install 'mcf[trainer]'")
    index = data.index or _made_before(_index_of(data))
    data = data.model_copy(update={"index": index})
    command = [sys.executable, "-m", "trainer.data.verify", data.model_dump_json()]
    bad = total = done = 0
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process, progress("verifying") as line:
        assert process.stdout
        for text in process.stdout:
            said = json.loads(text)
            if "error" in said:
                raise McfError(said["error"])
            if "problem" in said:
                bad += 1
                print(_printable(f"{said['problem']}: {said['key']}: {said['reason']}"))
            total, done = said.get("total", total), said.get("done", done)
            line(f"verifying: {done} of {total} images")
        line(f"verifying: {total} images")
    if process.returncode:
        raise McfError(f"Not all images were read; trainer.data.verify exited with {process.returncode}")
    fine = "all as indexed, and all can be decoded" if index else "all can be decoded"
    print(f"{total} images: " + (f"{bad} problems" if bad else fine))
    if not index:
        print("not compared with an index, because there is none: `mcf data index` writes one")
    return bad


def show(data: Data, subset: Subset) -> None:
    """Print what a data set holds, and which subset a run would see."""
    with _for_people():
        with _counting("indexing") as tick:
            manifest = read_manifest(data, tick)
        split = subset.of(manifest) if subset.size else None
        # Not beside a named index, which is there so that nothing is listed.
        listed = data.index is None and data.format in READ
        skipped = not_read(data.uri, READ[data.format]) if listed else None
    index = manifest.index
    smallest, median, largest = (int(np.quantile(index.sizes, share)) for share in (0, 0.5, 1))
    print(f"{data.uri} ({data.format}): {len(manifest)} images, {_bytes(index.num_bytes)}")
    print(f"sizes: {smallest} to {largest} bytes, median {median}")
    print(f"digest: {manifest.digest}")
    print(_printable("first keys: " + ", ".join(manifest.key(row) for row in range(min(FIRST_KEYS, len(manifest))))))
    if index.about.shards:
        print(f"shards: {len(index.about.shards)}, {_bytes(sum(shard.size for shard in index.about.shards))}")
    if skipped:
        print(_printable(f"not read: {skipped}"))
    if split:
        print(f"subset: {len(split.train)} images, seed {subset.seed}, digest {split.train.digest}")
        print(f"held out: {len(split.held_out)} images, digest {split.held_out.digest}")


def absolute(address: str) -> str:
    """A path as the service would need it; an s3:// address as it is."""
    return address if "://" in address else os.path.abspath(Path(address).expanduser())


def _index_of(data: Data) -> str:
    """Where the index is written unless somebody says where."""
    return f"{data.uri.rstrip('/')}/{BESIDE}" if data.format == "shards" else f"{data.uri.rstrip('/')}.index"


def _made_before(address: str) -> str | None:
    """The address, if something lies there."""
    with _for_people():
        try:
            open_store(split_uri(address)[0]).stat(split_uri(address)[1])
        except ObjectMissing:
            return None
    return address


def _looks_like(uri: str) -> Kind:
    if not uri.startswith("s3://") and (Path(uri).is_file() or Path(uri, "data.mdb").exists()):
        return "lmdb"
    names = (entry.name for entry in islice(open_store(uri).scan(), GLANCE))
    return "shards" if any(name.endswith(SUFFIX) for name in names) else "folder"


@contextlib.contextmanager
def _for_people() -> Iterator[None]:
    try:
        yield
    except (DataError, StorageError) as error:
        raise McfError(str(error)) from error


@contextlib.contextmanager
def _counting(what: str, total: int | None = None) -> Iterator[Callable[[int], None]]:
    """To be called with the number of images done since the last call."""
    done, of = 0, f" of {total}" if total else ""
    with progress(what) as line:

        def tick(images: int) -> None:
            nonlocal done
            done += images
            line(f"{what}: {done}{of} images")

        yield tick


def _printable(text: str) -> str:
    """Names of files need not be UTF-8."""
    return text.encode("utf-8", "backslashreplace").decode()


def _bytes(number: float) -> str:
    for unit in UNITS[:-1]:
        if number < 1024:
            return f"{number:.4g} {unit}"
        number /= 1024
    return f"{number:.4g} {UNITS[-1]}"
