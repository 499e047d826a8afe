"""Tar shards hold what the folder holds; an interrupted writer goes on; what is damaged is refused."""

import hashlib
import io
import tarfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import lmdb
import pytest
from pydantic import ValidationError

from trainer.contract import Data, RunSpec
from trainer.data.images.index import Index
from trainer.data.images.sharding import write_shards
from trainer.data.images.shards import OPEN_FILES, ShardImages
from trainer.data.manifest import DataError, Images, Manifest, Rows, make_index, open_images, read_manifest
from trainer.store.objects import open_store

SHARD_BYTES = 8 << 10


class Folder:
    """The faces as a data set."""

    def __init__(self, path: Path) -> None:
        self.path, self.data = path, Data(uri=str(path))
        self.manifest = read_manifest(self.data)
        self.images = open_images(self.data, self.manifest)

    @property
    def rows(self) -> Rows:
        return self.manifest.split(held_out=0, subset_size=None, subset_seed=0).train

    def shard(self, out: str, images: Images | None = None, shard_bytes: int = SHARD_BYTES) -> Index:
        return write_shards(images or self.images, self.rows, out, shard_bytes)


@pytest.fixture
def folder(tiny_faces: Path) -> Folder:
    return Folder(tiny_faces)


def shards(uri: str, **more: Any) -> Data:
    return Data(uri=uri, format="shards", **more)


def tars(path: Path) -> list[Path]:
    return sorted(path.glob("*.tar"))


def contents(images: Images, manifest: Manifest) -> Iterator[tuple[str, bytes]]:
    return ((manifest.key(row), images.get(row)) for row in range(len(manifest)))


@pytest.mark.parametrize("place", ["disk", "s3"])
def test_shards_hold_what_the_folder_holds_under_the_same_digest(
    folder: Folder, place: str, tmp_path: Path, s3_server: str
) -> None:
    uri = str(tmp_path / "out") if place == "disk" else f"{s3_server}/out"
    written = folder.shard(uri)
    assert len(written.about.shards) > 2
    data = shards(uri)
    manifest = read_manifest(data)
    assert manifest.digest == written.digest == folder.manifest.digest
    assert make_index(data, lambda images: None).digest == folder.manifest.digest
    expected = dict(contents(folder.images, folder.manifest))
    assert dict(contents(open_images(data, manifest), manifest)) == expected
    there, here = (
        each.split(held_out=5, subset_size=20, subset_seed=3).train.digest for each in (manifest, folder.manifest)
    )
    assert there == here


def test_shards_are_plain_tar_with_one_file_an_image_in_the_order_of_the_rows(folder: Folder, tmp_path: Path) -> None:
    written = folder.shard(str(tmp_path))
    names = []
    for path in tars(tmp_path):
        assert path.stat().st_size <= SHARD_BYTES
        with tarfile.open(path) as tar:
            for member in tar:
                assert member.isreg()
                file = tar.extractfile(member)
                assert file
                assert file.read() == (folder.path / member.name).read_bytes()
                names.append(member.name)
    assert names == list(folder.rows.keys())
    assert len({name.partition(".")[0] for name in names}) == 48  # webdataset: one sample an image
    keys = [written.key(row) for row in range(48)]
    assert keys == sorted(keys)


def test_what_others_wrote_is_read_without_an_index(folder: Folder, tmp_path: Path) -> None:
    """As webdataset writes: `./` before names, labels and captions beside the images."""
    with tarfile.open(tmp_path / "train-000.tar", "w") as tar:
        for image in sorted(folder.path.iterdir()):
            tar.add(image, f"./{image.name}")
            (tmp_path / "label.cls").write_text("7")
            tar.add(tmp_path / "label.cls", f"./{image.stem}.cls")
    manifest = read_manifest(shards(str(tmp_path)))
    assert manifest.digest == folder.manifest.digest


