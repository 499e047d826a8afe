"""Images are decoded once on a node, whoever asks, whatever dies, and within a bound."""

import errno
import json
import os
import random
import shutil
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.conftest import draw_faces
from tests.forks import Forked, forks
from tests.unit.trainer.data import decoding
from trainer.contract import MAX_PIXELS, Data
from trainer.data import slots
from trainer.data.decode import decode
from trainer.data.decoded import InMemory, load_images
from trainer.data.images.index import DataError
from trainer.data.kept import kept_pixels
from trainer.data.landmarks import Measured
from trainer.data.manifest import open_images, read_manifest
from trainer.data.slots import EXTRA, PAGE, Slots

COUNT, SIZE = 96, 64
ROW = 3 * SIZE * SIZE
MODULE = "tests.unit.trainer.data.decoding:main"


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("drawn")
    draw_faces(folder, COUNT)
    return folder


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MCF_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache/pixels"


def plain(uri: Path, subset: int = COUNT, size: int = SIZE) -> str:
    return str(decoding.load(str(uri), subset, size, keep=False)["pixels"])


def loaded(uri: Path, subset: int = COUNT, size: int = SIZE) -> dict[str, Any]:
    return decoding.load(str(uri), subset, size)


def taken(folder: Path) -> int:
    return sum(file.stat().st_blocks * 512 for file in folder.iterdir())


def files(folder: Path) -> list[str]:
    return sorted(file.name for file in folder.iterdir() if not file.suffix)


