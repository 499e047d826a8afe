"""Lays out annotated images as the benchmark faces68 (readers/faces68.py)."""

import json
from pathlib import Path

from trainer.data.manifest import DataError, Images, Split
from trainer.evaluation.annotations import Landmarks, parse
from trainer.evaluation.readers.faces68 import LIST


def write_faces68(text: bytes, split: Split, images: Images, folder: Path) -> None:
    """Lay out the annotated images of a data set: held-out ones are the test split, all others the training split.

    A copy of a test image is in neither. Raises DataError for a file that is no landmark file, or names images that
    are not there; StorageError when an image cannot be read.
    """
    annotations = parse(text, landmarks=True)
    assert isinstance(annotations, Landmarks)
    manifest, held_out = split.manifest, set(split.held_out)
    found_at = {key: manifest.find(key) for key in sorted(annotations.keys)}
    row_of = {key: row for key, row in found_at.items() if row is not None}
    if missing := sorted(found_at.keys() - row_of.keys()):
        raise DataError(f"the landmarks name {len(missing)} images that are not there: {', '.join(missing[:10])}")
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
