"""Databases in the published layout, with key lists as people have them."""

import multiprocessing
import shutil
from pathlib import Path

import lmdb
import pytest

from trainer.contract import Data
from trainer.data.manifest import DataError, Manifest, open_images, read_manifest


@pytest.fixture
def database(tiny_faces: Path, tmp_path: Path) -> Path:
    """48 images under keys as in published lists, with the entry `length`."""
    with lmdb.open(str(tmp_path / "db"), map_size=1 << 24) as env, env.begin(write=True) as txn:
        txn.put(b"length", b"48")
        for image in tiny_faces.iterdir():
            txn.put(b"train/%b 0" % image.name.encode(), image.read_bytes())
    return tmp_path / "db"


def listed(database: Path, text: bytes) -> Manifest:
    keys = database.with_name("keys.txt")
    keys.write_bytes(text)
    return read_manifest(Data(uri=str(database), format="lmdb", keys=str(keys)))


def test_every_key_is_an_image_but_length(database: Path, tiny_faces: Path) -> None:
    data = Data(uri=str(database), format="lmdb")
    manifest = read_manifest(data)
    assert len(manifest) == 48
    assert manifest.key(3) == "train/face003.png 0"
    assert open_images(data, manifest).get(3) == (tiny_faces / "face003.png").read_bytes()


@pytest.mark.parametrize("end", [b"\n", b"\r\n"])
@pytest.mark.parametrize("last", [b"", b"\n", b"\r\n\r\n"])
def test_a_list_may_be_shorter_and_end_its_lines_as_it_likes(database: Path, end: bytes, last: bytes) -> None:
    lines = [b"train/face009.png 0", b"train/face002.png 0"]
    manifest = listed(database, end.join(lines) + last)
    assert [manifest.key(row) for row in range(len(manifest))] == ["train/face002.png 0", "train/face009.png 0"]
    assert len(listed(database, b"\xef\xbb\xbf" + lines[0])) == 1


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (b"train/face001.png 0\ntrain/face99.png 0\n", r"line 2 of .*keys.txt is no key of an image in .*db"),
        (b"train/face001.png 0\ntrain/face001.png 0", r"'train/face001.png 0' comes twice"),
        (b"length\n", "line 1 of .*keys.txt is no key"),
        (b"x" * 600, "line 1 of .*keys.txt is no key"),
        (b"x" * 60_000_000, "line 1 of .*keys.txt is no key"),
        (b"\n\n", "holds no images"),
    ],
)
def test_a_list_that_does_not_fit_is_refused_with_the_line(database: Path, text: bytes, reason: str) -> None:
    with pytest.raises(DataError, match=reason):
        listed(database, text)


def test_a_list_tells_nothing_of_what_a_file_holds(database: Path) -> None:
    with pytest.raises(DataError) as refused:
        listed(database, b"MCF_TOKEN=hunter2")
    assert "hunter2" not in str(refused.value)
    for keys, reason in ("/dev/zero", "a device or a pipe"), (str(database), "Is a directory"):
        with pytest.raises(DataError, match=reason):
            read_manifest(Data(uri=str(database), format="lmdb", keys=keys))


def damaged(database: Path, how: str) -> None:
    file = database / "data.mdb"
    data = file.read_bytes()
    match how:
        case "cut":
            file.write_bytes(data[: len(data) // 4])
        case "cut at the meta pages":
            file.write_bytes(data[:8192])
        case "text":
            file.write_text("no database\n" * 1000)
        case "empty":
            file.write_bytes(b"")
        case "garbage":
            file.write_bytes(data[:8192] + b"\xa5" * (len(data) - 8192))


@pytest.mark.parametrize("how", ["cut", "cut at the meta pages", "text", "empty", "garbage"])
@pytest.mark.parametrize("is_named", [False, True])
def test_a_damaged_database_is_refused_and_ends_nobody(database: Path, how: str, is_named: bool) -> None:
    data = Data(uri=str(database), format="lmdb")
    if is_named:
        index = database.with_name("db.index")
        shutil.copy(read_manifest(data).index.path, index)
        data = data.model_copy(update={"index": str(index)})
        assert len(read_manifest(data)) == 48
    damaged(database, how)
    with pytest.raises(DataError, match=r"db is (cut short or damaged: .* \(SIG|no LMDB that can be read)"):
        read_manifest(data)


def test_the_index_of_a_list_is_found_again_until_list_or_database_change(database: Path) -> None:
    data = Data(uri=str(database), format="lmdb")
    reads: list[int] = []
    first = read_manifest(data, reads.append).digest
    assert read_manifest(data, reads.append).digest == first
    assert sum(reads) == 48
    with lmdb.open(str(database.with_name("new")), map_size=1 << 20) as env, env.begin(write=True) as txn:
        txn.put(b"train/face001.png 0", b"other")
    database.with_name("new").joinpath("data.mdb").replace(database / "data.mdb")
    assert read_manifest(data, reads.append).digest != first


def test_forks_read_on_while_their_parent_does(database: Path, tiny_faces: Path) -> None:
    data = Data(uri=str(database), format="lmdb")
    images = open_images(data, read_manifest(data))
    expected = [(tiny_faces / f"face{row:03d}.png").read_bytes() for row in range(48)]
    assert images.get(0) == expected[0]
    with multiprocessing.get_context("fork").Pool(2) as pool:
        assert pool.map(images.get, range(48)) == expected
    assert images.get(47) == expected[47]


def test_what_is_no_database_says_so(tmp_path: Path) -> None:
    for uri, reason in (
        ("/nowhere", "there is no file"),
        (str(tmp_path), "no data.mdb"),
        ("s3://bucket/db", "read from a disk"),
    ):
        with pytest.raises(DataError, match=reason):
            read_manifest(Data(uri=uri, format="lmdb"))