def test_an_interrupted_writer_goes_on_where_it_stopped(folder: Folder, tmp_path: Path) -> None:
    class Interrupted:
        """Images that the writer is killed while reading."""

        reads = 0

        def get(self, row: int) -> bytes:
            self.reads += 1
            if self.reads > 30:
                raise KeyboardInterrupt
            return folder.images.get(row)

        def key(self, row: int) -> str:
            return folder.images.key(row)

    whole, out = tmp_path / "whole", tmp_path / "out"
    folder.shard(str(whole))
    with pytest.raises(KeyboardInterrupt):
        folder.shard(str(out), Interrupted())
    before = {path.name: path.stat().st_ino for path in tars(out)}
    assert 0 < len(before) < len(tars(whole))
    assert [path.name for path in out.iterdir() if path not in tars(out)] == []

    (out / ".aside-killed").write_bytes(b"half a shard")
    folder.shard(str(out))
    assert not (out / ".aside-killed").exists()
    assert {path.name: path.stat().st_ino for path in tars(out)}.items() >= before.items()
    assert {path.name: path.read_bytes() for path in tars(out)} == {
        path.name: path.read_bytes() for path in tars(whole)
    }


def test_other_shards_are_not_mixed_with(folder: Folder, tmp_path: Path) -> None:
    folder.shard(str(tmp_path))
    with pytest.raises(DataError, match=r"already holds other shards, such as .*; name an empty folder"):
        folder.shard(str(tmp_path), shard_bytes=2 * SHARD_BYTES)


def test_an_image_that_changed_since_it_was_indexed_is_not_written(folder: Folder, tmp_path: Path) -> None:
    class Changed:
        def get(self, row: int) -> bytes:
            return folder.images.get(row)[:-1] + b"?"

        def key(self, row: int) -> str:
            return folder.images.key(row)

    with pytest.raises(DataError, match="has changed since it was indexed"):
        folder.shard(str(tmp_path), Changed())
    assert list(tmp_path.iterdir()) == []


def test_many_threads_read_more_shards_than_are_open(folder: Folder, tmp_path: Path) -> None:
    data = shards(str(tmp_path))
    written = folder.shard(data.uri, shard_bytes=1)
    assert len(written.about.shards) == 48 > OPEN_FILES
    manifest = read_manifest(data)
    images = open_images(data, manifest)
    rows = [number * 31 % 48 for number in range(48 * 100)]
    with ThreadPoolExecutor(16) as pool:
        for row, image in zip(rows, pool.map(images.get, rows), strict=True):
            assert hashlib.sha256(image).hexdigest() == manifest.content(row)


def cut(path: Path, length: int) -> None:
    with path.open("r+b") as file:
        file.truncate(length)


def test_a_shard_cut_short_is_refused_by_name(folder: Folder, tmp_path: Path) -> None:
    data = shards(str(tmp_path))
    folder.shard(data.uri)
    images = open_images(data, read_manifest(data))
    last = tars(tmp_path)[-1]
    size = last.stat().st_size
    cut(last, size - 1024)
    with pytest.raises(DataError, match=rf"{last.name} has {size - 1024} bytes and had {size} when it was indexed"):
        read_manifest(data)
    with pytest.raises(DataError, match=f"{last.name} has {size - 1024} bytes"):
        [images.get(row) for row in range(48)]


def test_without_its_index_too_a_damaged_tar_is_refused(folder: Folder, tmp_path: Path) -> None:
    data = shards(str(tmp_path))
    folder.shard(data.uri)
    (tmp_path / "index.mcf").unlink()
    last = tars(tmp_path)[-1]
    whole = last.read_bytes()
    for damaged in (
        whole[:-1024],  # without its end
        whole[:700],  # in an image
        whole[:300],  # in a header
        whole[:512] + b"?" * 512 + whole[1024:2048] + b"?" * 512,
        b"\x1f\x8b" + whole,
        b"",
    ):
        last.write_bytes(damaged)
        with pytest.raises(DataError, match=last.name):
            read_manifest(data)
    last.write_bytes(whole)
    assert read_manifest(data).digest == folder.manifest.digest


def test_a_shard_that_is_missing_or_new_is_refused_by_name(folder: Folder, tmp_path: Path) -> None:
    data = shards(str(tmp_path))
    folder.shard(data.uri)
    first = tars(tmp_path)[0]
    extra = tmp_path / "zz.tar"
    extra.write_bytes(first.read_bytes())
    with pytest.raises(DataError, match=rf"zz\.tar is in {tmp_path} alone"):
        read_manifest(data)
    extra.unlink()
    first.unlink()
    with pytest.raises(DataError, match=f"{first.name} is in the index alone"):
        read_manifest(data)


