"""Objects under one address, in a directory or in S3. No torch: the service reads runs through this too.

    StorageError          what went wrong and with which address
    ├── ObjectMissing     there is no such object
    └── OutOfTime         it took longer than there was time

S3 endpoint, credentials and patience come from the usual AWS variables (AWS_ENDPOINT_URL, AWS_ACCESS_KEY_ID,
AWS_MAX_ATTEMPTS, ...).
"""

import errno
import heapq
import logging
import os
import shutil
import stat
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, MutableSequence, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Protocol, TypeVar
from urllib.parse import urlsplit

import boto3
import botocore.exceptions
from boto3.s3.transfer import TransferConfig
from botocore.config import Config

from trainer.store.loopback import LOOPBACK

logger = logging.getLogger(__name__)

Answer = TypeVar("Answer")

# Parts are retried one by one, so a checkpoint of gigabytes survives a short fault of the object store.
TRANSFER = TransferConfig(multipart_threshold=16 << 20, multipart_chunksize=16 << 20, max_concurrency=4)

# Largest object that is read into memory because somebody has named it: a service has a few GiB for everything.
MAX_READ = 256 << 20


@dataclass(frozen=True)
class Patience:
    """With an S3 server that does not answer; AWS_MAX_ATTEMPTS counts more than `tries`."""

    connect_seconds: float = 5
    read_seconds: float = 60
    tries: int = 5


patience = Patience()
"""Of this process, set before its first request. A trainer has little else to do than wait; a service has."""

NOT_MODIFIED = 304
# Of `list_wide`: requests at a time, levels of folders that are listed one by one, and how many folders they may have.
WIDTH, DEPTH, MAX_FOLDERS = 16, 2, 200

# Prefix of a file on its way into a directory store.
ASIDE = ".aside-"


class StorageError(Exception):
    """An object store did not do what was asked."""


class ObjectMissing(StorageError):
    """There is no object of that name."""


class OutOfTime(StorageError):
    """It took longer than there was time."""


@dataclass(frozen=True)
class Entry:
    """One object: its name below the store's address, size in bytes, and a tag that changes with its content."""

    name: str
    size: int
    version: str


Skipped = Callable[[str, str], object]
"""Called with the name of something that is no object, and why."""


class Store(Protocol):
    """Objects by name (`a/b/c`) below one address. A put is complete or absent, never half there."""

    uri: str

    def put(self, name: str, data: bytes) -> None: ...
    def put_file(self, name: str, path: Path) -> None: ...
    def get(self, name: str) -> bytes: ...
    def get_file(self, name: str, path: Path) -> None: ...
    def get_range(self, name: str, start: int, length: int) -> tuple[bytes, str]:
        """A part of an object, and the object's version."""

    def get_changed(self, name: str, version: str) -> tuple[bytes, str] | None:
        """The object and its version, unless that is the one given."""

    def stat(self, name: str) -> Entry: ...
    def scan(self, skipped: Skipped = lambda name, why: None) -> Iterator[Entry]:
        """Every object, in no order; memory does not grow with them. `skipped`: told of what is there and is none."""

    def list(self, prefix: str = "") -> list[Entry]: ...
    def list_wide(self) -> Sequence[Entry]:
        """The same as `list`, sooner where there are many objects in a few folders."""

    def delete(self, names: Iterable[str]) -> None: ...
    def remove(self, first: str = "") -> None:
        """Everything below the address, and the folder itself; the object called `first` before all others."""

    def discard_unfinished(self, prefix: str = "") -> None:
        """Remove what puts left behind that died half-way. For the only writer below `prefix`."""


def open_store(uri: str) -> Store:
    """The store behind a local path, a file:// or an s3://bucket/prefix address; nothing is contacted yet."""
    if uri.startswith("s3://"):
        return S3Store(uri)
    return DirectoryStore(uri)


def split_uri(uri: str) -> tuple[str, str]:
    """Address of the folder and name of the object in it: s3://b/a/x.pt -> (s3://b/a, x.pt)."""
    head, _, name = uri.rpartition("/")
    return (head or ".", name) if head or not uri.startswith("/") else ("/", name)


def read_object(address: str) -> bytes:
    """The bytes at a path or s3:// address, which have to fit into memory. Raises StorageError."""
    folder, name = split_uri(address)
    store = open_store(folder)
    if (size := store.stat(name).size) > MAX_READ:
        raise StorageError(f"{address} has {size} bytes; possible: up to {MAX_READ}, as it is read as a whole")
    return store.get(name)


