"""The small convolutional face networks of face-api.js (MIT) as teachers: landmark and expression weights.

Four dense blocks; a block's output is a stage of 32, 64, 128, 256 channels at 1/2, 1/4, 1/8, 1/16 of the input.
Weights come as .npz in TensorFlow's channels-last order.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import pad, relu

CHANNELS = (32, 64, 128, 256)
# The network's own input statistics, in RGB of 0..1: it subtracts these and divides by 255 only.
MEAN = (122.782 / 255, 117.001 / 255, 104.298 / 255)
STD = (1.0, 1.0, 1.0)


class FaceApi(nn.Module):
    """The convolutional part; the pooled head of the published networks is not used."""

    def __init__(self) -> None:
        super().__init__()
        self.stages = nn.ModuleList(
            Block(before, after, separable=number > 0)
            for number, (before, after) in enumerate(zip((3, *CHANNELS), CHANNELS, strict=False))
        )

    @property
    def depth(self) -> int:
        return len(self.stages)

    def block_outputs(self, image_BCHW: Tensor, taps: Sequence[int]) -> list[Tensor]:
        """Stage outputs `taps` (of 0..3) as positions [B, h * w, C]."""
        found = []
        for number, stage in enumerate(self.stages):
            image_BCHW = stage(image_BCHW)
            if number in taps:
                found.append(image_BCHW.flatten(2).transpose(1, 2))
        return found


class Block(nn.Module):
    """Four convolutions, each fed with the sum of those before it."""

    def __init__(self, before: int, after: int, *, separable: bool) -> None:
        super().__init__()
        first = Separable(before, after, stride=2) if separable else Conv(before, after, stride=2)
        self.convs = nn.ModuleList([first, *(Separable(after, after, stride=1) for _ in range(3))])

    def forward(self, image_BCHW: Tensor) -> Tensor:
        total = relu(self.convs[0](image_BCHW))
        total = total + self.convs[1](total)
        total = total + self.convs[2](relu(total))
        return relu(total + self.convs[3](relu(total)))


class Conv(nn.Conv2d):
    """3x3 with TensorFlow's "same" padding: an odd pixel goes to the bottom and the right."""

    def __init__(self, before: int, after: int, *, stride: int, groups: int = 1, bias: bool = True) -> None:
        super().__init__(before, after, kernel_size=3, stride=stride, groups=groups, bias=bias)

    def forward(self, image_BCHW: Tensor) -> Tensor:
        margins = []
        for side in (image_BCHW.shape[3], image_BCHW.shape[2]):
            total = max((-(-side // self.stride[0]) - 1) * self.stride[0] + 3 - side, 0)
            margins += [total // 2, total - total // 2]
        return super().forward(pad(image_BCHW, margins))


class Separable(nn.Sequential):
    """A 3x3 convolution of every channel for itself, then a 1x1 across channels with the bias."""

    def __init__(self, before: int, after: int, *, stride: int) -> None:
        super().__init__(
            Conv(before, before, stride=stride, groups=before, bias=False), nn.Conv2d(before, after, kernel_size=1)
        )


def state_from_npz(arrays: Mapping[str, np.ndarray]) -> dict[str, Tensor]:
    """State dict of FaceApi from the file's arrays. Raises KeyError naming what is missing."""
    state = {}
    for stage in range(4):
        for conv in range(4):
            there, here = f"dense{stage}.conv{conv}", f"stages.{stage}.convs.{conv}"
            if (stage, conv) == (0, 0):
                state[f"{here}.weight"] = _tensor(arrays[f"{there}.filters"]).permute(3, 2, 0, 1).contiguous()
                state[f"{here}.bias"] = _tensor(arrays[f"{there}.bias"])
            else:
                state[f"{here}.0.weight"] = (
                    _tensor(arrays[f"{there}.depthwise_filter"]).permute(2, 3, 0, 1).contiguous()
                )
                state[f"{here}.1.weight"] = (
                    _tensor(arrays[f"{there}.pointwise_filter"]).permute(3, 2, 0, 1).contiguous()
                )
                state[f"{here}.1.bias"] = _tensor(arrays[f"{there}.bias"])
    return state


def _tensor(array: np.ndarray) -> Tensor:
    return torch.from_numpy(array.astype(np.float32))
