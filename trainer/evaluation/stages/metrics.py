"""Errors of landmarks and of masks, as the benchmarks define them: docs/evaluation.md.

Source: the evaluation of FaRL (arXiv 2112.03109). Lengths are pixels of the original image; errors are fractions of a
unit of length and not per cent.
Letters: N images, P points, C classes, G grid points of the error axis.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from trainer.evaluation.readers.eyes import INTER_OCULAR, INTER_PUPIL, Aligned
from trainer.evaluation.readers.record import IGNORED

# Where AUC and FR end: NME_box for AFLW-19, inter-ocular NME for WFLW; 300W is not scored by them.
THRESHOLD: dict[Aligned, float] = {"aflw19": 0.07, "wflw": 0.10}
# Spacing of the error axis over which the share of images is summed.
STEP = 1e-4


def diagonal(box_N4: Tensor) -> Tensor:
    """Lengths [N] of the diagonals of boxes (left, top, right, bottom): the unit of NME_diag."""
    return (box_N4[:, 2:] - box_N4[:, :2]).norm(dim=1)


def box_side(box_N4: Tensor) -> Tensor:
    """Sides [N] of squares as large as the boxes, sqrt(width * height): the unit of NME_box."""
    return (box_N4[:, 2:] - box_N4[:, :2]).prod(dim=1).sqrt()


def inter_ocular(point_NP2: Tensor, benchmark: Aligned) -> Tensor:
    """Distances [N] of the outer corners of the eyes, of annotated points in the benchmark's order."""
    return distance_between(point_NP2, *INTER_OCULAR[benchmark])


def inter_pupil(point_NP2: Tensor, benchmark: Aligned) -> Tensor:
    """Distances [N] of the pupils, of annotated points in the benchmark's order."""
    return distance_between(point_NP2, *INTER_PUPIL[benchmark])


def distance_between(point_NP2: Tensor, one: Sequence[int], other: Sequence[int]) -> Tensor:
    """Distances [N] of the means of two groups of points."""
    return (point_NP2[:, list(one)].mean(dim=1) - point_NP2[:, list(other)].mean(dim=1)).norm(dim=1)


def nme(guess_NP2: Tensor, target_NP2: Tensor, unit_N: Tensor) -> Tensor:
    """Normalised mean error [N] of every image: mean distance of its points over its unit.

    Raises ValueError where a unit is no positive length: such an image has no error.
    """
    if not bool((unit_N > 0).all()):
        bad = (~(unit_N > 0)).nonzero().flatten().tolist()
        raise ValueError(f"images {bad[:10]} have units of length 0 or less; their errors are not defined")
    return (guess_NP2 - target_NP2).norm(dim=2).mean(dim=1) / unit_N


def cumulative_shares(error_N: Tensor, threshold: float) -> Tensor:
    """Shares [G] of images with an error of at most 0, STEP, 2 STEP, ..., threshold; G is odd.

    Raises ValueError when the threshold is no even multiple of STEP, which Simpson's rule needs.
    """
    intervals = round(threshold / STEP)
    if intervals < 2 or intervals % 2 or abs(intervals * STEP - threshold) > STEP / 1e3:
        raise ValueError(f"threshold {threshold} is no even multiple of {STEP}")
    if not len(error_N):
        raise ValueError("no images, so no share of them")
    grid_G = torch.linspace(0, threshold, intervals + 1, dtype=torch.float64)
    ordered_N = error_N.to(torch.float64).cpu().sort().values
    return torch.searchsorted(ordered_N, grid_G, right=True).double() / len(ordered_N)


def area_under_curve(error_N: Tensor, threshold: float) -> float:
    """AUC: integral of the cumulative shares from 0 to the threshold by Simpson's rule, over the threshold."""
    share_G = cumulative_shares(error_N, threshold)
    weight_G = torch.full_like(share_G, 2.0)
    weight_G[1::2] = 4.0
    weight_G[[0, -1]] = 1.0
    return float((share_G * weight_G).sum() / (3 * (len(share_G) - 1)))


def failure_rate(error_N: Tensor, threshold: float) -> float:
    """FR: share of images with an error above the threshold."""
    return 1 - float(cumulative_shares(error_N, threshold)[-1])


@dataclass(frozen=True)
class ParsingScore:
    """F1 of every class that counts and occurs, and their mean: fractions."""

    per_class: dict[str, float]
    mean: float


class Confusion:
    """Pixels by true and guessed class, summed over all images of a set: F1 is not a mean over images."""

    def __init__(self, class_names: Sequence[str]) -> None:
        """`class_names`: of the classes 0, 1, ...; class 0 is the background, which does not count."""
        self.class_names = tuple(class_names)
        self.count_CC = torch.zeros(len(class_names), len(class_names), dtype=torch.int64)

    def add(self, count_CC: Tensor) -> None:
        """Take in what was counted, here or by another rank."""
        self.count_CC += count_CC

    def count(self, guess: Tensor, target: Tensor) -> Tensor:
        """Pixels [C, C] of class maps of one shape, integers 0..C-1, without those whose target is IGNORED.

        Raises ValueError for anything else.
        """
        if guess.shape != target.shape:
            raise ValueError(f"guess {tuple(guess.shape)} and target {tuple(target.shape)} differ in shape")
        num_classes = len(self.class_names)
        counts = target.flatten().cpu() != IGNORED
        one, other = target.flatten().cpu()[counts].long(), guess.flatten().cpu()[counts].long()
        for name, value in ("target", one), ("guess", other):
            if len(value) and not 0 <= int(value.min()) <= int(value.max()) < num_classes:
                raise ValueError(f"{name} has classes {int(value.min())}..{int(value.max())}, not 0..{num_classes - 1}")
        pair = one * num_classes + other
        return torch.bincount(pair, minlength=num_classes**2).view(num_classes, num_classes)

    def score(self) -> ParsingScore:
        """F1 = 2 TP / (guessed + true pixels); a class with neither has none and is left out of the mean.

        Raises ValueError when no class that counts occurs.
        """
        right_C = self.count_CC.diagonal().double()
        either_C = (self.count_CC.sum(0) + self.count_CC.sum(1)).double()
        per_class = {
            name: float(2 * right_C[number] / either_C[number])
            for number, name in enumerate(self.class_names)
            if number and either_C[number]
        }
        if not per_class:
            raise ValueError("no pixel of any class but the background; F1 is not defined")
        return ParsingScore(per_class, sum(per_class.values()) / len(per_class))
