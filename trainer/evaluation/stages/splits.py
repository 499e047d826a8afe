"""Which faces a head is trained on, chosen by and judged on."""

import hashlib
import random
from collections.abc import Sequence
from dataclasses import dataclass

from trainer.contract.recipe import Recipe, Selection
from trainer.data.manifest import DataError
from trainer.evaluation.readers.record import Record

# The protocol's, so that a fraction is the published one (docs/evaluation.md).
FRACTION_SEED = 123


@dataclass(frozen=True)
class Splits:
    """Faces by what they are for. No image of the validation faces is trained on."""

    train: tuple[Record, ...]
    epoch_length: int
    """Faces shown in an epoch: those of the benchmark's whole training split, whatever part of it is trained on."""
    validation: tuple[Record, ...]
    """Empty where nothing is chosen by them."""
    test: tuple[Record, ...]
    note: str


def split(records: Sequence[Record], recipe: Recipe) -> Splits:
    """The benchmark's splits as the recipe wants them: a part of the training faces, and faces to validate on.

    Where the benchmark has no validation split and one is needed, it is made of images of the training faces that are
    left after `fraction`: such a few-shot fit knows no annotation beyond its fraction. Raises DataError when a split
    is empty.
    """
    validate = recipe.selection is Selection.BEST_ON_VALIDATION
    everything = [record for record in records if record.split == "train"]
    test = tuple(record for record in records if record.split == "test")
    train = kept_fraction(everything, recipe.fraction)
    validation = [record for record in records if record.split == "validation"] if validate else []
    note = f"{len(train)} of {len(everything)} training faces"
    if validate and validation:
        note += f", {len(validation)} of the benchmark's own validation split"
    elif validate:
        train, validation = _carved(train, recipe.validation_share)
        note += f", of which {len(validation)} were set aside for validation, by image content"
    if not train or not test or (validate and not validation):
        raise DataError(f"{len(train)} faces to train on, {len(validation)} to validate on, {len(test)} to test on")
    return Splits(tuple(train), len(everything), tuple(validation), test, note)


def kept_fraction(records: Sequence[Record], fraction: float) -> list[Record]:
    """The first int(n * fraction) of the records in the protocol's order; smaller fractions are parts of larger ones.

    All of them stay in their own order where the fraction is 1.
    """
    if not 0 < fraction <= 1:
        raise ValueError(f"fraction {fraction}; possible: above 0, up to 1")
    if fraction == 1:
        return list(records)
    order = list(range(len(records)))
    random.Random(FRACTION_SEED).shuffle(order)
    return [records[place] for place in order[: int(len(records) * fraction)]]


def _carved(records: Sequence[Record], share: float) -> tuple[list[Record], list[Record]]:
    """Faces to train on and to validate on: whole images, and copies of an image, go to one side."""
    content_of = {image: _content(image.read_bytes()) for image in {record.image for record in records}}
    order = sorted(set(content_of.values()))
    aside = set(order[: max(1, round(len(order) * share))])
    train: list[Record] = []
    validation: list[Record] = []
    for record in records:
        (validation if content_of[record.image] in aside else train).append(record)
    return train, validation


def _content(data: bytes) -> str:
    return hashlib.sha256(b"validation" + data).hexdigest()
