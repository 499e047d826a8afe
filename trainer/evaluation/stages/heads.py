"""From token maps of a plain ViT to maps of landmarks or classes: feature pyramid and UPerHead, and soft-argmax.

Sources: docs/evaluation.md; UPerNet (Xiao et al. 2018, section 3.1). The weights are drawn as written in
`initialise`, since the protocol names no draw.
Letters: B images, D encoder width, C head channels, K output maps, P points, H W places of a map.
"""

import torch
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d, interpolate

from trainer.contract.stage import NUM_LEVELS
from trainer.evaluation.stages.norm import SliceNorm

POOL_SIDES = (1, 2, 3, 6)
DROPOUT = 0.1
# Below this sum an activated map has no centroid worth the name.
SMALLEST_SUM = 1e-6


class Pyramid(nn.Module):
    """Four token maps of one size -> four levels of 4, 2, 1 and 1/2 times that size, all D wide."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.quadrupled = nn.Sequential(_doubled(width), SliceNorm(width), nn.GELU(), _doubled(width))
        self.doubled = _doubled(width)
        self.halved = nn.MaxPool2d(2)

    def forward(self, map_BDHW: list[Tensor]) -> list[Tensor]:
        first, second, third, fourth = map_BDHW
        return [self.quadrupled(first), self.doubled(second), third, self.halved(fourth)]


class UperHead(nn.Module):
    """Pyramid pooling on the coarsest level, a top-down path, and one map per class on the finest level."""

    def __init__(self, width: int, channels: int, num_maps: int) -> None:
        super().__init__()
        self.pooled = nn.ModuleList(ConvNorm(width, channels, 1) for _ in POOL_SIDES)
        self.pool_merge = ConvNorm(width + len(POOL_SIDES) * channels, channels, 3)
        self.lateral = nn.ModuleList(ConvNorm(width, channels, 1) for _ in range(NUM_LEVELS - 1))
        self.smooth = nn.ModuleList(ConvNorm(channels, channels, 3) for _ in range(NUM_LEVELS - 1))
        self.merge = ConvNorm(NUM_LEVELS * channels, channels, 3)
        self.channels = channels
        self.classify = nn.Conv2d(channels, num_maps, kernel_size=1)

    def forward(self, level_BDHW: list[Tensor], kept_BC: Tensor | None = None) -> Tensor:
        """Logits [B, K, H, W] at the finest level's size; kept_BC: of `draw_dropout`, None = nothing is dropped."""
        *finer, coarsest = level_BDHW
        path = [lateral(level) for lateral, level in zip(self.lateral, finer, strict=True)]
        path.append(self._pool(coarsest))
        for place in range(len(path) - 1, 0, -1):
            path[place - 1] = path[place - 1] + _resized(path[place], path[place - 1])
        smoothed = [smooth(x) for smooth, x in zip(self.smooth, path[:-1], strict=True)]
        merged = torch.cat([_resized(x, path[0]) for x in (*smoothed, path[-1])], dim=1)
        last_BCHW = self.merge(merged)
        if kept_BC is not None:
            last_BCHW = last_BCHW * kept_BC[..., None, None]
        return self.classify(last_BCHW)

    def _pool(self, coarsest_BDHW: Tensor) -> Tensor:
        parts = [coarsest_BDHW]
        for side, conv in zip(POOL_SIDES, self.pooled, strict=True):
            parts.append(_resized(conv(adaptive_avg_pool2d(coarsest_BDHW, side)), coarsest_BDHW))
        return self.pool_merge(torch.cat(parts, dim=1))


def draw_dropout(faces: int, channels: int, generator: torch.Generator) -> Tensor:
    """What the channels of each face's last map are multiplied with [B, C]: 0, or what keeps the mean.

    Whole channels are dropped, as neighbouring places say the same.
    """
    return (torch.rand(faces, channels, generator=generator) >= DROPOUT) / (1 - DROPOUT)


class ConvNorm(nn.Module):
    """Convolution without bias, normalisation, ReLU; the map keeps its size."""

    def __init__(self, inputs: int, outputs: int, kernel: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=False)
        self.norm = SliceNorm(outputs)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        return self.norm(self.conv(x_BCHW)).relu()


def soft_argmax(logit_BPHW: Tensor) -> Tensor:
    """Centroids (x, y) [B, P, 2] of the sigmoid of maps, in 0..1 from edge to edge (docs/evaluation.md)."""
    active_BPHW = logit_BPHW.sigmoid()
    height, width = logit_BPHW.shape[2:]
    total_BP = active_BPHW.sum(dim=(2, 3)).clamp(min=SMALLEST_SUM)
    x_BP = (active_BPHW.sum(dim=2) * centres(width, logit_BPHW)).sum(dim=2) / total_BP
    y_BP = (active_BPHW.sum(dim=3) * centres(height, logit_BPHW)).sum(dim=2) / total_BP
    return torch.stack([x_BP, y_BP], dim=2)


def centres(count: int, like: Tensor) -> Tensor:
    """Centres of `count` pixels along 0..1."""
    return (torch.arange(count, device=like.device, dtype=like.dtype) + 0.5) / count


def initialise(module: nn.Module, generator: torch.Generator) -> None:
    """Draw the weights of pyramid and head in place, from the generator alone.

    Convolutions: normal with variance 2 / (number of values they sum) (He et al. 2015), bias 0; the last one, to the
    maps: normal with deviation 0.01, so that all maps start flat.
    """
    for name, part in module.named_modules():
        if isinstance(part, nn.Conv2d | nn.ConvTranspose2d):
            if name.rpartition(".")[2] == "classify":
                nn.init.normal_(part.weight, std=0.01, generator=generator)
            else:
                # The pyramid's transposed convolutions do not overlap: each place they write sums one place's channels.
                area = 1 if isinstance(part, nn.ConvTranspose2d) else part.kernel_size[0] * part.kernel_size[1]
                nn.init.normal_(part.weight, std=(2 / (part.in_channels * area)) ** 0.5, generator=generator)
            if part.bias is not None:
                nn.init.zeros_(part.bias)


def _doubled(width: int) -> nn.ConvTranspose2d:
    return nn.ConvTranspose2d(width, width, kernel_size=2, stride=2)


def _resized(x_BCHW: Tensor, like_BCHW: Tensor) -> Tensor:
    return interpolate(x_BCHW, size=like_BCHW.shape[2:], mode="bilinear", align_corners=False)
