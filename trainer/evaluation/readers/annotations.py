"""The files of a probe: landmarks as JSON, labels as CSV. No torch: a submission reads them as the worker does."""

import csv
import io
import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any, NamedTuple

import numpy as np

from trainer.contract.plain import without_repeats
from trainer.data.manifest import DataError

NUM_POINTS = 68
# Contours of the two eyes, counted from 0: the distance of their centres is the inter-pupil unit of the 300W
# protocol. It follows annotated pupils to 3 % of their distance; the outer corners lie 1.35 times as far apart.
EYES = (slice(36, 42), slice(42, 48))
# No image is larger; a number beyond it would make an error infinite.
MAX_PIXELS = 1e6
LANDMARKS = '{image key: {"points68": [[x, y], ...], "landmarks_ok": bool}}'
LABELS = "a CSV with the columns file,label and a row an image"


class Faces(NamedTuple):
    """What a landmark file knows."""

    points: Mapping[str, np.ndarray]
    """Image key -> [68, 2], float64, in pixels of the upright image from its edge."""
    num_left_out: int
    """Faces that the file itself calls unusable."""


def read_landmarks(text: bytes) -> Faces:
    """Raises DataError that names the image with which something is wrong."""
    try:
        faces = json.loads(text, object_pairs_hook=_compact)
    except (ValueError, RecursionError) as error:
        raise DataError(f"it is no JSON: {error}; expected is {LANDMARKS}") from error
    if not isinstance(faces, dict):
        raise DataError(f"it holds a {type(faces).__name__}; expected is an object, {LANDMARKS}")
    usable = {key: face for key, face in faces.items() if _is_usable(key, face)}
    if not usable:
        raise DataError(f"none of its {len(faces)} images has landmarks; expected is {LANDMARKS}")
    return Faces({key: _points(key, face) for key, face in usable.items()}, len(faces) - len(usable))


def read_labels(text: bytes) -> dict[str, str]:
    """Image key -> label. Raises DataError that names the line or the image with which something is wrong."""
    try:
        rows = csv.reader(io.StringIO(text.decode("utf-8-sig"), newline=""), strict=True)
        header = next(rows, [])
        if not {"file", "label"} <= set(header):
            raise DataError(f"its first line is not one of column names; expected is {LABELS}")
        file, label = header.index("file"), header.index("label")
        labels: dict[str, str] = {}
        for row in filter(None, rows):
            if len(row) != len(header) or not row[file] or not row[label]:
                raise DataError(f"line {rows.line_num} has no file, no label or a comma too many; expected is {LABELS}")
            if labels.setdefault(row[file], row[label]) != row[label]:
                raise DataError(f"line {rows.line_num}: image {row[file]!r} has another label in an earlier line")
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"it is no CSV in UTF-8: {error}; expected is {LABELS}") from error
    if (count := len(set(labels.values()))) < 2:
        raise DataError(f"it has {count} different labels in {len(labels)} rows; a classifier needs two")
    return labels


def _compact(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    """With its points as an array, while the file is parsed: as Python's numbers they take ten times the memory."""
    try:
        # Who has merged two files would be measured by one of them.
        face = without_repeats(pairs)
    except ValueError as error:
        raise DataError(f"{error}; expected is one each: {LANDMARKS}") from error
    if isinstance(points := face.get("points68"), list):
        with suppress(ValueError):  # of differing lengths; who knows the image's name says so
            face["points68"] = np.array(points)
    return face


def _is_usable(key: str, face: Any) -> bool:
    if not isinstance(face, dict):
        # Without the key: this may be any file of this machine, and its keys nobody's business.
        raise DataError(f"it holds a {type(face).__name__} where a face is expected: {LANDMARKS}")
    is_usable = face.get("landmarks_ok", True)
    if not isinstance(is_usable, bool):
        raise DataError(f"image {key!r}: landmarks_ok is a {type(is_usable).__name__}; possible: true, false")
    return is_usable


def _points(key: str, face: Mapping[str, Any]) -> np.ndarray:
    wrong = f"image {key!r}: points68 is expected to be {NUM_POINTS} points [x, y] in pixels"
    if "points68" not in face:
        raise DataError(f"{wrong}, and is not there; landmarks_ok: false leaves an image out")
    found = face["points68"]
    if not isinstance(found, np.ndarray):
        raise DataError(f"{wrong}, and is no list, or its points differ in length")
    if found.shape != (NUM_POINTS, 2):
        raise DataError(f"{wrong}, and has the shape {' x '.join(map(str, found.shape))}")
    # Of text, null or a number of more than 64 bits NumPy makes another kind.
    if found.dtype.kind not in "iuf":
        raise DataError(f"{wrong}, and holds something else than numbers")
    points_P2 = found.astype(np.float64)
    if bad := np.flatnonzero(~(np.abs(points_P2) <= MAX_PIXELS).all(axis=1)).tolist():
        raise DataError(f"{wrong}, and point {bad[0]} (from 0) is {points_P2[bad[0]].tolist()}")
    left_2, right_2 = (points_P2[eye].mean(axis=0) for eye in EYES)
    if (left_2 == right_2).all():
        raise DataError(
            f"image {key!r}: the centres of both eyes (points 36-41 and 42-47, from 0) are one point, "
            f"{left_2.tolist()}; their distance is the unit of the error"
        )
    return points_P2
