"""LaPa: {train,val,test}/{images/NAME.jpg, labels/NAME.png, landmarks/NAME.txt}.

A landmark file has the number of points, 106, in its first line and x y in the others; a label picture
has the classes as its values.
"""

from concurrent.futures import ThreadPoolExecutor

import numpy as np

from trainer.data.manifest import DataError
from trainer.evaluation.readers.place import Place
from trainer.evaluation.readers.record import (
    AT_ONCE,
    LabelImage,
    Record,
    Split,
    expect_file,
    expect_images,
    expect_measurable,
    spread,
)

CLASSES = (
    "background", "skin", "left brow", "right brow", "left eye", "right eye", "nose", "upper lip", "inner mouth",
    "lower lip", "hair",
)  # fmt: skip
NUM_POINTS = 106
# Centres of the eyes, tip of the nose, corners of the mouth.
TEMPLATE_POINTS = (104, 105, 54, 84, 90)
FOLDERS: dict[str, Split] = {"train": "train", "val": "validation", "test": "test"}


def read_lapa(root: Place, most: int | None = None) -> list[Record]:
    """Masks of 11 classes, and 106 points, of which five align the crop. Raises DataError.

    `most`: of all faces, for which every file has to be there, the points of so many are read.
    """
    faces: list[tuple[Split, Place, Place, Place]] = []
    for name, split in FOLDERS.items():
        folder = root / name
        if not (folder / "images").is_dir():
            raise DataError(f"{folder / 'images'} is missing: the folder of LaPa's {split} images")
        for image in sorted((folder / "images").glob("*.jpg")):
            label = expect_file(folder / "labels" / f"{image.stem}.png", f"the classes of {image}")
            points = expect_file(folder / "landmarks" / f"{image.stem}.txt", f"the 106 points of {image}")
            faces.append((split, image, label, points))
    faces = spread(faces, most)
    with ThreadPoolExecutor(AT_ONCE) as pool:
        read = pool.map(_points, [points for *_, points in faces])
        records = [
            Record(image=image, split=split, points_P2=points_P2, mask=LabelImage(label, len(CLASSES)))
            for (split, image, label, _), points_P2 in zip(faces, read, strict=True)
        ]
    return expect_measurable(expect_images(records, f"LaPa in {root}"))


def _points(path: Place) -> np.ndarray:
    try:
        values = np.array(path.read_bytes().decode().split(), dtype=np.float64)
    except ValueError as error:
        raise DataError(f"{path} holds something else than numbers") from error
    if len(values) != 1 + 2 * NUM_POINTS or values[0] != NUM_POINTS:
        raise DataError(f"{path} has {len(values)} numbers; {NUM_POINTS} and then as many pairs x y were expected")
    points_P2 = values[1:].reshape(NUM_POINTS, 2)
    if (points_P2[list(TEMPLATE_POINTS)] == points_P2[TEMPLATE_POINTS[0]]).all():
        raise DataError(f"{path} has one place for points {', '.join(map(str, TEMPLATE_POINTS))}, which align the crop")
    return points_P2
