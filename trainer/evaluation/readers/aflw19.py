"""AFLW-19: AFLWinfo_release.mat (the CCL authors' selection of 24,386 faces) beside AFLW's own data/flickr.

    bbox      left, right, top, bottom of every face
    data      19 x, then 19 y
    mask_new  1 where a point is visible
    nameList  image below data/flickr
    ra        a permutation, counted from 1: its first 20,000 faces are the training split, the others the test split

Records are in the order of ra, which a few-shot fraction follows. The frontal subset of the test split is those faces
with all points visible.
"""

import io
from typing import Any

import numpy as np

from trainer.data.manifest import DataError
from trainer.evaluation.readers.place import Place
from trainer.evaluation.readers.record import Record, expect_file, expect_images, expect_measurable
from trainer.store.objects import StorageError

NUM_POINTS = 19
NUM_TRAIN = 20_000
FIELDS = ("bbox", "data", "mask_new", "nameList", "ra")


def read_aflw19(root: Place, num_train: int = NUM_TRAIN) -> list[Record]:
    """19 points; the test split has the subset `frontal`. Raises DataError."""
    path = expect_file(root / "AFLWinfo_release.mat", "the list of AFLW-19 with bbox, data, mask_new, nameList and ra")
    info = _load(path)
    if absent := [name for name in FIELDS if name not in info]:
        raise DataError(f"{path} lacks {', '.join(absent)}; expected are {', '.join(FIELDS)}")
    for name in ("bbox", "data", "mask_new", "ra"):
        if np.asarray(info[name]).dtype.kind not in "iufb":
            raise DataError(f"{path}: {name} holds something else than numbers")
    order = np.nan_to_num(info["ra"]).ravel().astype(int) - 1
    count = len(order)
    shapes = {"bbox": (count, 4), "data": (count, 2 * NUM_POINTS), "mask_new": (count, NUM_POINTS)}
    for name, shape in shapes.items():
        if np.shape(info[name]) != shape:
            raise DataError(f"{path}: {name} is {np.shape(info[name])}; {shape} was expected, for {count} faces of ra")
    if sorted(order) != list(range(count)) or len(info["nameList"]) != count:
        raise DataError(f"{path}: ra is no permutation of 1..{count}, or nameList has another length")
    records = []
    for place, face in enumerate(order):
        left, right, top, bottom = np.asarray(info["bbox"][face], np.float64).tolist()
        is_train = place < num_train
        frontal = not is_train and bool(np.all(info["mask_new"][face]))
        records.append(
            Record(
                image=root / "data" / "flickr" / _name(path, info["nameList"][face]),
                split="train" if is_train else "test",
                subsets=frozenset({"frontal"}) if frontal else frozenset(),
                box=(left, top, right, bottom),
                points_P2=np.asarray(info["data"][face], np.float64).reshape(2, NUM_POINTS).T.copy(),
            )
        )
    return expect_measurable(expect_images(records, f"AFLW-19 in {root}"))


def _name(path: Place, cell: Any) -> str:
    """MATLAB puts a text into a cell of a cell."""
    try:
        return str(cell[0][0])
    except (IndexError, TypeError) as error:
        raise DataError(f"{path}: nameList is no list of names") from error


def _load(path: Place) -> dict[str, Any]:
    try:
        import scipy.io
    except ImportError as error:
        raise DataError(f"{path} is a MATLAB file, and scipy, which reads it, is not installed") from error
    try:
        found: dict[str, Any] = scipy.io.loadmat(io.BytesIO(path.read_bytes()))
        return found
    except StorageError:
        raise
    # It raises whatever its parsing met: MatReadError, TypeError, zlib.error, ...
    except Exception as error:
        raise DataError(f"{path} cannot be read as a MATLAB file: {error}") from error
