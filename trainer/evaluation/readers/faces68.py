"""faces68: any images with a landmark file, as the probe reads it, laid out as a benchmark.

    faces.json      [{"image": "0.img", "split": "train", "points": [[x, y], ...]}, ...], 68 points each
    0.img           an encoded image

Points of the landmark file count from the edge of the image's first pixel, those of a record from its centre.
"""

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from trainer.evaluation.readers.annotations import read_landmarks
from trainer.evaluation.readers.eyes import units_of
from trainer.evaluation.readers.place import Place
from trainer.evaluation.readers.record import Box, Record, expect_file, expect_images, expect_measurable

LIST = "faces.json"
HALF_PIXEL = 0.5


def read_faces68(root: Place) -> list[Record]:
    """68 points; the box is the square around them. Raises DataError."""
    path = expect_file(root / LIST, "the list of the faces")
    records = []
    for face in json.loads(path.read_bytes()):
        points_P2 = np.array(face["points"], dtype=np.float64) - HALF_PIXEL
        records.append(
            Record(image=root / face["image"], split=face["split"], box=square_around(points_P2), points_P2=points_P2)
        )
    return expect_measurable(expect_images(records, "the landmark file"), units_of("300w"))


def read_points(text: bytes) -> Mapping[str, np.ndarray]:
    """Points of the landmark file by image. Raises DataError for one that errors of 300W cannot be measured by."""
    points = read_landmarks(text).points
    expect_measurable(
        [Record(image=Path(key), split="train", points_P2=points_P2) for key, points_P2 in points.items()],
        units_of("300w"),
    )
    return points


def square_around(points_P2: np.ndarray) -> Box:
    """The smallest square with the points in it, about the centre of their extent."""
    low_2, high_2 = points_P2.min(axis=0), points_P2.max(axis=0)
    half = float((high_2 - low_2).max()) / 2
    x, y = ((low_2 + high_2) / 2).tolist()
    return (x - half, y - half, x + half, y + half)
