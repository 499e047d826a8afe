"""Where a benchmark's files are, and whether they are still the ones that were asked for. No torch."""

import hashlib
import math
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from trainer.data.manifest import DataError
from trainer.evaluation.readers.place import ListedPlace, Listing, Place
from trainer.store.objects import open_store

FETCHERS = 16
# Faces of a benchmark on a store that a submission looks at; the run's start looks at more (record.py).
LOOKED_AT = 32


class Files:
    """All files below a path or s3:// address, listed once. Raises DataError where there are none, StorageError."""

    def __init__(self, uri: str) -> None:
        self.uri = uri
        self.is_remote = uri.startswith("s3://")
        self.entries = open_store(uri).list_wide()
        if not self.entries:
            raise DataError(f"{uri} holds no files; possible: the folder of the benchmark, as docs/evaluation.md says")

    @property
    def digest(self) -> str:
        """sha256 over names and sizes. Not over contents: those are gigabytes that a submission cannot read."""
        text = "".join(f"{entry.name}\n{entry.size}\n" for entry in self.entries)
        return hashlib.sha256(text.encode()).hexdigest()

    def root(self, until: float = math.inf) -> Place:
        """The folder for a reader. After `until`, of the monotonic clock, nothing is fetched any more."""
        if self.is_remote:
            return ListedPlace("", Listing(self.uri, self.entries, until))
        return Path(self.uri.removeprefix("file://"))


def digest_of_faces(manifest: str, annotations: str) -> str:
    """Digest of a probe or of `faces68`, from that of the images' contents and that of the file of annotations."""
    return hashlib.sha256(f"{manifest} {annotations}".encode()).hexdigest()


def local_folder(uri: str, scratch: Path) -> Path:
    """The benchmark on this machine: its own folder, or what was fetched into `scratch`. Raises StorageError."""
    if not uri.startswith("s3://"):
        return Path(uri.removeprefix("file://"))
    store = open_store(uri)
    names = [entry.name for entry in store.list()]

    def fetch(name: str) -> None:
        path = scratch / name
        path.parent.mkdir(parents=True, exist_ok=True)
        store.get_file(name, path)

    with ThreadPoolExecutor(FETCHERS) as pool:
        list(pool.map(fetch, names))
    return scratch
