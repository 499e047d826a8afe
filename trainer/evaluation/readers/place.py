"""A benchmark's files where they are: in a folder, or below an s3:// address, for the same readers. No torch."""

import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from fnmatch import fnmatchcase
from typing import Any, Protocol, Self

from trainer.data.manifest import DataError
from trainer.store.objects import Entry, OutOfTime, open_store

# Of a file that is fetched for a look; the largest list of a published benchmark has 10 MiB.
MAX_BYTES = 64 << 20


class Place(Protocol):
    """What a reader asks of a file or folder. A `pathlib.Path` is one."""

    @property
    def name(self) -> str: ...
    @property
    def stem(self) -> str: ...
    def __truediv__(self, name: str, /) -> Self: ...
    def __lt__(self, other: Any, /) -> bool: ...
    def is_file(self) -> bool: ...
    def is_dir(self) -> bool: ...
    def glob(self, pattern: str, /) -> Iterable[Self]:
        """What lies in this folder and has such a name."""

    def read_bytes(self) -> bytes: ...


class Listing:
    """The objects below an address, each fetched when it is read."""

    def __init__(self, uri: str, entries: Sequence[Entry], until: float) -> None:
        self.uri, self.until = uri.rstrip("/"), until
        self._store = open_store(uri)
        self.sizes = {entry.name: entry.size for entry in entries}
        self.names_in: dict[str, list[str]] = defaultdict(list)
        for name in self.sizes:
            self.names_in[name.rpartition("/")[0]].append(name)
        for folder in list(self.names_in):
            while folder := folder.rpartition("/")[0]:
                self.names_in[folder]  # a folder of folders is one, too

    def read(self, name: str) -> bytes:
        """Raises OutOfTime, DataError for what nobody would fetch for a look, StorageError."""
        if time.monotonic() > self.until:
            raise OutOfTime(f"there was no time to read {self.uri}/{name}")
        if (size := self.sizes.get(name, 0)) > MAX_BYTES:
            raise DataError(f"{self.uri}/{name} has {size} bytes; possible: up to {MAX_BYTES}")
        return self._store.get(name)


class ListedPlace:
    """A file or folder below an s3:// address; as text, its address. Cheap, as a reader makes half a million."""

    __slots__ = ("listing", "path")

    def __init__(self, path: str, listing: Listing) -> None:
        self.path, self.listing = path, listing

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ListedPlace) and self.path == other.path

    def __hash__(self) -> int:
        return hash(self.path)

    def __lt__(self, other: Any, /) -> bool:
        return bool(self.path < other.path)

    def __str__(self) -> str:
        return f"{self.listing.uri}/{self.path}".rstrip("/")

    @property
    def name(self) -> str:
        return self.path.rpartition("/")[2]

    @property
    def stem(self) -> str:
        return self.name.rpartition(".")[0] or self.name

    def __truediv__(self, name: str, /) -> "ListedPlace":
        return ListedPlace(f"{self.path}/{name}" if self.path else name, self.listing)

    def is_file(self) -> bool:
        return self.path in self.listing.sizes

    def is_dir(self) -> bool:
        return self.path in self.listing.names_in

    def glob(self, pattern: str, /) -> Iterator["ListedPlace"]:
        for name in self.listing.names_in.get(self.path, ()):
            if fnmatchcase(name.rpartition("/")[2], pattern):
                yield ListedPlace(name, self.listing)

    def read_bytes(self) -> bytes:
        return self.listing.read(self.path)
