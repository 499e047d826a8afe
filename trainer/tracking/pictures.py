"""The picture panel: what the model saw, and what it made of it."""

import io

import torch
from PIL import Image
from torch import Tensor

from trainer.contract import IMAGENET_MEAN, IMAGENET_STD
from trainer.method.vit import visible_first

MAX_ROWS = 8
GAP = 2
# Small inputs are enlarged by whole pixels until a face can be made out.
MIN_SIDE = 96


def panel(image_BCHW: Tensor, masked_BCHW: Tensor, reconstruction_BCHW: Tensor) -> bytes:
    """PNG with a row (image, masked image, reconstruction) for each of the first 8 images, all ImageNet-normalised."""
    columns = [_bytes(images[:MAX_ROWS]) for images in (image_BCHW, masked_BCHW, reconstruction_BCHW)]
    rows, side = columns[0].shape[0], columns[0].shape[1]
    zoom = -(-MIN_SIDE // side)
    cell = side * zoom + GAP
    sheet = Image.new("RGB", (3 * cell - GAP, rows * cell - GAP), "white")
    for x, column in enumerate(columns):
        for y, pixels in enumerate(column.numpy()):
            picture = Image.fromarray(pixels).resize((side * zoom, side * zoom), Image.Resampling.NEAREST)
            sheet.paste(picture, (x * cell, y * cell))
    out = io.BytesIO()
    sheet.save(out, "PNG", optimize=True)
    return out.getvalue()


def hide(image_BCHW: Tensor, noise_BL: Tensor, num_visible: int) -> Tensor:
    """The images with their hidden patches at ImageNet's mean colour, a grey."""
    return image_BCHW.masked_fill(hidden_pixels(image_BCHW, noise_BL, num_visible), 0.0)


def hidden_pixels(image_BCHW: Tensor, noise_BL: Tensor, num_visible: int) -> Tensor:
    """Which pixels [B, 1, H, W] belong to patches the encoder does not see."""
    hidden_BL = visible_first(noise_BL).argsort(dim=1) >= num_visible
    side = round(hidden_BL.shape[1] ** 0.5)
    patch = image_BCHW.shape[-1] // side
    grid = hidden_BL.view(-1, 1, side, side)
    return grid.repeat_interleave(patch, dim=2).repeat_interleave(patch, dim=3)


def denormalise(image_BCHW: Tensor) -> Tensor:
    """ImageNet-normalised -> colours in 0..1, clipped."""
    mean, std = (image_BCHW.new_tensor(values).view(1, 3, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_STD))
    return (image_BCHW * std + mean).clamp(0, 1)


def _bytes(image_BCHW: Tensor) -> Tensor:
    return (denormalise(image_BCHW.float()) * 255).round().to(torch.uint8).permute(0, 2, 3, 1).cpu()