def insist(
    write: Callable[[], None], what: str, seconds: float, *,
    longest_pause: float = 10.0, unless: Callable[[], bool] = lambda: False,
) -> None:  # fmt: skip
    """Write, again and again for so long; gives up after a failure when `unless` says so. Raises StorageError."""
    deadline, pause = time.monotonic() + seconds, 0.5
    while True:
        try:
            return write()
        except StorageError as error:
            if time.monotonic() + pause > deadline or unless():
                raise
            logger.warning("%s is not saved yet, next try in %.1f s: %s", what, pause, error)
        time.sleep(pause)
        pause = min(2 * pause, longest_pause)


def within(seconds: float, work: Callable[[], Answer], what: str) -> Answer:
    """What `work` returns, where it does in time; else nobody waits for it any longer. Raises OutOfTime."""
    answer: Future[Answer] = Future()

    def run() -> None:
        try:
            answer.set_result(work())
        except BaseException as error:
            answer.set_exception(error)

    # A thread and no pool: a pool is waited for when the process ends.
    threading.Thread(target=run, name=what, daemon=True).start()
    try:
        return answer.result(max(0.0, seconds))
    except TimeoutError as error:
        if answer.done():
            raise
        raise OutOfTime(f"{what} took longer than {seconds:g} s") from error


class DirectoryStore:
    """A directory; put writes aside and renames, so that a reader never sees half an object."""

    def __init__(self, uri: str) -> None:
        self.uri = uri
        self.root = Path(uri.removeprefix("file://"))

    def put(self, name: str, data: bytes) -> None:
        with self._aside(name) as path:
            path.write_bytes(data)

    def put_file(self, name: str, path: Path) -> None:
        with self._aside(name) as aside:
            shutil.copyfile(path, aside)

    def get(self, name: str) -> bytes:
        # An image is read in 10 us like this, and in 25 with pathlib.
        try:
            with open(f"{self.root}/{_checked(self.uri, name)}", "rb", buffering=0) as file:
                return file.read()
        except FileNotFoundError as error:
            raise ObjectMissing(f"{self.uri}/{name} does not exist") from error
        except OSError as error:
            raise StorageError(f"{self.uri}/{name}: {error}") from error

    def get_file(self, name: str, path: Path) -> None:
        with _file_errors(self.uri, name):
            shutil.copyfile(self._path(name), path)

    def get_range(self, name: str, start: int, length: int) -> tuple[bytes, str]:
        with _file_errors(self.uri, name), self._path(name).open("rb") as file:
            return os.pread(file.fileno(), length, start), f"{os.fstat(file.fileno()).st_mtime_ns}"

    def get_changed(self, name: str, version: str) -> tuple[bytes, str] | None:
        found = self.stat(name).version
        return (self.get(name), found) if found != version else None

    def stat(self, name: str) -> Entry:
        with _file_errors(self.uri, name):
            found = self._path(name).stat()
        if not stat.S_ISREG(found.st_mode):
            raise StorageError(f"{self.uri}/{name} is no file that can be read: it is a folder, a device or a pipe")
        return _entry(name, found)

    def scan(self, skipped: Skipped = lambda name, why: None) -> Iterator[Entry]:
        return self._walk("", skipped)

    def list(self, prefix: str = "") -> list[Entry]:
        return sorted(self._walk(prefix), key=lambda entry: entry.name)

    def list_wide(self) -> Sequence[Entry]:
        return self.list()

    def delete(self, names: Iterable[str]) -> None:
        for name in names:
            with _file_errors(self.uri, name):
                path = self._path(name)
                path.unlink(missing_ok=True)
                with suppress(OSError):  # a folder that still holds something stays
                    path.parent.rmdir()

    def remove(self, first: str = "") -> None:
        with _file_errors(self.uri, ""):
            if first:
                (self.root / first).unlink(missing_ok=True)
            with suppress(FileNotFoundError):
                shutil.rmtree(self.root)

    def discard_unfinished(self, prefix: str = "") -> None:
        with _file_errors(self.uri, prefix):
            for path in (self.root / prefix).rglob(f"{ASIDE}*"):
                path.unlink(missing_ok=True)

    def _path(self, name: str) -> Path:
        return self.root / _checked(self.uri, name)

    def _walk(self, prefix: str, skipped: Skipped = lambda name, why: None) -> Iterator[Entry]:
        # Start at the deepest folder the prefix names: a store of many runs is not walked to list one.
        start = prefix.rpartition("/")[0]
        with _file_errors(self.uri, start):
            files = _Walk(skipped).files(self.root / start, start)
            yield from (entry for entry in files if entry.name.startswith(prefix))

    @contextmanager
    def _aside(self, name: str) -> Iterator[Path]:
        target = self._path(name)
        aside = target.with_name(f"{ASIDE}{uuid.uuid4().hex}")
        with _file_errors(self.uri, name):
            target.parent.mkdir(parents=True, exist_ok=True)
            try:
                yield aside
                with aside.open("rb") as file:
                    os.fsync(file.fileno())
                aside.replace(target)
            finally:
                aside.unlink(missing_ok=True)


