"""Few-shot fractions and validation faces: nested, disjoint, by content."""

import random
from pathlib import Path

import pytest

from trainer.contract.recipe import Recipe, Selection
from trainer.data.manifest import DataError
from trainer.evaluation.readers.record import Record
from trainer.evaluation.stages.splits import kept_fraction, split

VALIDATED = Recipe(selection=Selection.BEST_ON_VALIDATION)


def records(folder: Path, count: int = 40, **more: int) -> list[Record]:
    """Training faces, of which the last is a copy of the first; further splits by their names."""
    found = []
    for name, number in {"train": count, "test": 2, **more}.items():
        for i in range(number):
            path = folder / f"{name}{i}.png"
            path.write_bytes(b"first" if (name, i) == ("train", count - 1) else f"{name}{i}".encode())
            if (name, i) == ("train", 0):
                path.write_bytes(b"first")
            found.append(Record(path, name))  # type: ignore[arg-type]
    # A second face of one image.
    return [*found, Record(folder / "train3.png", "train")]


def test_a_fraction_is_the_protocols_and_smaller_ones_lie_in_larger_ones(tmp_path: Path) -> None:
    everything = [record for record in records(tmp_path) if record.split == "train"]
    order = list(range(41))
    random.Random(123).shuffle(order)
    assert kept_fraction(everything, 0.1) == [everything[place] for place in order[:4]]
    assert kept_fraction(everything, 0.5)[:4] == kept_fraction(everything, 0.1)
    assert kept_fraction(everything, 1.0) == everything
    with pytest.raises(ValueError, match="possible: above 0, up to 1"):
        kept_fraction(everything, 0)


def test_nothing_is_set_aside_unless_it_is_asked_for(tmp_path: Path) -> None:
    found = split(records(tmp_path, validation=3), Recipe())
    assert (len(found.train), found.epoch_length, len(found.validation), len(found.test)) == (41, 41, 0, 2)
    few = split(records(tmp_path, validation=3), Recipe(fraction=0.2))
    assert (len(few.train), few.epoch_length) == (8, 41)
    assert few.note == "8 of 41 training faces"


def test_the_benchmarks_own_validation_split_is_taken_where_there_is_one(tmp_path: Path) -> None:
    found = split(records(tmp_path, validation=3), VALIDATED)
    assert [record.image.name for record in found.validation] == [f"validation{i}.png" for i in range(3)]
    assert len(found.train) == 41


def test_validation_faces_share_no_content_with_training_faces_and_follow_content_alone(tmp_path: Path) -> None:
    for share in 0.1, 0.3, 0.6:
        found = split(records(tmp_path), VALIDATED.model_copy(update={"validation_share": share}))
        contents = [{record.image.read_bytes() for record in part} for part in (found.train, found.validation)]
        assert not contents[0] & contents[1]
        assert len(contents[0] | contents[1]) == 39
        assert len(contents[1]) == round(39 * share)
        assert len(found.train) + len(found.validation) == 41
        assert found.epoch_length == 41
    # The same images under other names, in another order.
    chosen = contents[1]
    moved = []
    for number, record in enumerate(reversed(records(tmp_path))):
        path = tmp_path / f"moved{number}"
        path.write_bytes(record.image.read_bytes())
        moved.append(Record(path, record.split))
    again = split(moved, VALIDATED.model_copy(update={"validation_share": 0.6}))
    assert {record.image.read_bytes() for record in again.validation} == chosen


def test_a_few_shot_fit_sets_its_validation_faces_aside_within_its_fraction(tmp_path: Path) -> None:
    everything = records(tmp_path)
    found = split(everything, VALIDATED.model_copy(update={"fraction": 0.5}))
    kept = kept_fraction([record for record in everything if record.split == "train"], 0.5)
    assert sorted(map(id, [*found.train, *found.validation])) == sorted(map(id, kept))
    assert found.note == "20 of 41 training faces, of which 2 were set aside for validation, by image content"


def test_an_empty_split_is_a_data_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="0 faces to train on"):
        split(records(tmp_path), Recipe(fraction=0.01))
    with pytest.raises(DataError, match="0 to test on"):
        split([record for record in records(tmp_path) if record.split == "train"], Recipe())
