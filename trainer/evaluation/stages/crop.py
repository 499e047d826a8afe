"""Square views of a face in an image, with what is annotated on it, there and back.

Coordinates of images and crops are pixels from edge to edge: 0 is the left edge of the first pixel, and the centre of
pixel i is i + 0.5. Resampling is bilinear without antialiasing, as in the protocol; outside of the image is black.
Letters: C channels, H W pixels of the image, S pixels of a side of the crop, P points, K corners.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import grid_sample

from trainer.evaluation.readers.record import Box
from trainer.evaluation.stages.warp import unwarp, warp

SIZE = 512
# Where two eye centres, nose tip and mouth corners come to lie in a crop of 512 pixels (LaPa).
TEMPLATE_SIZE = 512.0
TEMPLATE_52 = ((196.0, 226.0), (316.0, 226.0), (256.0, 286.0), (220.0, 360.4), (292.0, 360.4))


@dataclass(frozen=True)
class Crop:
    """A view: a matrix from pixels of the image to pixels of the crop, then the tanh warp."""

    matrix_33: Tensor
    """float64, affine; without the warp."""
    size: int = SIZE
    warp_factor: float = 0.0

    def to_crop(self, point_P2: Tensor) -> Tensor:
        """Points of the image [P, 2] in pixels of the crop, float64."""
        straight = _mapped(self.matrix_33, point_P2.double())
        return self._pixels(warp(self._unit(straight), self.warp_factor))

    def to_image(self, point_P2: Tensor) -> Tensor:
        """Points of the crop [P, 2] in pixels of the image, float64."""
        straight = self._pixels(unwarp(self._unit(point_P2.double()), self.warp_factor))
        return _mapped(torch.linalg.inv(self.matrix_33), straight)

    def sample(
        self,
        image_CHW: Tensor,
        whole: tuple[int, int] | None = None,
        mode: Literal["bilinear", "nearest"] = "bilinear",
    ) -> Tensor:
        """The view [C, S, S] of a float image; `nearest` for masks.

        whole: (width, height) of the image in which coordinates are, where this is a smaller copy of it.
        """
        height, width = image_CHW.shape[1:]
        place_SS2 = self.to_image(_centres(self.size, self.size)).view(self.size, self.size, 2)
        return _sampled(image_CHW, place_SS2, whole or (width, height), mode)

    def unsample(self, view_CSS: Tensor, whole: tuple[int, int], out: tuple[int, int] | None = None) -> Tensor:
        """The view seen from the image [C, H, W], bilinear; 0 where the crop does not reach.

        whole: (width, height) of the image; out: those of the result, where it is a smaller copy of the image.
        """
        width, height = out or whole
        shrink = torch.tensor([whole[0] / width, whole[1] / height], dtype=torch.float64)
        place_HW2 = self.to_crop(_centres(width, height) * shrink).view(height, width, 2)
        return _sampled(view_CSS, place_HW2, (self.size, self.size), "bilinear")

    def moved(self, pose: "Pose") -> "Crop":
        """The view after scaling and turning what it shows about its centre, and then shifting it."""
        centre = self.size / 2
        cos, sin = pose.scale * math.cos(pose.rotation), pose.scale * math.sin(pose.rotation)
        shift_x, shift_y = (ratio * self.size for ratio in pose.shift_ratio)
        about_33 = _matrix(
            [[cos, -sin, centre - cos * centre + sin * centre + shift_x],
             [sin, cos, centre - sin * centre - cos * centre + shift_y], [0, 0, 1]]
        )  # fmt: skip
        return replace(self, matrix_33=about_33 @ self.matrix_33)

    def mirrored(self) -> "Crop":
        """The view with left and right exchanged; points and classes have to be renamed (mirror.py)."""
        return replace(self, matrix_33=_matrix([[-1, 0, self.size], [0, 1, 0], [0, 0, 1]]) @ self.matrix_33)

    def _unit(self, place: Tensor) -> Tensor:
        return 2 * place / self.size - 1

    def _pixels(self, unit: Tensor) -> Tensor:
        return (unit + 1) * self.size / 2


@dataclass(frozen=True)
class Pose:
    """How a view is moved: size of what it shows, rotation in radians (clockwise), shift as a ratio of the crop."""

    scale: float = 1.0
    rotation: float = 0.0
    shift_ratio: tuple[float, float] = (0.0, 0.0)


@dataclass(frozen=True)
class Jitter:
    """Uniform noise on a pose while training, each number up to this far to either side."""

    scale: float
    rotation: float
    shift_ratio: float

    def draw(self, generator: torch.Generator, scale: float = 1.0) -> Pose:
        """A pose about `scale`, no rotation and no shift, from the generator alone."""
        noise = (2 * torch.rand(4, generator=generator, dtype=torch.float64) - 1).tolist()
        return Pose(
            scale=scale + noise[0] * self.scale,
            rotation=noise[1] * self.rotation,
            shift_ratio=(noise[2] * self.shift_ratio, noise[3] * self.shift_ratio),
        )


def box_crop(box: Box, size: int = SIZE) -> Crop:
    """The box, stretched to the whole crop. Raises ValueError for a box without width or height."""
    left, top, right, bottom = box
    if not (right > left and bottom > top):
        raise ValueError(f"box {box} has no width or no height (left, top, right, bottom)")
    across, down = size / (right - left), size / (bottom - top)
    return Crop(_matrix([[across, 0, -left * across], [0, down, -top * down], [0, 0, 1]]), size)


def whole_crop(width: int, height: int, size: int = SIZE) -> Crop:
    """The whole image."""
    return box_crop((0.0, 0.0, float(width), float(height)), size)


def template_crop(point_K2: Tensor, size: int = SIZE, warp_factor: float = 0.0) -> Crop:
    """Two eye centres, nose tip and mouth corners as near as can be to the template, by a similarity.

    Least squares over scale, rotation and shift (Umeyama 1991, in the plane and without mirroring). Raises
    ValueError when all points are the same.
    """
    target_K2 = torch.tensor(TEMPLATE_52, dtype=torch.float64) * (size / TEMPLATE_SIZE)
    source_K2 = point_K2.double()
    if source_K2.shape != target_K2.shape:
        raise ValueError(f"{tuple(source_K2.shape)} numbers; five points (x, y) align a face")
    (from_x, from_y), (to_x, to_y) = source_K2.mean(dim=0).tolist(), target_K2.mean(dim=0).tolist()
    source_K2, target_K2 = source_K2 - source_K2.mean(dim=0), target_K2 - target_K2.mean(dim=0)
    spread = float(source_K2.square().sum())
    if spread == 0:
        raise ValueError("the five points are one and the same; they align nothing")
    # In the plane a similarity is the product with one complex number, cos + i sin, and a shift.
    cos = float((source_K2 * target_K2).sum()) / spread
    sin = float((source_K2[:, 0] * target_K2[:, 1] - source_K2[:, 1] * target_K2[:, 0]).sum()) / spread
    rows = [[cos, -sin, to_x - cos * from_x + sin * from_y], [sin, cos, to_y - sin * from_x - cos * from_y], [0, 0, 1]]
    return Crop(_matrix(rows), size, warp_factor)


def _matrix(rows: Sequence[Sequence[float]]) -> Tensor:
    return torch.tensor(rows, dtype=torch.float64)


def _mapped(matrix_33: Tensor, point_P2: Tensor) -> Tensor:
    return point_P2 @ matrix_33[:2, :2].T + matrix_33[:2, 2]


def _centres(width: int, height: int) -> Tensor:
    """Centres (x, y) [height * width, 2] of pixels, row by row."""
    y, x = torch.meshgrid(
        torch.arange(height, dtype=torch.float64) + 0.5, torch.arange(width, dtype=torch.float64) + 0.5, indexing="ij"
    )
    return torch.stack([x, y], dim=-1).view(-1, 2)


def _sampled(image_CHW: Tensor, place_HW2: Tensor, whole: tuple[int, int], mode: str) -> Tensor:
    unit_HW2 = 2 * place_HW2 / torch.tensor(whole, dtype=torch.float64) - 1
    # Far outside is far outside: infinities of the warp's rim would be undefined when sampled.
    grid_HW2 = unit_HW2.clamp(-1e4, 1e4).to(image_CHW.device, image_CHW.dtype)
    return grid_sample(image_CHW[None], grid_HW2[None], mode=mode, padding_mode="zeros", align_corners=False)[0]
