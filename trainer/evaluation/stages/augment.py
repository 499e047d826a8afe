"""Changes of colour and occlusions while training (docs/evaluation.md), all from one generator.

Images are float [C, H, W] in 0..1. The generator is advanced alike whatever is applied, so that one choice does
not shift the next image's.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, pad

GREY_WEIGHTS = (0.299, 0.587, 0.114)
"""Luma of ITU-R BT.601."""


@dataclass(frozen=True)
class Augment:
    """Which changes are made, and how strong."""

    occlude: bool
    """A black rectangle, always: height 0.2 to 0.8 of half the crop, width that times 1 +- 0.2, anywhere."""
    noise_probability: float
    noise_strength: float = 0.5
    """Largest weight of uniform noise blended in."""
    grey_probability: float = 0.1
    gamma: bool = True
    """One of square root, none and square, each as likely."""
    blur_ratio: float = 0.01
    """Largest side of the box blur as a ratio of the crop."""

    def __call__(self, image_CHW: Tensor, generator: torch.Generator) -> Tensor:
        """The image after all changes, in 0..1; the given one is not changed."""
        draw = torch.rand(10, generator=generator, dtype=torch.float64).tolist()
        noise_CHW = torch.rand(image_CHW.shape, generator=generator, dtype=image_CHW.dtype)
        image_CHW = image_CHW.clone()
        if self.occlude:
            _occlude(image_CHW, *draw[:4])
        if draw[4] < self.noise_probability:
            image_CHW = image_CHW.lerp(noise_CHW, draw[5] * self.noise_strength)
        if draw[6] < self.grey_probability:
            weight_C11 = image_CHW.new_tensor(GREY_WEIGHTS).view(3, 1, 1)
            image_CHW = (image_CHW * weight_C11).sum(dim=0, keepdim=True).expand_as(image_CHW)
        if self.gamma:
            image_CHW = image_CHW ** (0.5, 1.0, 2.0)[int(draw[7] * 3)]
        return _blurred(image_CHW, round(draw[8] * self.blur_ratio * image_CHW.shape[-1]))


ALIGNMENT = Augment(occlude=True, noise_probability=0.5)
PARSING = Augment(occlude=False, noise_probability=0.0)


def _occlude(image_CHW: Tensor, height_draw: float, width_draw: float, x_draw: float, y_draw: float) -> None:
    full_height, full_width = image_CHW.shape[1:]
    height = (0.2 + 0.6 * height_draw) * full_height / 2
    width = height * (0.8 + 0.4 * width_draw)
    top, left = y_draw * full_height - height / 2, x_draw * full_width - width / 2
    rows = slice(max(0, round(top)), max(0, round(top + height)))
    columns = slice(max(0, round(left)), max(0, round(left + width)))
    image_CHW[:, rows, columns] = 0


def _blurred(image_CHW: Tensor, side: int) -> Tensor:
    """Means over squares of `side` pixels; the rim is repeated."""
    if side < 2:
        return image_CHW
    before = (side - 1) // 2
    around = (before, side - 1 - before)
    return avg_pool2d(pad(image_CHW[None], around + around, mode="replicate"), side, stride=1)[0]
