"""What a probe is to read off images, and how wrong it is: landmarks, or labels.

Letters: N images, T targets, P points.
"""

import csv
import io
import json
from collections.abc import Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor

from trainer.contract.records import Metric
from trainer.data.decode import Fit, corner, fitted_size
from trainer.data.manifest import DataError
from trainer.evaluation.bootstrap import mean_metric

NUM_POINTS = 68
# Contours of the two eyes, counted from 0: the distance of their centres is the inter-pupil unit of the 300W
# protocol. It follows annotated pupils to 3 % of their distance; the outer corners lie 1.35 times as far apart.
EYES = (slice(36, 42), slice(42, 48))


class Annotations(Protocol):
    """What is known of some images."""

    keys: Sequence[str]
    """Images that can be used."""
    num_left_out: int
    note: str

    def targets(self, keys: Sequence[str], sizes: Sequence[tuple[int, int]], input_size: int, fit: Fit) -> Tensor:
        """What is to be predicted for these images [N, T], float64; sizes: their upright (width, height)."""

    def score(self, guess_NT: Tensor, target_NT: Tensor) -> Metric:
        """How good predictions are, on average over the images, with an interval over them."""


def parse(text: bytes, *, landmarks: bool) -> Annotations:
    """Raises DataError when the file is not what the spec says it is."""
    try:
        return Landmarks(json.loads(text)) if landmarks else Labels(text.decode())
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"annotations cannot be read: {error!r}") from error


class Landmarks:
    """68 points a face: {image key: {"points68": [[x, y], ...], "landmarks_ok": bool}}, pixels of the image file."""

    note = (
        "mean error of the 68 points over the distance of the eye centres (means of points 36-41 and 42-47, from 0); "
        "points that a model drew are pseudo-labels, which the file does not tell"
    )

    def __init__(self, faces: Mapping[str, Mapping[str, object]]) -> None:
        usable = {key: face["points68"] for key, face in faces.items() if face.get("landmarks_ok", True)}
        self._points = {key: torch.tensor(points, dtype=torch.float64) for key, points in usable.items()}
        for key, points in self._points.items():
            if points.shape != (NUM_POINTS, 2):
                raise ValueError(f"{key} has {tuple(points.shape)} numbers, not {NUM_POINTS} points (x, y)")
        self.keys: Sequence[str] = list(self._points)
        self.num_left_out = len(faces) - len(self.keys)

    def points(self, key: str) -> Tensor:
        """[68, 2], in pixels of the upright image from its edge."""
        return self._points[key]

    def targets(self, keys: Sequence[str], sizes: Sequence[tuple[int, int]], input_size: int, fit: Fit) -> Tensor:
        """Points in coordinates of the input, 0..1 from edge to edge."""
        rows = []
        for key, size in zip(keys, sizes, strict=True):
            fitted = fitted_size(*size, input_size, fit)
            side, resized, cut = (
                torch.tensor(pair, dtype=torch.float64) for pair in (size, fitted, corner(*fitted, input_size))
            )
            rows.append(((self._points[key] * resized / side - cut) / input_size).flatten())
        return torch.stack(rows)

    def score(self, guess_NT: Tensor, target_NT: Tensor) -> Metric:
        guess_NP2, target_NP2 = (points_NT.view(-1, NUM_POINTS, 2) for points_NT in (guess_NT, target_NT))
        left_N2, right_N2 = (target_NP2[:, eye].mean(dim=1) for eye in EYES)
        error_N = (guess_NP2 - target_NP2).norm(dim=2).mean(dim=1) / (left_N2 - right_N2).norm(dim=1)
        return mean_metric(100 * error_N, name="probe/landmark_nme", unit="% of eye distance", higher_is_better=False)


class Labels:
    """One label an image: CSV with the columns file,label."""

    num_left_out = 0

    def __init__(self, text: str) -> None:
        self._labels = {row["file"]: row["label"] for row in csv.DictReader(io.StringIO(text))}
        self.keys: Sequence[str] = list(self._labels)
        self.classes = sorted(set(self._labels.values()))
        if len(self.classes) < 2:
            raise ValueError(f"{len(self.classes)} different labels; a classifier needs two")
        commonest = max(list(self._labels.values()).count(label) for label in self.classes) / len(self.keys)
        self.note = f"{len(self.classes)} labels, always the commonest one would reach {100 * commonest:.1f} %"

    def targets(self, keys: Sequence[str], sizes: Sequence[tuple[int, int]], input_size: int, fit: Fit) -> Tensor:
        """One column a class: 1 for the image's own, 0 elsewhere."""
        return torch.tensor([[float(self._labels[key] == name) for name in self.classes] for key in keys]).double()

    def score(self, guess_NT: Tensor, target_NT: Tensor) -> Metric:
        right_N = guess_NT.argmax(dim=1) == target_NT.argmax(dim=1)
        return mean_metric(100 * right_N.double(), name="probe/accuracy", unit="%", higher_is_better=True)