class S3Store:
    """A prefix in a bucket; files go up in parts, and a put is seen whole or not at all."""

    def __init__(self, uri: str) -> None:
        self.uri = uri.rstrip("/")
        bucket, _, prefix = self.uri.removeprefix("s3://").partition("/")
        self.bucket, self.prefix = bucket, f"{prefix}/" if prefix else ""

    def put(self, name: str, data: bytes) -> None:
        with self._errors(name):
            _s3().put_object(Bucket=self.bucket, Key=self.prefix + name, Body=data)

    def put_file(self, name: str, path: Path) -> None:
        with self._errors(name):
            _s3().upload_file(str(path), self.bucket, self.prefix + name, Config=TRANSFER)

    def get(self, name: str) -> bytes:
        with self._errors(name):
            body: bytes = _s3().get_object(Bucket=self.bucket, Key=self.prefix + name)["Body"].read()
            return body

    def get_file(self, name: str, path: Path) -> None:
        with self._errors(name):
            _s3().download_file(self.bucket, self.prefix + name, str(path), Config=TRANSFER)

    def get_range(self, name: str, start: int, length: int) -> tuple[bytes, str]:
        with self._errors(name):
            wanted = f"bytes={start}-{start + length - 1}"
            answer = _s3().get_object(Bucket=self.bucket, Key=self.prefix + name, Range=wanted)
            return answer["Body"].read(), answer["ETag"].strip('"')

    def get_changed(self, name: str, version: str) -> tuple[bytes, str] | None:
        with self._errors(name):
            try:
                answer = _s3().get_object(Bucket=self.bucket, Key=self.prefix + name, IfNoneMatch=f'"{version}"')
            except botocore.exceptions.ClientError as error:
                if error.response["ResponseMetadata"]["HTTPStatusCode"] == NOT_MODIFIED:
                    return None
                raise
            # Not every server knows the condition.
            found = answer["ETag"].strip('"')
            return (answer["Body"].read(), found) if found != version else None

    def stat(self, name: str) -> Entry:
        with self._errors(name):
            answer = _s3().head_object(Bucket=self.bucket, Key=self.prefix + name)
            return Entry(name, answer["ContentLength"], answer["ETag"].strip('"'))

    def scan(self, skipped: Skipped = lambda name, why: None) -> Iterator[Entry]:
        return self._pages("")

    def list(self, prefix: str = "") -> list[Entry]:
        return sorted(self._pages(prefix), key=lambda entry: entry.name)

    def list_wide(self) -> Sequence[Entry]:
        # A page of 1000 names can be asked for only after the one before it, but many folders at once.
        found, folders = list[Entry](), [""]
        with ThreadPoolExecutor(WIDTH) as pool:
            for _ in range(DEPTH):
                below = list[str]()
                for entries, deeper in pool.map(self._level, folders):
                    found += entries
                    below += deeper
                folders = below
                if len(folders) > MAX_FOLDERS:
                    return self.list()
            for entries in pool.map(self.list, folders):
                found += entries
        return sorted(found, key=lambda entry: entry.name)

    def _level(self, folder: str) -> tuple[Sequence[Entry], Sequence[str]]:
        """Objects of one folder, and the folders in it."""
        below = list[str]()
        return list(self._pages(folder, below)), below

    def delete(self, names: Iterable[str]) -> None:
        for name in names:
            with self._errors(name):
                _s3().delete_object(Bucket=self.bucket, Key=self.prefix + name)

    def remove(self, first: str = "") -> None:
        self.delete([first] if first else [])
        self.delete([entry.name for entry in self.list()])
        self.discard_unfinished()

    def discard_unfinished(self, prefix: str = "") -> None:
        lister = _s3().get_paginator("list_multipart_uploads")
        # rclone's word for a bucket in which no upload is under way.
        with self._errors(prefix), suppress(_s3().exceptions.NoSuchUpload):
            pages = lister.paginate(Bucket=self.bucket, Prefix=self.prefix + prefix)
            for upload in (upload for page in pages for upload in page.get("Uploads", [])):
                _s3().abort_multipart_upload(Bucket=self.bucket, Key=upload["Key"], UploadId=upload["UploadId"])

    def _pages(self, prefix: str, folders: MutableSequence[str] | None = None) -> Iterator[Entry]:
        """`folders`: None = of all depths; else of this one, and the folders in it are added there."""
        lister = _s3().get_paginator("list_objects_v2")
        only: dict[str, str] = {} if folders is None else {"Delimiter": "/"}
        pages = lister.paginate(Bucket=self.bucket, Prefix=self.prefix + prefix, **only)
        with self._errors(prefix):
            for page in pages:
                if folders is not None:
                    folders.extend(each["Prefix"][len(self.prefix) :] for each in page.get("CommonPrefixes", []))
                for item in page.get("Contents", []):
                    name = item["Key"][len(self.prefix) :]
                    # Consoles mark a folder by an empty object that ends like one.
                    if name and not name.endswith("/"):
                        # Whoever lists may write the object to a file of this name.
                        yield Entry(_checked(self.uri, name), item["Size"], item["ETag"].strip('"'))

    @contextmanager
    def _errors(self, name: str) -> Iterator[None]:
        try:
            yield
        except botocore.exceptions.ClientError as error:
            code = error.response["Error"]["Code"]
            if code in ("404", "NoSuchKey", "NotFound"):
                raise ObjectMissing(f"{self.uri}/{name} does not exist") from error
            raise StorageError(f"{self.uri}/{name}: {error}") from error
        except (botocore.exceptions.BotoCoreError, boto3.exceptions.S3UploadFailedError, OSError) as error:
            raise StorageError(f"{self.uri}/{name}: {error}") from error


