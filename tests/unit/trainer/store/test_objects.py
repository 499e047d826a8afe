"""A directory and an S3 server keep the same promises."""

import os
from pathlib import Path
from typing import Any

import pytest

from trainer.evaluation.readers.source import local_folder
from trainer.store import objects
from trainer.store.objects import ObjectMissing, StorageError, Store, open_store, split_uri


@pytest.fixture(params=["directory", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    uri = str(tmp_path / "store") if request.param == "directory" else request.getfixturevalue("s3_server")
    return open_store(uri)


def test_what_was_put_is_got_listed_and_deleted(store: Store, tmp_path: Path) -> None:
    big = tmp_path / "big"
    big.write_bytes(os.urandom(33 << 20))  # over two parts of a multipart upload
    store.put("runs/a/spec.json", b"{}")
    store.put_file("runs/a/checkpoints/1/state.pt", big)
    store.put("runs/b/spec.json", b"{}")
    assert [(entry.name, entry.size) for entry in store.list("runs/a/")] == [
        ("runs/a/checkpoints/1/state.pt", 33 << 20),
        ("runs/a/spec.json", 2),
    ]
    back = tmp_path / "back"
    store.get_file("runs/a/checkpoints/1/state.pt", back)
    assert back.read_bytes() == big.read_bytes()
    store.delete(["runs/a/spec.json", "runs/a/never-was"])
    with pytest.raises(ObjectMissing, match=r"spec\.json does not exist"):
        store.get("runs/a/spec.json")


def test_listing_folders_side_by_side_finds_what_listing_does(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    names = ["top", "a/1", "a/b/2", "a/b/c/3", "a/b/c/d/4", "e/f/5"]
    for name in names:
        store.put(name, name.encode())
    assert store.list_wide() == store.list()
    assert len(store.list_wide()) == len(names)
    monkeypatch.setattr(objects, "MAX_FOLDERS", 1)
    assert store.list_wide() == store.list()


def test_leftovers_of_dead_puts_are_removed_and_none_is_no_error(store: Store) -> None:
    store.put("runs/a/spec.json", b"{}")
    store.discard_unfinished("runs/a/")
    assert [entry.name for entry in store.list("runs/a/")] == ["runs/a/spec.json"]


def test_a_listing_tells_changed_contents_apart(store: Store) -> None:
    store.put("a", b"one")
    before = store.list()
    store.put("a", b"two")
    assert store.list() != before


def test_a_directory_shows_no_half_written_object(tmp_path: Path) -> None:
    store = open_store(str(tmp_path))
    with pytest.raises(StorageError):
        store.put_file("state.pt", tmp_path / "missing")
    assert store.list() == []
    with pytest.raises(StorageError, match="not a name below"):
        store.put("../outside", b"")


def test_an_unreachable_server_is_a_storage_error(monkeypatch: pytest.MonkeyPatch, s3_server: str) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    objects._s3.cache_clear()
    try:
        with pytest.raises(StorageError, match="s3://mcf"):
            open_store(s3_server).get("anything")
    finally:
        objects._s3.cache_clear()


def test_linked_folders_are_followed_once_each_and_what_is_no_object_is_named(tmp_path: Path) -> None:
    root, elsewhere = tmp_path / "root", tmp_path / "elsewhere"
    for file in root / "real/a.jpg", root / "real/deep/b.jpg", elsewhere / "c.jpg", elsewhere / "inner/d.jpg":
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(b"1")
    for name, target in {
        "all": elsewhere, "zz": elsewhere, "inner": elsewhere / "inner", "again": root / "real", "up": root,
        "gone.jpg": tmp_path / "nothing", "me": root / "me", "file.jpg": elsewhere / "c.jpg",
    }.items():  # fmt: skip
        (root / name).symlink_to(target)
    (elsewhere / "back").symlink_to(root)
    os.mkfifo(root / "pipe.jpg")
    skipped: dict[str, str] = {}
    found = sorted(entry.name for entry in open_store(str(root)).scan(skipped.__setitem__))
    assert found == ["all/c.jpg", "all/inner/d.jpg", "file.jpg", "real/a.jpg", "real/deep/b.jpg"]
    again = "a folder that is read under another name"
    assert skipped == {
        "again": again, "all/back": again, "inner": again, "up": again, "zz": again, "gone.jpg": "a link to nothing",
        "me": "a link to itself", "pipe.jpg": "a device, a pipe or a socket",
    }  # fmt: skip
    assert [entry.name for entry in open_store(str(root)).list()] == found


class Bucket:
    """A client of a bucket with these keys; other servers than S3 itself do not take all of them."""

    def __init__(self, *keys: str) -> None:
        self.keys = keys

    def get_paginator(self, operation: str) -> "Bucket":
        return self

    def paginate(self, Bucket: str, Prefix: str) -> list[dict[str, Any]]:
        found = [key for key in self.keys if key.startswith(Prefix)]
        return [{"Contents": [{"Key": key, "Size": 1, "ETag": '"1"'} for key in found]}]


@pytest.mark.parametrize("key", ["prefix//etc/x", "prefix/../../x", "prefix/a/../../x", "prefix/.."])
def test_a_key_that_leads_out_of_the_folder_is_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, key: str
) -> None:
    monkeypatch.setattr(objects, "_s3", lambda: Bucket("prefix/a.jpg", key))
    store = open_store("s3://bucket/prefix")
    for listed in store.scan, store.list:
        with pytest.raises(StorageError, match=r"is not a name below s3://bucket/prefix"):
            list(listed())
    with pytest.raises(StorageError, match="is not a name below"):
        local_folder("s3://bucket/prefix", tmp_path / "scratch")
    assert not list(tmp_path.iterdir())


def test_marks_of_folders_are_no_objects(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(objects, "_s3", lambda: Bucket("prefix/", "prefix/a/", "prefix/a/b..jpg", "prefix/a/b/..c"))
    assert [entry.name for entry in open_store("s3://bucket/prefix").list()] == ["a/b..jpg", "a/b/..c"]


def test_an_address_splits_into_folder_and_name() -> None:
    assert split_uri("s3://bucket/teachers/x.pt") == ("s3://bucket/teachers", "x.pt")
    assert split_uri("/data/x.pt") == ("/data", "x.pt")
    assert split_uri("/x.pt") == ("/", "x.pt")
