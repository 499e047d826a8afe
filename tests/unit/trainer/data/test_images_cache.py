"""What is fetched from S3 stays below its bound on disk, for however many processes at once."""

import multiprocessing
import threading
from pathlib import Path

import pytest

from trainer.data.images.cache import FileCache, digest_of, locked
from trainer.data.images.index import DataError
from trainer.store.objects import Entry, Store, open_store

SIZE = 100_000
LIMIT = int(2.5 * SIZE)


@pytest.fixture
def store(s3_server: str) -> Store:
    """Ten objects of which two fit at a time."""
    bucket = open_store(s3_server)
    for number in range(10):
        bucket.put(f"{number}", bytes([number]) * SIZE)
    return bucket


def kept_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir())


def test_the_least_recently_opened_make_room_and_are_fetched_again(store: Store, tmp_path: Path) -> None:
    cache = FileCache(tmp_path, LIMIT)
    first, second, third = store.list()[:3]
    with cache.open(store, first) as held, cache.open(store, second):
        cache.open(store, first).close()
        cache.open(store, third).close()
        files = {path.name for path in tmp_path.iterdir() if not path.suffix}
        assert files == {digest_of(f"{store.uri} {each.name} {each.size} {each.version}") for each in (first, third)}
        cache.open(store, second).close()
        assert kept_bytes(tmp_path) <= LIMIT
        assert held.read() == bytes([0]) * SIZE  # read to its end although it had to go


def read_all(folder: Path, uri: str, order: list[int]) -> None:
    cache, store = FileCache(folder, LIMIT), open_store(uri)
    entries = store.list()
    for number in order:
        with cache.open(store, entries[number]) as file:
            assert file.read() == bytes([number]) * SIZE


def test_processes_share_it_and_stay_below_its_bound(store: Store, tmp_path: Path) -> None:
    fork = multiprocessing.get_context("fork")
    orders = [list(range(10)) * 2, list(range(9, -1, -1)) * 2, [3, 4, 3, 5, 3, 6] * 3]
    readers = [fork.Process(target=read_all, args=(tmp_path, store.uri, order)) for order in orders]
    for reader in readers:
        reader.start()
    most = 0
    while any(reader.is_alive() for reader in readers):
        with locked(tmp_path / "room.lock"):  # between two changes
            held = [path for path in tmp_path.iterdir() if path.suffix in ("", ".part")]
            most = max(most, sum(path.stat().st_size for path in held))
    assert [reader.exitcode for reader in readers] == [0, 0, 0]
    assert SIZE <= most <= LIMIT
    assert kept_bytes(tmp_path) <= LIMIT


def test_what_a_killed_process_left_goes_and_what_others_fetch_stays(store: Store, tmp_path: Path) -> None:
    cache = FileCache(tmp_path, LIMIT)
    for name in "fetching", "killed":
        (tmp_path / f"{name}.part").write_bytes(bytes(SIZE))
        (tmp_path / f"{name}.part.aB12").write_bytes(bytes(SIZE))  # as boto3 names what it writes
    with locked(tmp_path / "fetching.lock"):
        cache.open(store, store.stat("1")).close()
        assert {path.name for path in tmp_path.glob("*.part*")} == {"fetching.part", "fetching.part.aB12"}


def test_a_fetch_waits_for_the_place_that_others_hold(store: Store, tmp_path: Path) -> None:
    cache = FileCache(tmp_path, LIMIT)
    reader = threading.Thread(target=lambda: cache.open(store, store.stat("1")).close())
    with locked(tmp_path / "other.lock"):
        (tmp_path / "other.part").write_bytes(bytes(2 * SIZE))
        reader.start()
        reader.join(timeout=0.5)
        assert reader.is_alive()
    reader.join(timeout=10)
    assert not reader.is_alive()


def test_what_is_larger_than_the_cache_or_changed_is_refused(store: Store, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=f"100000 bytes and the cache holds {SIZE - 1}: raise MCF_CACHE_GIB"):
        FileCache(tmp_path, SIZE - 1).open(store, store.stat("1"))
    with pytest.raises(DataError, match="changed while it was read"):
        FileCache(tmp_path, LIMIT).open(store, Entry("1", SIZE, "another version"))
    assert not [path for path in tmp_path.iterdir() if path.suffix != ".lock"]


def test_a_bound_that_is_no_number_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MCF_CACHE_GIB", "much")
    with pytest.raises(DataError, match="MCF_CACHE_GIB is 'much'; possible: a number"):
        FileCache()
