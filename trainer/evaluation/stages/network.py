"""A pretrained encoder with a head: images -> maps, of which there is one a landmark or a class.

Letters: B images, S pixels of a side, L patches, D width, K maps, H W places of a map.
"""

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from trainer.contract import IMAGENET_MEAN, IMAGENET_STD, EncoderSpec
from trainer.contract.stage import taps
from trainer.evaluation.stages.heads import Pyramid, UperHead, initialise
from trainer.method.clip import ClipEncoder
from trainer.method.vit import Encoder

# Pixels of a side that the encoder sees, of a crop of 512 (docs/evaluation.md).
INPUT_SIZE = 448
CHANNELS = 768


class Network(nn.Module):
    """Encoder, pyramid and head. A frozen encoder is not trained, and no gradient is computed in it."""

    def __init__(
        self, encoder: Encoder, num_maps: int, *, frozen: bool, input_size: int = INPUT_SIZE, channels: int = CHANNELS
    ) -> None:
        """`encoder`: at `input_size`, see `encoder_at`."""
        super().__init__()
        self.encoder = encoder
        self.frozen = frozen
        self.input_size = input_size
        self.taps = taps(encoder.depth)
        width = encoder.cls_token.shape[-1]
        self.pyramid = Pyramid(width)
        self.head = UperHead(width, channels, num_maps)
        if frozen:
            encoder.requires_grad_(False)

    def forward(self, image_BCSS: Tensor, kept_BC: Tensor | None = None) -> Tensor:
        """Logits [B, K, H, W] of images with colours 0..1; H and W are four times the encoder's grid.

        kept_BC: of heads.draw_dropout; None = nothing is dropped.
        """
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            token_maps = self._token_maps(image_BCSS)
        return self.head(self.pyramid(token_maps), kept_BC)

    def _token_maps(self, image_BCSS: Tensor) -> list[Tensor]:
        """Outputs [B, D, H, W] of the tapped blocks, without cls and without a norm."""
        size = (self.input_size, self.input_size)
        image_BCSS = interpolate(image_BCSS, size=size, mode="bilinear", align_corners=False)
        mean, std = (image_BCSS.new_tensor(three).view(3, 1, 1) for three in (IMAGENET_MEAN, IMAGENET_STD))
        maps = []
        for token_BND in self.encoder.block_outputs((image_BCSS - mean) / std, self.taps):
            side = math.isqrt(token_BND.shape[1] - 1)
            maps.append(token_BND[:, 1:].transpose(1, 2).unflatten(2, (side, side)).contiguous())
        return maps


def build(
    encoder: EncoderSpec,
    weights: Mapping[str, Tensor],
    num_maps: int,
    *,
    frozen: bool,
    seed: int,
    input_size: int = INPUT_SIZE,
    channels: int = CHANNELS,
) -> Network:
    """Network on pretrained weights of the encoder, whatever size they were trained at; the rest is drawn."""
    network = Network(
        encoder_at(encoder, weights, input_size), num_maps, frozen=frozen, input_size=input_size, channels=channels
    )
    generator = torch.Generator().manual_seed(seed)
    for part in network.pyramid, network.head:
        initialise(part, generator)
    return network


def encoder_at(encoder: EncoderSpec, weights: Mapping[str, Tensor], input_size: int) -> Encoder:
    """The encoder at another input size. Raises ValueError when the size is no multiple of the patch."""
    if input_size % encoder.patch:
        raise ValueError(f"input size {input_size} is no multiple of the encoder's patch, {encoder.patch}")
    found = (ClipEncoder if "norm_pre.weight" in weights else Encoder)(encoder, input_size)
    pos_embed = resized_position_code(weights["pos_embed"], input_size // encoder.patch)
    found.load_state_dict({**weights, "pos_embed": pos_embed})
    return found


def resized_position_code(code_1ND: Tensor, side: int) -> Tensor:
    """Position code [1, 1 + side^2, D], bicubic; cls row kept.

    The protocol resizes. Computing the sin-cos code anew would give patches places the encoder has never seen.
    """
    cls_11D, grid_1LD = code_1ND[:, :1], code_1ND[:, 1:]
    old = math.isqrt(grid_1LD.shape[1])
    if old == side:
        return code_1ND
    grid_1DHW = grid_1LD.transpose(1, 2).unflatten(2, (old, old))
    resized = interpolate(grid_1DHW, size=(side, side), mode="bicubic", align_corners=False)
    return torch.cat([cls_11D, resized.flatten(2).transpose(1, 2)], dim=1)
