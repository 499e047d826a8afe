"""The index of a data set: written in bounded memory, complete or absent, and never of other data."""

import hashlib
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer.contract import Data
from trainer.data.images.cache import kept_index
from trainer.data.images.index import About, DataError, Index, Row, write_index
from trainer.data.images.sorting import Sorter, read_ahead
from trainer.data.manifest import Manifest, make_index, open_images, read_manifest

ABOUT = About("folder", "/data")
MANY = 200_000


def rows(count: int) -> Iterator[Row]:
    return (Row(b"%09d.jpg" % n, hashlib.sha256(b"%d" % n).digest(), n) for n in range(count))


def peak_bytes() -> int:
    return tracemalloc.get_traced_memory()[1]


def test_writing_opening_and_splitting_make_no_objects_of_rows(tmp_path: Path) -> None:
    tracemalloc.start()
    try:
        write_index(tmp_path / "index", rows(MANY), ABOUT)
        assert peak_bytes() < 4 << 20  # 200,000 keys as Python objects are 12 MB
        tracemalloc.reset_peak()
        manifest = Manifest(Index(tmp_path / "index"))
        assert peak_bytes() < 1 << 20
        tracemalloc.reset_peak()
        small = manifest.split(held_out=1000, subset_size=1000, subset_seed=0)
        assert peak_bytes() < 24 * MANY
        assert list(small.train.rows) == list(
            manifest.split(held_out=1000, subset_size=None, subset_seed=0).train.rows[:1000]
        )
        assert peak_bytes() < 64 * MANY
    finally:
        tracemalloc.stop()


@given(st.lists(st.tuples(st.binary(max_size=9), st.binary(max_size=3))))
def test_a_sorter_sorts_what_memory_does_not_hold_more_than_once(records: list[tuple[bytes, bytes]]) -> None:
    sorter = Sorter(chunk=3)
    for record in records:
        sorter.add(*record)
    assert list(sorter) == list(sorter) == sorted(records)


def test_reading_ahead_keeps_the_order_and_stays_near() -> None:
    begun: list[int] = []
    answers = read_ahead(lambda item: begun.append(item) or item * item, range(1000))
    assert [next(answers) for _ in range(5)] == [0, 1, 4, 9, 16]
    assert len(begun) < 100
    assert list(answers) == [item * item for item in range(5, 1000)]


def test_what_ends_the_writing_leaves_the_index_before_and_nothing_else(tmp_path: Path) -> None:
    def interrupted() -> Iterator[Row]:
        yield from rows(10)
        raise KeyboardInterrupt

    before = write_index(tmp_path / "index", rows(5), ABOUT).digest
    with pytest.raises(KeyboardInterrupt):
        write_index(tmp_path / "index", interrupted(), ABOUT)
    assert [path.name for path in tmp_path.iterdir()] == ["index"]
    assert Index(tmp_path / "index").digest == before


def test_a_key_that_comes_twice_is_named(tmp_path: Path) -> None:
    twice = [*rows(3), Row(b"000000002.jpg", bytes(32), 1)]
    with pytest.raises(DataError, match=r"'000000002\.jpg' comes twice"):
        write_index(tmp_path / "index", twice, ABOUT)


def test_an_index_cut_short_or_of_another_kind_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "index"
    write_index(path, rows(100), ABOUT)
    whole = path.read_bytes()
    for broken in b"", whole[:10], whole[:-1], whole + b"\0", b"x" + whole[1:]:
        path.write_bytes(broken)
        with pytest.raises(DataError, match="no complete index"):
            Index(path)
    with pytest.raises(DataError, match="mcf data index"):
        Index(tmp_path / "none")


def test_keys_need_not_be_text(tmp_path: Path) -> None:
    keys = [b"\xc3\xa9.jpg", b"\xff.jpg"]
    manifest = Manifest(write_index(tmp_path / "index", (Row(key, bytes(32), 1) for key in keys), ABOUT))
    assert manifest.key(0) == "\u00e9.jpg"
    assert [manifest.find(manifest.key(row)) for row in range(2)] == [0, 1]


def test_a_named_index_spares_the_listing_and_is_refused_for_other_data(
    tiny_faces: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    named = make_index(Data(uri=str(tiny_faces)), print).path
    monkeypatch.setattr("trainer.data.images.folder.list_images", None)
    data = Data(uri=str(tiny_faces), index=str(named))
    manifest = read_manifest(data)
    assert open_images(data, manifest).get(3) == (tiny_faces / "face003.png").read_bytes()

    other = tmp_path / "other"
    other.mkdir()
    for path in tiny_faces.iterdir():
        (other / path.name).write_bytes(path.read_bytes() + b"\0")
    with pytest.raises(DataError, match=r"not the index of .*other: 'face000.png' has"):
        read_manifest(data.model_copy(update={"uri": str(other)}))
    (other / "face000.png").unlink()
    with pytest.raises(DataError, match=r"names 'face000\.png', which is not there"):
        read_manifest(data.model_copy(update={"uri": str(other)}))
    with pytest.raises(DataError, match="of format folder; the spec says lmdb"):
        read_manifest(data.model_copy(update={"format": "lmdb"}))


def test_an_image_that_changed_its_size_or_went_is_refused_by_name(tmp_path: Path) -> None:
    for name in "abc":
        (tmp_path / f"{name}.png").write_bytes(name.encode() * 9)
    data = Data(uri=str(tmp_path))
    images = open_images(data, read_manifest(data))
    (tmp_path / "b.png").write_bytes(b"b" * 8)
    (tmp_path / "c.png").unlink()
    assert images.get(0) == b"a" * 9
    with pytest.raises(DataError, match=r"'b\.png' has 8 bytes, 9 when it was indexed"):
        images.get(1)
    with pytest.raises(DataError, match=r"'c\.png' is gone"):
        images.get(2)


def test_a_data_set_is_read_once_while_its_listing_is_the_same(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"a")
    reads: list[int] = []
    data = Data(uri=str(tmp_path))
    first = read_manifest(data, reads.append)
    assert read_manifest(data, reads.append).digest == first.digest
    assert reads == [1]
    (tmp_path / "a.png").write_bytes(b"ab")
    assert read_manifest(data, reads.append).digest != first.digest
    assert reads == [1, 1]


def test_an_index_that_cannot_be_made_is_not_kept(tmp_path: Path) -> None:
    def fails(path: Path) -> None:
        write_index(path, iter([]), ABOUT)

    identity = str(tmp_path)
    with pytest.raises(DataError, match="holds no images"):
        kept_index(identity, fails)
    assert len(kept_index(identity, lambda path: write_index(path, rows(2), ABOUT))) == 2
