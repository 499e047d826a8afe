"""Alignment and parsing: how a record becomes an example, what a network's maps are worth.

Letters: S pixels of a side of the crop, P points, C classes, K maps, H W places of a map or pixels of an image.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from trainer.data.manifest import DataError
from trainer.evaluation.readers.place import Place
from trainer.evaluation.readers.record import Record, read_rgb
from trainer.evaluation.stages.augment import Augment
from trainer.evaluation.stages.crop import SIZE, Crop, Jitter, box_crop, template_crop, whole_crop
from trainer.evaluation.stages.heads import soft_argmax
from trainer.evaluation.stages.losses import alignment_loss, parsing_loss
from trainer.evaluation.stages.metrics import Confusion, area_under_curve, failure_rate, nme
from trainer.evaluation.stages.mirror import mirrored_classes, mirrored_points

# From a dataset's coordinates, 0 in the centre of a pixel, to a crop's, 0 at its edge.
TO_EDGE = 0.5

Unit = Callable[[Tensor, Tensor], Tensor]
"""(points [N, P, 2], boxes [N, 4]) -> lengths [N], all in pixels of the image."""


@dataclass(frozen=True)
class Example:
    """A record as the network sees it."""

    record: Record
    image_CSS: Tensor
    """Colours 0..1."""
    target: Tensor
    """Points [P, 2] in 0..1 of the crop, or classes [S, S], uint8."""
    crop: Crop
    whole: tuple[int, int]
    """Width and height of the image."""


class Score(Protocol):
    """Collects what a network says of the examples of one split."""

    def read(self, example: Example, logit_KHW: Tensor) -> Tensor:
        """What counts of an example's maps, on the CPU, whichever rank has computed them."""

    def add(self, record: Record, found: Tensor) -> None:
        """One record and what was read of its maps."""

    def metrics(self) -> dict[str, float]:
        """Per cent, by name; a subset's name follows after a slash."""


class Task(Protocol):
    """What is predicted, and how it is judged."""

    @property
    def num_maps(self) -> int:
        """Maps of the head: one a landmark or a class."""

    @property
    def primary(self) -> str:
        """Name of the metric that an epoch is chosen by."""

    @property
    def higher_is_better(self) -> bool:
        """Of that metric."""

    def example(self, record: Record, generator: torch.Generator | None) -> Example:
        """For training with a generator, which decides noise and changes of colour; without one for evaluation."""

    def loss(self, logit_BKHW: Tensor, target: Tensor) -> Tensor:
        """Mean over a slice; target: that of its examples, stacked."""

    def score(self) -> Score:
        """A new, empty one."""


@dataclass(frozen=True)
class AlignmentTask:
    """Landmarks of the face in a box."""

    num_maps: int
    scale: float
    """Part of the crop's side that the face's box takes up."""
    units: Mapping[str, Unit]
    primary: str
    curve: tuple[str, float] | None
    """Unit and threshold of AUC and FR."""
    subsets: tuple[str, ...]
    jitter: Jitter
    augment: Augment
    mirror: bool = False
    """Mirror every second view while training (published: none)."""
    size: int = SIZE
    higher_is_better: bool = False

    def example(self, record: Record, generator: torch.Generator | None) -> Example:
        """Raises DataError for a record without box or points."""
        if record.box is None or record.points_P2 is None:
            raise DataError(f"{record.image} has no box or no points to align by")
        image_CHW = read_image(record.image)
        pose = self.jitter if generator else Jitter(0, 0, 0)
        left, top, right, bottom = (side + TO_EDGE for side in record.box)
        crop = box_crop((left, top, right, bottom), self.size).moved(
            pose.draw(generator or torch.Generator(), self.scale)
        )
        mirrored = self.mirror and _tossed(generator)
        if mirrored:
            crop = crop.mirrored()
        view_CSS = crop.sample(image_CHW)
        if generator:
            view_CSS = self.augment(view_CSS, generator)
        target_P2 = (crop.to_crop(torch.from_numpy(record.points_P2) + TO_EDGE) / self.size).float()
        if mirrored:
            target_P2 = mirrored_points(target_P2)
        return Example(record, view_CSS, target_P2, crop, (image_CHW.shape[2], image_CHW.shape[1]))

    def loss(self, logit_BKHW: Tensor, target: Tensor) -> Tensor:
        return alignment_loss(logit_BKHW, target)

    def score(self) -> "AlignmentScore":
        return AlignmentScore(self)


