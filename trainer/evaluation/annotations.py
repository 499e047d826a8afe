"""What a probe is to read off images, and how wrong it is: landmarks, or labels.

Letters: N images, T targets, P points.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor

from trainer.contract.records import Metric
from trainer.data.decode import Fit, in_input
from trainer.evaluation.bootstrap import mean_metric
from trainer.evaluation.readers.annotations import EYES, NUM_POINTS, Faces, read_labels, read_landmarks


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
    return Landmarks(read_landmarks(text)) if landmarks else Labels(read_labels(text))


class Landmarks:
    """68 points a face."""

    note = (
        "mean error of the 68 points over the distance of the eye centres (means of points 36-41 and 42-47, from 0); "
        "points that a model drew are pseudo-labels, which the file does not tell"
    )

    def __init__(self, faces: Faces) -> None:
        self._points = {key: torch.from_numpy(points_P2) for key, points_P2 in faces.points.items()}
        self.keys: Sequence[str] = list(self._points)
        self.num_left_out = faces.num_left_out

    def points(self, key: str) -> Tensor:
        """[68, 2], in pixels of the upright image from its edge."""
        return self._points[key]

    def targets(self, keys: Sequence[str], sizes: Sequence[tuple[int, int]], input_size: int, fit: Fit) -> Tensor:
        """Points in coordinates of the input, 0..1 from edge to edge."""
        rows = [
            torch.from_numpy(in_input(self._points[key].numpy(), size, input_size, fit)).flatten()
            for key, size in zip(keys, sizes, strict=True)
        ]
        return torch.stack(rows)

    def score(self, guess_NT: Tensor, target_NT: Tensor) -> Metric:
        guess_NP2, target_NP2 = (points_NT.view(-1, NUM_POINTS, 2) for points_NT in (guess_NT, target_NT))
        left_N2, right_N2 = (target_NP2[:, eye].mean(dim=1) for eye in EYES)
        error_N = (guess_NP2 - target_NP2).norm(dim=2).mean(dim=1) / (left_N2 - right_N2).norm(dim=1)
        return mean_metric(100 * error_N, name="probe/landmark_nme", unit="% of eye distance", higher_is_better=False)


class Labels:
    """One label an image."""

    num_left_out = 0

    def __init__(self, labels: Mapping[str, str]) -> None:
        self._labels = labels
        self.keys: Sequence[str] = list(labels)
        number_of = Counter(labels.values())
        self.classes = sorted(number_of)
        commonest = max(number_of.values()) / len(labels)
        self.note = f"{len(self.classes)} labels, always the commonest one would reach {100 * commonest:.1f} %"

    def targets(self, keys: Sequence[str], sizes: Sequence[tuple[int, int]], input_size: int, fit: Fit) -> Tensor:
        """One column a class: 1 for the image's own, 0 elsewhere."""
        return torch.tensor([[float(self._labels[key] == name) for name in self.classes] for key in keys]).double()

    def score(self, guess_NT: Tensor, target_NT: Tensor) -> Metric:
        right_N = guess_NT.argmax(dim=1) == target_NT.argmax(dim=1)
        return mean_metric(100 * right_N.double(), name="probe/accuracy", unit="%", higher_is_better=True)