def tar_of(path: Path, *names: str) -> bytes:
    """A tar of files whose content is their name; its bytes."""
    path.parent.mkdir(exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name in names:
            info = tarfile.TarInfo(name)
            info.size = len(name)
            tar.addfile(info, io.BytesIO(name.encode()))
    return path.read_bytes()


def keys_in(data: Data) -> list[str]:
    manifest = read_manifest(data)
    assert [content.decode() for _, content in contents(open_images(data, manifest), manifest)] == [
        manifest.key(row) for row in range(len(manifest))
    ]
    return [manifest.key(row) for row in range(len(manifest))]


def test_which_picture_of_a_sample_is_the_image_is_said_and_not_guessed(tmp_path: Path) -> None:
    tar_of(tmp_path / "000.tar", "a/000.jpg", "a/000.json", "a/000.seg.png", "a/001.JPG", "a/001.seg.png")
    uri = str(tmp_path)
    with pytest.raises(DataError, match=r"sample 'a/000' has several pictures, 'a/000.jpg' and 'a/000.seg"):
        read_manifest(shards(uri))
    assert keys_in(shards(uri, suffix="jpg")) == ["a/000.jpg", "a/001.JPG"]
    assert keys_in(shards(uri, suffix=".seg.png")) == ["a/000.seg.png", "a/001.seg.png"]
    assert len(keys_in(shards(uri, suffix="*"))) == 4
    with pytest.raises(DataError, match="holds no images"):
        read_manifest(shards(uri, suffix="webp"))


def test_an_index_made_for_another_suffix_is_refused(tmp_path: Path) -> None:
    tar_of(tmp_path / "000.tar", "0.jpg", "0.seg.png")
    found = read_manifest(shards(str(tmp_path), suffix="jpg"))
    (tmp_path / "index.mcf").write_bytes(found.index.path.read_bytes())
    assert keys_in(shards(str(tmp_path))) == ["0.jpg"]
    with pytest.raises(DataError, match=r"made with the suffix jpg, and data.suffix is seg.png"):
        read_manifest(shards(str(tmp_path), suffix="seg.png"))
    with pytest.raises(ValidationError, match=r"data.suffix: asked for jpg for format folder"):
        RunSpec.model_validate({"data": {"uri": "/data", "suffix": "jpg"}, "teacher": "none"})


def test_tars_one_after_the_other_are_read_to_the_end(tmp_path: Path) -> None:
    parts = [tar_of(tmp_path / "part", *names) for names in (("0.jpg", "1.jpg"), (), ("2.jpg",))]
    (tmp_path / "shards").mkdir()
    (tmp_path / "shards/all.tar").write_bytes(b"".join(parts))
    assert keys_in(shards(str(tmp_path / "shards"))) == ["0.jpg", "1.jpg", "2.jpg"]
    (tmp_path / "shards/all.tar").write_bytes(parts[0] + b"not a tar".ljust(512, b"x"))
    with pytest.raises(DataError, match=r"all.tar is cut short or damaged at byte 10240"):
        read_manifest(shards(str(tmp_path / "shards")))


def test_a_key_that_two_shards_hold_is_named(tiny_faces: Path, tmp_path: Path) -> None:
    for number in range(2):
        with tarfile.open(tmp_path / f"{number}.tar", "w") as tar:
            tar.add(tiny_faces / "face007.png", "face007.png")
    with pytest.raises(DataError, match=r"'face007\.png' comes twice"):
        read_manifest(shards(str(tmp_path)))


def test_a_subset_with_what_is_held_out_splits_as_in_all(folder: Folder, tmp_path: Path) -> None:
    whole = folder.manifest.split(held_out=6, subset_size=20, subset_seed=1)
    chosen = Rows(folder.manifest, [*whole.train, *whole.held_out])
    write_shards(folder.images, chosen, str(tmp_path), SHARD_BYTES)
    part = read_manifest(shards(str(tmp_path))).split(held_out=6, subset_size=20, subset_seed=1)
    assert (part.train.digest, part.held_out.digest) == (whole.train.digest, whole.held_out.digest)


def test_keys_of_a_database_get_a_suffix_by_which_readers_know_images(tiny_faces: Path, tmp_path: Path) -> None:
    with lmdb.open(str(tmp_path / "db"), map_size=1 << 20) as env, env.begin(write=True) as txn:
        for number in range(3):
            txn.put(b"faces/%d 0" % number, (tiny_faces / f"face00{number}.png").read_bytes())
        txn.put(b"length", b"3")
    data = Data(uri=str(tmp_path / "db"), format="lmdb")
    manifest = read_manifest(data)
    rows = manifest.split(held_out=0, subset_size=None, subset_seed=0).train
    write_shards(open_images(data, manifest), rows, str(tmp_path / "out"), SHARD_BYTES)
    sharded = read_manifest(shards(str(tmp_path / "out")))
    assert [sharded.key(row) for row in range(3)] == [f"faces/{number} 0.png" for number in range(3)]
    # Orders follow contents, so the same images are chosen whatever they are called.
    assert sharded.split(held_out=1, subset_size=None, subset_seed=0).train.digest == (
        manifest.split(held_out=1, subset_size=None, subset_seed=0).train.digest
    )


def test_names_that_are_long_or_not_utf8_come_back(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    names = [b"\xff.png", b"x" * 200 + b".png", "\u00e9".encode() * 60 + b".png"]
    for name in names:
        path = Path(folder, name.decode("utf-8", "surrogateescape"))
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(hashlib.sha256(name).digest())
    source = Folder(folder)
    source.shard(str(tmp_path / "out"))
    assert make_index(shards(str(tmp_path / "out")), lambda images: None).digest == source.manifest.digest


class TestRemote:
    """On a real S3 server."""

    @pytest.fixture
    def data(self, folder: Folder, s3_server: str) -> Data:
        folder.shard(f"{s3_server}/out")
        return shards(f"{s3_server}/out")

    def test_a_shard_that_was_replaced_is_refused(self, data: Data) -> None:
        manifest = read_manifest(data)
        store = open_store(data.uri)
        name = manifest.index.about.shards[0].name
        store.put(name, bytes(len(store.get(name))))
        with pytest.raises(DataError, match=f"{name} has changed since it was indexed"):
            read_manifest(data)
        store.delete([name])
        with pytest.raises(DataError, match=f"{data.uri}/index.mcf is not the index of {data.uri}: {name} is in the"):
            read_manifest(data)

    def test_what_does_not_fit_the_cache_is_read_image_by_image(
        self, data: Data, folder: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        room = 2.5 * SHARD_BYTES + read_manifest(data).index.file_bytes
        monkeypatch.setenv("MCF_CACHE_DIR", str(tmp_path))
        monkeypatch.setenv("MCF_CACHE_GIB", str(room / 2**30))
        manifest = read_manifest(data)
        images = open_images(data, manifest)
        assert isinstance(images, ShardImages)
        assert 0 < images.num_whole < len(images.shards)
        assert dict(contents(images, manifest)) == dict(contents(folder.images, folder.manifest))
        kept = [path.stat().st_size for path in (tmp_path / "objects").iterdir() if not path.suffix]
        assert len(kept) == 1 + images.num_whole
        assert sum(kept) <= room

        store, left = open_store(data.uri), images.shards[-1].name
        store.put(left, bytes(len(store.get(left))))
        rows = [row for row in range(48) if manifest.index.shards[row] == len(images.shards) - 1]
        with pytest.raises(DataError, match=f"{left} has changed since the run began"):
            images.get(rows[0])

    def test_an_index_may_lie_elsewhere(self, data: Data, tmp_path: Path) -> None:
        path = tmp_path / "elsewhere"
        open_store(data.uri).get_file("index.mcf", path)
        open_store(data.uri).delete(["index.mcf"])
        assert read_manifest(data.model_copy(update={"index": str(path)})).digest == read_manifest(data).digest