class AlignmentScore:
    """Errors of images, in pixels of the original images."""

    def __init__(self, task: AlignmentTask) -> None:
        self.task = task
        self.guesses: list[Tensor] = []
        self.records: list[Record] = []

    def read(self, example: Example, logit_KHW: Tensor) -> Tensor:
        """Points [P, 2] of the image."""
        place_P2 = soft_argmax(logit_KHW[None].double())[0] * example.crop.size
        return example.crop.to_image(place_P2) - TO_EDGE

    def add(self, record: Record, found: Tensor) -> None:
        self.guesses.append(found)
        self.records.append(record)

    def metrics(self) -> dict[str, float]:
        """nme_UNIT, and auc_UNIT_T and fr_UNIT_T with the threshold T in per cent."""
        guess_NP2 = torch.stack(self.guesses)
        target_NP2 = torch.from_numpy(
            np.stack([record.points_P2 for record in self.records if record.points_P2 is not None])
        )
        box_N4 = torch.tensor([record.box for record in self.records if record.box], dtype=torch.float64)
        errors = {name: nme(guess_NP2, target_NP2, unit(target_NP2, box_N4)) for name, unit in self.task.units.items()}
        found = {}
        for subset in ("", *self.task.subsets):
            part_N = torch.tensor([not subset or subset in record.subsets for record in self.records])
            if not part_N.any():
                continue
            suffix = f"/{subset}" if subset else ""
            for name, error_N in errors.items():
                found[f"nme_{name}{suffix}"] = 100 * float(error_N[part_N].mean())
            if self.task.curve:
                name, threshold = self.task.curve
                error_N, label = errors[name][part_N], f"{name}_{round(100 * threshold)}{suffix}"
                found[f"auc_{label}"] = 100 * area_under_curve(error_N, threshold)
                found[f"fr_{label}"] = 100 * failure_rate(error_N, threshold)
        return found


@dataclass(frozen=True)
class ParsingTask:
    """Classes of an image's pixels."""

    class_names: tuple[str, ...]
    align_by: tuple[int, ...] | None
    """Numbers of the five points that are brought to the template; None = the whole image as it is."""
    warp_factor: float
    jitter: Jitter
    augment: Augment
    mirror: bool = False
    """Mirror every second view while training (published: none)."""
    size: int = SIZE
    primary: str = "f1"
    higher_is_better: bool = True

    @property
    def num_maps(self) -> int:
        return len(self.class_names)

    def example(self, record: Record, generator: torch.Generator | None) -> Example:
        """Raises DataError for a record without a mask, or without the points that align it."""
        if record.mask is None or (self.align_by and record.points_P2 is None):
            raise DataError(f"{record.image} has no mask, or no points to align by")
        image_CHW = read_image(record.image)
        whole = (image_CHW.shape[2], image_CHW.shape[1])
        crop = whole_crop(*whole, self.size)
        if self.align_by and record.points_P2 is not None:
            point_K2 = torch.from_numpy(record.points_P2[list(self.align_by)]) + TO_EDGE
            crop = template_crop(point_K2, self.size, self.warp_factor)
        if generator:
            crop = crop.moved(self.jitter.draw(generator))
        mirrored = self.mirror and _tossed(generator)
        if mirrored:
            crop = crop.mirrored()
        view_CSS = crop.sample(image_CHW)
        if generator:
            view_CSS = self.augment(view_CSS, generator)
        mask_1HW = torch.from_numpy(record.mask.read())[None].float()
        target_SS = crop.sample(mask_1HW, whole, mode="nearest")[0].to(torch.uint8)
        if mirrored:
            target_SS = mirrored_classes(target_SS, self.class_names)
        return Example(record, view_CSS, target_SS, crop, whole)

    def loss(self, logit_BKHW: Tensor, target: Tensor) -> Tensor:
        return parsing_loss(logit_BKHW, target)

    def score(self) -> "ParsingPixels":
        return ParsingPixels(self)


class ParsingPixels:
    """Pixels of all images by true and guessed class, counted in the masks' own pixels."""

    def __init__(self, task: ParsingTask) -> None:
        self.confusion = Confusion(task.class_names)

    def read(self, example: Example, logit_KHW: Tensor) -> Tensor:
        """Numbers of pixels by true and guessed class [C, C]."""
        assert example.record.mask is not None
        mask_HW = torch.from_numpy(example.record.mask.read())
        size = (example.crop.size, example.crop.size)
        large_KSS = interpolate(logit_KHW[None].float(), size=size, mode="bilinear", align_corners=False)[0]
        seen_KHW = example.crop.unsample(large_KSS, example.whole, out=(mask_HW.shape[1], mask_HW.shape[0]))
        return self.confusion.count(seen_KHW.argmax(dim=0), mask_HW)

    def add(self, record: Record, found: Tensor) -> None:
        self.confusion.add(found)

    def metrics(self) -> dict[str, float]:
        """f1, and f1/CLASS of every class that counts."""
        try:
            score = self.confusion.score()
        except ValueError as error:
            raise DataError(f"the masks of the faces to measure on have {error}") from error
        per_class = {f"f1/{name.replace(' ', '_')}": 100 * value for name, value in score.per_class.items()}
        return {"f1": 100 * score.mean, **per_class}


def _tossed(generator: torch.Generator | None) -> bool:
    """Heads; never without a generator."""
    return generator is not None and bool(torch.rand(1, generator=generator) < 0.5)


def read_image(path: Place) -> Tensor:
    """Upright RGB [3, H, W] in 0..1. Raises DataError."""
    return torch.from_numpy(read_rgb(path)).permute(2, 0, 1).float() / 255