def test_two_processes_at_once_decode_each_image_once_together(drawn: Path, tmp_path: Path) -> None:
    read_manifest(Data(uri=str(drawn)))
    go, processes = tmp_path / "go", list[Forked]()
    sizes = [COUNT, COUNT // 2, COUNT]  # two of the same subset, and a nested one
    for number, subset in enumerate(sizes):
        asked = {"uri": str(drawn), "subset": subset, "size": SIZE, "ready": f"{tmp_path}/{number}", "go": str(go)}
        with (tmp_path / f"{number}.json").open("wb") as output, (tmp_path / f"{number}.log").open("wb") as errors:
            processes.append(forks.start(MODULE, json.dumps(asked), output=output, errors=errors))
    while not all((tmp_path / str(number)).exists() for number in range(len(sizes))):
        assert all(process.poll() is None for process in processes)
    go.touch()
    logs = [(tmp_path / f"{number}.log") for number in range(len(sizes))]
    assert [process.wait(120) for process in processes] == [0, 0, 0], [log.read_text() for log in logs]
    said = [json.loads((tmp_path / f"{number}.json").read_text()) for number in range(len(sizes))]
    assert sum(each["decoded"] for each in said) == COUNT, said
    assert [each["pixels"] for each in said] == [plain(drawn, subset) for subset in sizes]


def test_nested_subsets_share_what_either_has_decoded(drawn: Path) -> None:
    asked = (20, 60, 40, COUNT)
    assert [loaded(drawn, subset)["decoded"] for subset in asked] == [20, 40, 0, COUNT - 60]
    assert [loaded(drawn, subset)["pixels"] for subset in asked] == [plain(drawn, subset) for subset in asked]


def test_another_size_or_fit_or_limit_of_pixels_shares_nothing(drawn: Path) -> None:
    loaded(drawn)
    assert loaded(drawn, size=32)["decoded"] == COUNT
    data = Data(uri=str(drawn))
    manifest = read_manifest(data)
    rows = manifest.split(held_out=0, subset_size=None, subset_seed=0).train
    images = open_images(data, manifest)
    with pytest.raises(DataError, match=r"possible: up to 2000"):
        load_images(images, rows, SIZE, "crop", max_pixels=2000)


@pytest.mark.parametrize("after", [0, ROW // 2, ROW])
def test_what_a_killed_process_has_half_written_is_never_read(drawn: Path, folder: Path, after: int) -> None:
    asked = {"uri": str(drawn), "subset": COUNT, "size": SIZE, "dies_at": [10, after]}
    assert forks.run(MODULE, json.dumps(asked)).returncode == -9
    assert files(folder), "it was killed before it had written anything"
    found = loaded(drawn)
    assert found["pixels"] == plain(drawn)
    assert found["decoded"] == COUNT - 10
    assert loaded(drawn)["decoded"] == 0


def test_processes_that_are_killed_at_any_time_leave_nothing_wrong(drawn: Path, tmp_path: Path) -> None:
    asked = json.dumps({"uri": str(drawn), "subset": COUNT, "size": SIZE})
    rng, expected = random.Random(0), plain(drawn)
    for _ in range(4):
        with (tmp_path / "log").open("wb") as log:
            processes = [forks.start(MODULE, asked, output=log) for _ in range(2)]
        threading.Event().wait(rng.uniform(0.02, 0.2))
        processes[0].kill()
        assert processes[1].wait(120) == 0, (tmp_path / "log").read_text()
        assert loaded(drawn) == {"decoded": 0, "pixels": expected, "reasons": []}
        shutil.rmtree(tmp_path / "cache/pixels")


def test_a_process_that_hangs_is_waited_for_once(drawn: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded(drawn, 1)
    (name,) = files(folder)
    monkeypatch.setattr(slots, "PATIENCE_SECONDS", 0.2)
    hangs = Slots(folder / name, COUNT, ROW, 1 << 30)
    claims = [hangs.claimed(row) for row in range(COUNT)]
    for claim in claims:
        claim.__enter__()
    assert loaded(drawn)["pixels"] == plain(drawn)
    for claim in claims:
        claim.__exit__(None, None, None)
    hangs.close()


def test_the_bound_is_kept_and_the_least_recently_used_makes_room(
    drawn: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    limit = COUNT * (2 * ROW + EXTRA) + 4 * PAGE  # of two files, but not of three
    monkeypatch.setenv("MCF_PIXEL_CACHE_GIB", str(limit / 2**30))
    kept: list[str] = []
    for size in (64, 63, 62, 61):
        assert loaded(drawn, size=size) == {"decoded": COUNT, "pixels": plain(drawn, size=size), "reasons": []}
        assert taken(folder) <= limit
        kept += set(files(folder)) - set(kept)
    assert files(folder) == sorted(kept[-2:])
    assert loaded(drawn, size=62)["decoded"] == 0


def test_what_does_not_fit_is_decoded_every_time(drawn: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    limit = 40 * ROW
    monkeypatch.setenv("MCF_PIXEL_CACHE_GIB", str(limit / 2**30))
    loaded(drawn)
    again = loaded(drawn)
    assert 30 * ROW < taken(folder) <= limit
    assert COUNT - 40 <= again["decoded"] <= COUNT - 30
    assert again["pixels"] == plain(drawn)


def test_a_file_full_of_what_nobody_asks_for_is_begun_anew_unless_somebody_uses_it(tmp_path: Path) -> None:
    first, second = np.arange(10), np.arange(100, 110)
    row, limit = np.full(PAGE, 7, np.uint8), 10 * (PAGE + EXTRA)

    def filled(rows: np.ndarray) -> Slots:
        made = Slots(tmp_path / "rows", 200, PAGE, limit, rows)
        for each in rows.tolist():
            made.write(each, row)
        return made

    user = filled(first)
    filled(np.arange(200)).close()  # takes what room there is
    assert all(map(user.has, first.tolist()))
    full = taken(tmp_path)
    other = filled(second)
    into = np.zeros(PAGE, np.uint8)
    assert all(user.read(each, into) and (into == 7).all() for each in first.tolist())
    assert full <= taken(tmp_path) <= limit
    assert not any(map(other.has, second.tolist()))
    for each in user, other:
        each.close()
    anew = filled(second)
    assert [each for each in range(200) if anew.has(each)] == second.tolist()
    assert taken(tmp_path) <= limit
    anew.close()


def test_a_file_in_use_is_never_removed(drawn: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded(drawn)
    (name,) = files(folder)
    monkeypatch.setenv("MCF_PIXEL_CACHE_GIB", str(COUNT * (ROW + EXTRA) / 2**30))
    used = Slots(folder / name, COUNT, ROW, 1 << 30)
    assert loaded(drawn, size=63)["pixels"] == plain(drawn, size=63)
    assert name in files(folder)
    assert all(map(used.has, range(COUNT)))
    used.close()
    loaded(drawn, size=62)
    assert name not in files(folder)


def test_a_folder_that_cannot_be_written_costs_time_and_no_more(
    drawn: Path, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    expected = plain(drawn)
    shutil.rmtree(folder)
    folder.write_text("not a folder")
    for _ in range(2):
        caplog.clear()
        assert loaded(drawn) == {"decoded": COUNT, "pixels": expected, "reasons": []}
        assert [record.levelname for record in caplog.records if "nothing is kept" in record.message] == ["WARNING"]


def test_a_full_disk_costs_time_and_no_more(
    drawn: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    written, pwrite, expected = [0], os.pwrite, plain(drawn)

    def full(number: int, data: bytes, place: int) -> int:
        written[0] += len(data) > 8  # a row
        if written[0] > 11:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        # The last one that fits is cut short.
        return pwrite(number, bytes(data)[: 100 if written[0] == 11 else None], place)

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", full)
        assert loaded(drawn)["pixels"] == expected
        assert loaded(drawn)["decoded"] == COUNT - 10
    assert len([record for record in caplog.records if "nothing more is kept" in record.message]) == 2
    assert loaded(drawn) == {"decoded": COUNT - 10, "pixels": expected, "reasons": []}
    assert loaded(drawn)["decoded"] == 0


def test_half_of_a_free_disk_is_left(drawn: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slots, "SHARE_OF_DISK", 0.0)
    assert [loaded(drawn)["decoded"] for _ in range(2)] == [COUNT, COUNT]
    assert taken(folder) <= PAGE  # what says so


def test_undecodable_and_changed_images_are_not_kept(drawn: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(drawn, broken)
    for name in ("face003.png", "face050.png"):
        (broken / name).write_bytes((broken / name).read_bytes()[:200])
    first = loaded(broken)
    assert [reason.partition(":")[0] for reason in first["reasons"]] == ["face003.png", "face050.png"]
    assert loaded(broken) == {**first, "decoded": 2}
    assert first["pixels"] == plain(broken)

    changed = tmp_path / "changed"
    shutil.copytree(drawn, changed)
    (changed / "more.png").write_bytes((drawn / "face000.png").read_bytes() + b"\0")
    manifest = read_manifest(Data(uri=str(changed)))
    (changed / "more.png").write_bytes((drawn / "face000.png").read_bytes() + b"\1")
    found = [decoding.load(str(changed), COUNT + 1, SIZE, manifest=manifest)["decoded"] for _ in range(2)]
    assert found == [COUNT + 1, 1]


def test_an_image_with_landmarks_is_measured_even_if_it_is_kept(drawn: Path) -> None:
    data = Data(uri=str(drawn))
    manifest = read_manifest(data)
    rows = manifest.split(held_out=0, subset_size=None, subset_seed=0).train
    for _ in range(2):
        images = Measured(open_images(data, manifest), {1, 5, 7})
        with kept_pixels(rows, SIZE, "crop", MAX_PIXELS) as kept:
            InMemory(images, rows, SIZE, "crop", 0, MAX_PIXELS, decode, kept)
        assert images.size == dict.fromkeys((1, 5, 7), (48, 48))


def test_held_out_images_are_decoded_once_too(drawn: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = Data(uri=str(drawn))
    manifest = read_manifest(data)
    rows = manifest.split(held_out=8, subset_size=None, subset_seed=0).held_out
    first = load_images(open_images(data, manifest), rows, SIZE, "crop")

    def gone(row: int) -> bytes:
        raise AssertionError(row)

    images = open_images(data, manifest)
    monkeypatch.setattr(images, "get", gone)
    assert torch.equal(load_images(images, rows, SIZE, "crop"), first)


def test_without_room_nothing_is_kept_and_a_limit_that_is_no_number_is_refused(
    drawn: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MCF_PIXEL_CACHE_GIB", "0")
    assert [loaded(drawn)["decoded"] for _ in range(2)] == [COUNT, COUNT]
    assert not folder.exists()
    monkeypatch.setenv("MCF_PIXEL_CACHE_GIB", "much")
    with pytest.raises(DataError, match="MCF_PIXEL_CACHE_GIB is 'much'; possible: a number of GiB"):
        loaded(drawn)
