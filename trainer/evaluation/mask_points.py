"""The landmark files that a run's masks go by."""

import hashlib
from collections.abc import Mapping
from functools import cache

import numpy as np

from trainer.contract import Mask, RunSpec
from trainer.data.landmarks import Points, in_subset
from trainer.data.manifest import DataError, Rows
from trainer.evaluation.readers.annotations import read_landmarks
from trainer.store.objects import ObjectMissing, read_object


def mask_points(run: RunSpec, rows: Rows) -> Points | None:
    """Points of the images to train on; None where no mask needs any.

    Raises DataError when a file is not what it was on submission, StorageError when it cannot be read.
    """
    read = cache(_read)
    online, target = (
        in_subset(read(mask.landmarks, mask.sha256), rows) if mask.landmarks else {}
        for mask in (run.mask, run.target_mask)
    )
    return Points(online, target) if run.mask.landmarks or run.target_mask.landmarks else None


def num_without(run: RunSpec, points: Points | None, rows: Rows) -> int:
    """Images to train on without landmarks, of a run whose masks go by them, in either view."""
    if points is None:
        return 0
    asked: list[tuple[Mask, Mapping[int, np.ndarray]]] = [(run.mask, points.online), (run.target_mask, points.target)]
    return len(rows) - min(len(known) for mask, known in asked if mask.landmarks)


def _read(address: str, sha256: str | None) -> Mapping[str, np.ndarray]:
    try:
        text = read_object(address)
    except ObjectMissing as error:
        raise DataError(f"there are no landmarks for the masks: {error}") from error
    digest = hashlib.sha256(text).hexdigest()
    if sha256 not in (None, digest):
        raise DataError(f"{address} has changed since the run was submitted: sha256 {digest}, the spec says {sha256}")
    try:
        return read_landmarks(text).points
    except DataError as error:
        raise DataError(f"{address}: {error}") from error
