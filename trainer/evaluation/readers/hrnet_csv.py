"""300W and WFLW, from the CSV lists of HRNet's facial landmark repository, beside the datasets' own images.

A line is image_name, scale, center_w, center_h, then x and y of every point. The face's box is the square of
half side 100 * scale around the centre. Shared: docs/evaluation.md.

    300W  face_landmarks_300w_{train,valid_common,valid_challenge}.csv, images in images/ or beside the lists
    WFLW  face_landmarks_wflw_{train,test,test_SUBSET}.csv, images in WFLW_images/ or images/
"""

import csv
import io
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from trainer.data.manifest import DataError
from trainer.evaluation.readers.eyes import units_of
from trainer.evaluation.readers.place import Place
from trainer.evaluation.readers.record import Record, Split, expect_file, expect_images, expect_measurable

HALF_BOX_PIXELS = 100.0
# The 300W lists lie two pixels right of and below the points that the field scores (FaRL's protocol).
OFFSET_300W = 2.0
# One picture of 300W is published with a blank in its name that the lists have lost.
RENAMED_300W = {"ibug/image_092_01.jpg": "ibug/image_092 _01.jpg"}
WFLW_SUBSETS = ("largepose", "expression", "illumination", "makeup", "occlusion", "blur")


class Line(NamedTuple):
    """One face of a list."""

    name: str
    scale: float
    centre_2: np.ndarray
    points_P2: np.ndarray


def read_300w(root: Place) -> list[Record]:
    """68 points; the test split is `common` and `challenging`, and both together are the full set."""
    files: list[tuple[str, Split, frozenset[str]]] = [
        ("train", "train", frozenset()),
        ("valid_common", "test", frozenset({"common"})),
        ("valid_challenge", "test", frozenset({"challenging"})),
    ]
    folder = root / "images" if (root / "images").is_dir() else root

    def picture(name: str) -> Place:
        renamed = folder / RENAMED_300W.get(name, name)
        return renamed if renamed.is_file() else folder / name

    records = [
        _record(picture(line.name), line, split, subsets, offset=OFFSET_300W)
        for name, split, subsets in files
        for line in read_lines(root / f"face_landmarks_300w_{name}.csv", num_points=68)
    ]
    return expect_measurable(expect_images(records, f"300W in {root}"), units_of("300w"))


def read_wflw(root: Place) -> list[Record]:
    """98 points; the test split has six subsets that overlap, and are recognised by image and points."""
    folder = next((root / name for name in ("WFLW_images", "images") if (root / name).is_dir()), root / "WFLW_images")
    subsets_of: dict[tuple[str, bytes], set[str]] = {}
    for subset in WFLW_SUBSETS:
        for line in read_lines(root / f"face_landmarks_wflw_test_{subset}.csv", num_points=98):
            subsets_of.setdefault(_identity(line), set()).add(subset)
    records = [
        _record(folder / line.name, line, "train", frozenset())
        for line in read_lines(root / "face_landmarks_wflw_train.csv", num_points=98)
    ]
    for line in read_lines(root / "face_landmarks_wflw_test.csv", num_points=98):
        # One image may hold several annotated faces, so its name alone does not say which.
        subsets = frozenset(subsets_of.pop(_identity(line), ()))
        records.append(_record(folder / line.name, line, "test", subsets))
    if subsets_of:
        (name, _), subsets_left = next(iter(subsets_of.items()))
        raise DataError(
            f"{len(subsets_of)} faces of WFLW subsets in {root} are not in face_landmarks_wflw_test.csv, "
            f"such as one of {name} in {', '.join(sorted(subsets_left))}"
        )
    return expect_measurable(expect_images(records, f"WFLW in {root}"), units_of("wflw"))


def read_lines(path: Place, *, num_points: int) -> Iterator[Line]:
    """Faces of a list. Raises DataError where the file is missing or a line is not as expected."""
    expect_file(path, f"the HRNet list with image_name, scale, center_w, center_h and {num_points} points a line")
    try:
        rows = csv.reader(io.StringIO(path.read_bytes().decode(), newline=""))
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is no text in UTF-8: {error}") from error
    try:
        # A list without its line of names would lose its first face, and nobody would be told.
        if len(header := next(rows, [])) > 1 and _is_number(header[1]):
            raise ValueError("it is a face; the names of the columns were expected: image_name, scale, center_w, ...")
        for row in rows:
            yield _line(row, num_points)
    except (ValueError, csv.Error) as error:
        raise DataError(f"{path} line {rows.line_num}: {error}") from error


def _line(row: list[str], num_points: int) -> Line:
    """Raises ValueError."""
    columns = 4 + 2 * num_points
    if len(row) != columns:
        raise ValueError(f"it has {len(row)} columns; {columns} were expected")
    try:
        values = np.array(row[1:], dtype=np.float64)
    except ValueError as error:
        raise ValueError("it has something else than numbers after the name") from error
    if not np.isfinite(values).all():
        raise ValueError("it has a number that is not finite")
    if not values[0] > 0:
        raise ValueError(f"the scale is {values[0]}; possible: more than 0, as it gives the face's box")
    return Line(row[0], float(values[0]), values[1:3], values[3:].reshape(num_points, 2))


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _identity(line: Line) -> tuple[str, bytes]:
    return line.name, line.points_P2.tobytes()


def _record(image: Place, line: Line, split: Split, subsets: frozenset[str], offset: float = 0.0) -> Record:
    (left, top), (right, bottom) = (
        (line.centre_2 - offset + sign * HALF_BOX_PIXELS * line.scale).tolist() for sign in (-1, 1)
    )
    return Record(
        image=image, split=split, subsets=subsets, box=(left, top, right, bottom), points_P2=line.points_P2 - offset
    )
