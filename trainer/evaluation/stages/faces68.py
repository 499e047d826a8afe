"""Lays out annotated images as the benchmark faces68 (readers/faces68.py)."""

import io
import json
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from trainer.data.manifest import DataError, Images, Manifest, Split
from trainer.data.pictures import Undecodable, opened
from trainer.evaluation.annotations import Landmarks, parse
from trainer.evaluation.readers.faces68 import LIST, read_points
from trainer.evaluation.readers.record import AT_ONCE, SAMPLED, spread


def write_faces68(text: bytes, split: Split, images: Images, folder: Path) -> None:
    """Lay out the annotated images of a data set: held-out ones are the test split, all others the training split.

    A copy of a test image is in neither. Raises DataError for a file that is no landmark file, or names images that
    are not there; StorageError when an image cannot be read.
    """
    annotations = parse(text, landmarks=True)
    assert isinstance(annotations, Landmarks)
    manifest, held_out = split.manifest, set(split.held_out)
    row_of = rows_of(annotations.keys, manifest)
    tested = {manifest.content(row) for row in held_out}
    faces = []
    for key, row in row_of.items():
        if row not in held_out and manifest.content(row) in tested:
            continue
        name = f"{row}.img"
        (folder / name).write_bytes(images.get(row))
        side = "test" if row in held_out else "train"
        faces.append({"image": name, "split": side, "points": annotations.points(key).tolist()})
    (folder / LIST).write_text(json.dumps(faces))


def check_faces68(text: bytes, split: Split, images: Images) -> None:
    """Whether these faces can be laid out and fitted; a few images are decoded. Raises as write_faces68."""
    row_of = rows_of(read_points(text), split.manifest)
    tested = set(split.held_out).intersection(row_of.values())
    if not 0 < len(tested) < len(row_of):
        raise DataError(
            f"of {len(row_of)} annotated images {len(tested)} are held out; possible: some, which are the test split, "
            "and not all"
        )

    def look(item: tuple[str, int]) -> None:
        key, row = item
        try:
            with opened(io.BytesIO(images.get(row))) as picture:
                picture.load()
        except Undecodable as error:
            raise DataError(f"annotated image {key!r} cannot be decoded: {error}") from error

    with ThreadPoolExecutor(AT_ONCE) as pool:
        for _ in pool.map(look, spread(list(row_of.items()), SAMPLED)):
            pass


def rows_of(keys: Iterable[str], manifest: Manifest) -> dict[str, int]:
    """The row of each annotated image. Raises DataError where one is not there."""
    found_at = {key: manifest.find(key) for key in sorted(keys)}
    row_of = {key: row for key, row in found_at.items() if row is not None}
    if missing := sorted(found_at.keys() - row_of.keys()):
        raise DataError(f"the landmarks name {len(missing)} images that are not there: {', '.join(missing[:10])}")
    return row_of
