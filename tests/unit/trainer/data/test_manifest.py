"""Which images a run trains on follows from contents and seeds alone."""

import hashlib
import shutil
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer.contract import Data
from trainer.data.images.index import About, Row, write_index
from trainer.data.manifest import DataError, Manifest, Rows, order_words, read_manifest
from trainer.store.objects import open_store


def manifest_of(images: dict[str, bytes]) -> Manifest:
    """A manifest as it comes from a file; images: sha256 by key."""
    with tempfile.TemporaryDirectory() as folder:
        rows = (Row(key.encode(), content, 1) for key, content in sorted(images.items()))
        return Manifest(write_index(Path(folder, "index"), rows, About("folder", "/data")))


def content(number: int) -> bytes:
    return hashlib.sha256(b"%d" % number).digest()


IMAGES = manifest_of({f"{n}.png": content(n) for n in range(40)})


@given(st.integers(1, 30), st.integers(1, 30), st.integers(0, 5), st.integers(0, 10))
def test_subsets_are_nested_and_never_hold_what_is_held_out(a: int, b: int, seed: int, held_out: int) -> None:
    small, large = (
        IMAGES.split(held_out=held_out, subset_size=size, subset_seed=seed) for size in (min(a, b), max(a, b))
    )
    assert list(large.train)[: len(small.train)] == list(small.train)
    assert (len(small.train), len(small.held_out)) == (min(a, b), held_out)
    assert not set(large.train) & set(large.held_out)
    other_seed = IMAGES.split(held_out=held_out, subset_size=1, subset_seed=9)
    assert list(small.held_out) == list(large.held_out) == list(other_seed.held_out)


def test_the_order_of_a_subset_is_written_down() -> None:
    # By hand: python integers instead of arrays. Were this to change, every subset would hold other images.
    def word(content: bytes, label: str) -> int:
        x = int.from_bytes(content[:8], "little") ^ int.from_bytes(
            hashlib.sha256(label.encode()).digest()[:8], "little"
        )
        x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
        x = (x ^ (x >> 27)) * 0x94D049BB133111EB % 2**64
        return x ^ (x >> 31)

    contents = np.frombuffer(b"".join(map(content, range(40))), np.uint8).reshape(-1, 32)
    assert order_words(contents, "subset 3").tolist() == [word(content(n), "subset 3") for n in range(40)]
    split = IMAGES.split(held_out=4, subset_size=6, subset_seed=3)
    assert list(split.held_out.keys()) == GOLDEN_HELD_OUT
    assert list(split.train.keys()) == GOLDEN_TRAIN
    assert split.train.digest == hashlib.sha256(b"".join(content(int(key[:-4])) for key in GOLDEN_TRAIN)).hexdigest()


DIGITS = {ord(letter): None for letter in "x0123456789"}
GOLDEN_HELD_OUT = ["25.png", "5.png", "16.png", "9.png"]
GOLDEN_TRAIN = ["24.png", "23.png", "19.png", "17.png", "22.png", "14.png"]


def test_orders_of_two_seeds_have_nothing_to_do_with_each_other() -> None:
    contents = np.frombuffer(b"".join(map(content, range(4000))), np.uint8).reshape(-1, 32)
    ranks = [order_words(contents, label).argsort().argsort() for label in ("held out", "subset 0", "subset 1")]
    # Three standard deviations of a correlation by chance.
    assert np.abs(np.corrcoef(ranks)[np.triu_indices(3, 1)]).max() < 3 / 4000**0.5


def test_names_have_no_say_in_a_subset_but_between_copies_of_an_image() -> None:
    renamed = manifest_of({f"{hashlib.md5(b'%d' % n).hexdigest()}.jpg": content(n) for n in range(40)})
    one, other = (each.split(held_out=5, subset_size=20, subset_seed=1) for each in (IMAGES, renamed))
    assert list(one.train.contents()) == list(other.train.contents())
    assert (one.train.digest, one.held_out.digest) == (other.train.digest, other.held_out.digest)
    copies = manifest_of({key: content(1) for key in "dbca"}).split(held_out=1, subset_size=2, subset_seed=0)
    assert (list(copies.held_out.keys()), list(copies.train.keys())) == (["a"], ["b", "c"])


def test_contents_that_begin_alike_are_ordered_by_the_rest() -> None:
    begin = content(0)[:8]
    alike = [begin + bytes([last]) * 24 for last in (3, 1, 2)]
    manifest = manifest_of(dict(zip("abc", alike, strict=True)) | {f"x{n}": content(n) for n in range(1, 20)})
    everything = manifest.split(held_out=0, subset_size=None, subset_seed=0).train
    assert "".join(everything.keys()).translate(DIGITS) == "bca"


def test_a_subset_larger_than_the_data_says_what_is_possible() -> None:
    with pytest.raises(DataError, match=r"1 to 30 \(40 images less 10 held out\)"):
        IMAGES.split(held_out=10, subset_size=31, subset_seed=0)


def test_keys_and_contents_are_found() -> None:
    assert [IMAGES.find(IMAGES.key(row)) for row in range(40)] == list(range(40))
    assert [IMAGES.find(key) for key in ("", "0.pn", "0.png0", "zzz")] == [None] * 4
    rows = Rows(IMAGES, np.array([7, 3]))
    asked = {IMAGES.content(3), IMAGES.content(4), content(77).hex()}
    assert rows.among(asked) == {IMAGES.content(3)}


def test_renaming_a_folder_changes_no_subset_and_new_contents_change_the_digest(
    tiny_faces: Path, tmp_path: Path
) -> None:
    moved = tmp_path / "moved"
    shutil.copytree(tiny_faces, moved)
    before = read_manifest(Data(uri=str(tiny_faces)))
    assert read_manifest(Data(uri=str(moved))).digest == before.digest
    (moved / "face000.png").write_bytes((moved / "face001.png").read_bytes())
    assert read_manifest(Data(uri=str(moved))).digest != before.digest


def test_the_digest_is_that_of_the_lines_key_and_content(tiny_faces: Path) -> None:
    lines = (f"{path.name} {hashlib.sha256(path.read_bytes()).hexdigest()}\n" for path in sorted(tiny_faces.iterdir()))
    assert read_manifest(Data(uri=str(tiny_faces))).digest == hashlib.sha256("".join(lines).encode()).hexdigest()


def test_a_folder_in_s3_is_the_same_data_as_on_disk(tiny_faces: Path, s3_server: str) -> None:
    store = open_store(s3_server)
    for image in tiny_faces.iterdir():
        store.put(image.name, image.read_bytes())
    assert read_manifest(Data(uri=s3_server)).digest == read_manifest(Data(uri=str(tiny_faces))).digest


def test_an_empty_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds no images"):
        read_manifest(Data(uri=str(tmp_path)))