@cache
def _s3() -> Any:
    """Raises StorageError where the variables make no client."""
    try:
        return _client(os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL", ""))
    except (botocore.exceptions.BotoCoreError, ValueError) as error:
        raise StorageError(
            f"The AWS_* variables make no S3 client: {error}. AWS_ENDPOINT_URL is an address such as "
            "https://s3.example.org, and AWS_PROFILE is a profile of ~/.aws/config."
        ) from error


def _client(endpoint: str) -> Any:
    # What is on this machine is never behind a proxy, whatever the environment says of proxies.
    direct: dict[str, Any] = {"proxies": {}} if urlsplit(endpoint).hostname in LOOPBACK else {}
    return boto3.client(
        "s3",
        region_name=os.environ.get("AWS_REGION", os.environ.get("AWS_DEFAULT_REGION", "us-east-1")),
        # Checksums only where the protocol asks for them: several S3 servers reject the newer default.
        config=Config(
            retries={"mode": "standard", "total_max_attempts": int(os.environ.get("AWS_MAX_ATTEMPTS", patience.tries))},
            connect_timeout=patience.connect_seconds,
            read_timeout=patience.read_seconds,
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
            s3={"addressing_style": "path"} if endpoint else {},
            **direct,
        ),
    )


# A client's connections are not to be shared with forks, such as the workers that decode images.
os.register_at_fork(after_in_child=_s3.cache_clear)


def _checked(uri: str, name: str) -> str:
    if name.startswith("/") or ".." in name.split("/"):
        raise StorageError(f"{name!r} is not a name below {uri}")
    return name


class _Walk:
    """Every file below a folder, under one name each: linked folders come after all others, in the order of names."""

    def __init__(self, skipped: Skipped) -> None:
        self._skipped = skipped
        self._seen: set[tuple[int, int]] = set()
        self._links: list[tuple[str, Path]] = []

    def files(self, folder: Path, prefix: str) -> Iterator[Entry]:
        yield from self._below(folder, prefix)
        while self._links:
            heapq.heapify(self._links)
            name, linked = heapq.heappop(self._links)
            yield from self._below(linked, name)

    def _below(self, folder: Path, prefix: str) -> Iterator[Entry]:
        try:
            this = folder.stat()
            found = os.scandir(folder)
        except FileNotFoundError:  # deleted since it was listed, or never there
            return
        with found:
            if (this.st_dev, this.st_ino) in self._seen:
                self._skipped(prefix, "a folder that is read under another name")
                return
            self._seen.add((this.st_dev, this.st_ino))
            for item in found:
                yield from self._item(item, f"{prefix}/{item.name}" if prefix else item.name)

    def _item(self, item: "os.DirEntry[str]", name: str) -> Iterator[Entry]:
        if item.name.startswith(ASIDE):
            return
        try:
            what = item.stat()
        except FileNotFoundError:
            if item.is_symlink():  # any other was deleted since it was listed
                self._skipped(name, "a link to nothing")
            return
        except OSError as error:
            if error.errno != errno.ELOOP:
                raise
            self._skipped(name, "a link to itself")
            return
        if stat.S_ISDIR(what.st_mode):
            if item.is_symlink():
                self._links.append((name, Path(item.path)))
            else:
                yield from self._below(Path(item.path), name)
        elif stat.S_ISREG(what.st_mode):
            yield _entry(name, what)
        else:
            self._skipped(name, "a device, a pipe or a socket")


def _entry(name: str, stat: os.stat_result) -> Entry:
    return Entry(name, stat.st_size, f"{stat.st_mtime_ns}")


@contextmanager
def _file_errors(uri: str, name: str) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError as error:
        raise ObjectMissing(f"{uri}/{name} does not exist") from error
    except OSError as error:
        raise StorageError(f"{uri}/{name}: {error}") from error
