"""The teacher's features are computed once, and are the ones it would have given."""

from pathlib import Path

import pytest
import torch

from trainer import teachers
from trainer.contract import RunSpec
from trainer.data.batches import Slice, normalise, slices, split_of
from trainer.data.manifest import DataError, open_images
from trainer.method.grid import step_plan
from trainer.teachers.tapcache import TapCache, cache_bytes

CPU = torch.device("cpu")
GIB = 2**30


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MCF_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache/taps"


class Counting(teachers.Teacher):
    """A teacher that counts the images it looks at."""

    seen = 0

    def forward(self, image_BCHW: torch.Tensor) -> list[torch.Tensor]:
        self.seen += len(image_BCHW)
        return super().forward(image_BCHW)


def counting(run: RunSpec) -> Counting:
    teacher = teachers.build(run, CPU)
    assert teacher is not None
    teacher.__class__ = Counting
    assert isinstance(teacher, Counting)
    return teacher


def cells_of(run: RunSpec, steps: int) -> list[Slice]:
    split = split_of(run)
    images = open_images(run.data, split.manifest)
    return list(slices(run, images, split.train, step_plan(run.batch, 0, 1), range(steps), CPU))


def cache_of(run: RunSpec, teacher: teachers.Teacher, limit: int = GIB) -> TapCache:
    split = split_of(run)
    return TapCache(run, teacher, split.train.digest, len(split.train), limit)


def assert_as_without(cache: TapCache, cells: list[Slice], teacher: teachers.Teacher) -> None:
    for cell in cells:
        image_BCHW = normalise(cell.image_BCHW)
        with torch.no_grad():
            expected = teachers.Teacher.forward(teacher, image_BCHW)
        found = cache.wanted(cell, image_BCHW)
        assert len(found) == len(expected)
        assert all(map(torch.equal, found, expected))


def test_every_image_goes_through_the_teacher_once_in_each_state_and_never_again(tiny_run: RunSpec) -> None:
    teacher = counting(tiny_run)
    cells = cells_of(tiny_run, 10)  # 16 epochs of 40 images
    assert_as_without(cache_of(tiny_run, teacher), cells, teacher)
    # A slice that crosses from one epoch into the next may hold an image twice.
    assert 2 * 40 <= teacher.seen <= 2 * 40 + 2 * 16
    again = counting(tiny_run)
    assert_as_without(cache_of(tiny_run, again), cells, again)
    assert again.seen == 0, "a later run with the same teacher and subset"


def test_without_mirroring_there_is_one_state(tiny_run: RunSpec) -> None:
    run = tiny_run.model_copy(update={"data": tiny_run.data.model_copy(update={"flip": False})})
    teacher = counting(run)
    assert_as_without(cache_of(run, teacher), cells_of(run, 4), teacher)
    assert 40 <= teacher.seen <= 40 + 16


def test_runs_with_and_without_mirroring_keep_apart_what_they_have_at_other_places(tiny_run: RunSpec) -> None:
    plain = tiny_run.model_copy(update={"data": tiny_run.data.model_copy(update={"flip": False})})
    for run in tiny_run, plain, tiny_run:
        teacher = counting(run)
        assert_as_without(cache_of(run, teacher), cells_of(run, 4), teacher)


def test_what_does_not_fit_is_computed_every_time(tiny_run: RunSpec, folder: Path) -> None:
    teacher = counting(tiny_run)
    cells = cells_of(tiny_run, 4)
    row = sum(tap[0].numel() * 4 for tap in teacher(normalise(cells[0].image_BCHW)))
    limit = 30 * row + row // 2
    assert_as_without(cache_of(tiny_run, teacher, limit), cells, teacher)
    assert teacher.seen > 2 * 40 + 32
    assert 25 * row < sum(file.stat().st_blocks for file in folder.glob("*")) * 512 <= limit


def test_the_least_recently_used_features_make_room_unless_somebody_uses_them(tiny_run: RunSpec, folder: Path) -> None:
    cells = cells_of(tiny_run, 1)

    def used(seed: int, limit: int) -> TapCache:
        run = tiny_run.model_copy(update={"teacher": tiny_run.teacher.model_copy(update={"seed": seed})})
        teacher = counting(run)
        cache = cache_of(run, teacher, limit)
        assert_as_without(cache, cells, teacher)
        return cache

    first = used(1, GIB)
    size = (folder / first.name).stat().st_size
    second = used(2, GIB).name  # nobody holds it any more
    third = used(3, 2 * size)
    assert {path.name for path in folder.glob("*") if not path.suffix} == {first.name, third.name}
    assert second not in {path.stem for path in folder.glob("*.marks")}


def test_a_limit_that_is_no_number_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    assert cache_bytes() == 0
    monkeypatch.setenv("MCF_TEACHER_CACHE_GIB", "0.5")
    assert cache_bytes() == GIB // 2
    monkeypatch.setenv("MCF_TEACHER_CACHE_GIB", "much")
    with pytest.raises(DataError, match="'much'; possible: a number of GiB"):
        cache_bytes()
