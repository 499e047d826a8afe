"""Which images a run trains on follows from contents and seeds alone."""

import shutil
from pathlib import Path

import lmdb
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer.manifest import DataError, Manifest, open_images, read_manifest
from trainer.storage import open_store

IMAGES = Manifest(tuple((f"{n}.png", f"{n * 7919:064x}") for n in range(40)))


@given(st.integers(1, 30), st.integers(1, 30), st.integers(0, 5), st.integers(0, 10))
def test_subsets_are_nested_and_never_hold_what_is_held_out(a: int, b: int, seed: int, held_out: int) -> None:
    small, large = (
        IMAGES.split(held_out=held_out, subset_size=size, subset_seed=seed) for size in (min(a, b), max(a, b))
    )
    assert large.train[: len(small.train)] == small.train
    assert not set(large.train) & set(large.held_out)
    assert small.held_out == large.held_out == IMAGES.split(held_out=held_out, subset_size=1, subset_seed=9).held_out


def test_a_subset_larger_than_the_data_says_what_is_possible() -> None:
    with pytest.raises(DataError, match=r"1 to 30 \(40 images less 10 held out\)"):
        IMAGES.split(held_out=10, subset_size=31, subset_seed=0)


def test_renaming_a_folder_changes_no_subset_and_new_contents_change_the_digest(
    tiny_faces: Path, tmp_path: Path
) -> None:
    moved = tmp_path / "moved"
    shutil.copytree(tiny_faces, moved)
    before, after = read_manifest(str(tiny_faces)), read_manifest(str(moved))
    assert before == after
    (moved / "face000.png").write_bytes((moved / "face001.png").read_bytes())
    assert read_manifest(str(moved)).digest != before.digest


def test_a_folder_in_s3_is_the_same_data_as_on_disk(tiny_faces: Path, s3_server: str) -> None:
    store = open_store(s3_server)
    for image in tiny_faces.iterdir():
        store.put(image.name, image.read_bytes())
    assert read_manifest(s3_server) == read_manifest(str(tiny_faces))


def test_an_lmdb_in_the_published_layout_is_read_with_and_without_a_key_list(tiny_faces: Path, tmp_path: Path) -> None:
    names = sorted(image.name for image in tiny_faces.iterdir())
    with lmdb.open(str(tmp_path / "db"), map_size=1 << 24) as env, env.begin(write=True) as txn:
        txn.put(b"length", str(len(names)).encode())
        for name in names:
            txn.put(name.encode(), (tiny_faces / name).read_bytes())
    path = str(tmp_path / "db")
    assert read_manifest(path, "lmdb") == read_manifest(str(tiny_faces))
    (tmp_path / "keys.txt").write_text("\n".join(names[:5]))
    assert [key for key, _ in read_manifest(path, "lmdb", str(tmp_path / "keys.txt")).images] == names[:5]
    assert open_images(path, "lmdb").get(names[3]) == (tiny_faces / names[3]).read_bytes()


def test_an_empty_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds no images"):
        read_manifest(str(tmp_path))
