"""A plain ViT, masked or whole: the online and target encoder, and teachers that share its layout.

Names and layout of the weights are those of timm's VisionTransformer, and a test holds the outputs to it.
The blocks are written out because importing timm costs five seconds of start-up in every worker.
Letters: B batch, C channel, H W pixels, L patches, V visible patches, P tokens (1 + L), D width.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, linear, scaled_dot_product_attention

from trainer.contract import EncoderSpec

LAYER_NORM_EPS = 1e-6


class Encoder(nn.Module):
    """Patch embedding, cls token, fixed sin-cos position code, pre-norm blocks, final norm."""

    def __init__(self, encoder: EncoderSpec, input_size: int) -> None:
        super().__init__()
        width = encoder.width
        self.patch_embed = PatchEmbed(encoder.patch, width)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = fixed(position_code(width, input_size // encoder.patch))
        self.blocks = nn.ModuleList(Block(width, encoder.heads) for _ in range(encoder.depth))
        self.norm = nn.LayerNorm(width, eps=LAYER_NORM_EPS)

    def forward(self, image_BCHW: Tensor, noise_BL: Tensor, num_visible: int) -> Tensor:
        """Tokens [B, 1 + V, D] of the `num_visible` patches with the smallest noise, cls first."""
        return self.visible(image_BCHW, visible_first(noise_BL)[:, :num_visible])

    def visible(self, image_BCHW: Tensor, kept_BV: Tensor) -> Tensor:
        """Tokens [B, 1 + V, D] of the patches of these numbers, cls first."""
        patch_BLK = self.patch_embed.cut(image_BCHW)
        patch_BVK = patch_BLK.gather(1, kept_BV.unsqueeze(-1).expand(-1, -1, patch_BLK.shape[-1]))
        return self._encode(self.patch_embed(patch_BVK) + self.pos_embed[0, 1:][kept_BV])

    def features(self, image_BCHW: Tensor) -> Tensor:
        """Tokens [B, 1 + L, D] of the whole image, cls first, after the final norm."""
        return self._encode(self._patches(image_BCHW))

    @property
    def depth(self) -> int:
        return len(self.blocks)

    def block_outputs(self, image_BCHW: Tensor, taps: Sequence[int]) -> list[Tensor]:
        """Outputs [B, 1 + L, D] of the blocks `taps` (rising, from 0), before the final norm."""
        token_BPD = self._with_cls(self._patches(image_BCHW))
        found = []
        for index in range(taps[-1] + 1):
            token_BPD = self.blocks[index](token_BPD)
            if index in taps:
                found.append(token_BPD)
        return found

    def _patches(self, image_BCHW: Tensor) -> Tensor:
        return self.patch_embed(self.patch_embed.cut(image_BCHW)) + self.pos_embed[:, 1:]

    def _with_cls(self, token_BND: Tensor) -> Tensor:
        cls_B1D = (self.cls_token + self.pos_embed[:, :1]).expand(token_BND.shape[0], -1, -1)
        return torch.cat([cls_B1D, token_BND], dim=1)

    def _encode(self, token_BND: Tensor) -> Tensor:
        token_BND = self._with_cls(token_BND)
        for block in self.blocks:
            token_BND = block(token_BND)
        return self.norm(token_BND)


class Block(nn.Module):
    """Pre-norm attention and MLP (ratio 4, erf GELU), no dropout."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=LAYER_NORM_EPS)
        self.attn = Attention(width, heads)
        self.norm2 = nn.LayerNorm(width, eps=LAYER_NORM_EPS)
        self.mlp = Mlp(width)

    def forward(self, token_BND: Tensor) -> Tensor:
        token_BND = token_BND + self.attn(self.norm1(token_BND))
        return token_BND + self.mlp(self.norm2(token_BND))


class PatchEmbed(nn.Module):
    """Patches -> tokens: a convolution that never overlaps, computed as the matrix product it is.

    So the online and target encoder embed no hidden patch, and on a CPU it takes half the time. K = 3 * patch * patch.
    """

    def __init__(self, patch: int, width: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, width, kernel_size=patch, stride=patch)

    def initialise(self, generator: torch.Generator) -> None:
        nn.init.xavier_uniform_(self.proj.weight.flatten(1), generator=generator)
        bound = 1 / math.sqrt(self.proj.weight[0].numel())
        nn.init.uniform_(self.proj.get_parameter("bias"), -bound, bound, generator=generator)

    def cut(self, image_BCHW: Tensor) -> Tensor:
        """Patches [B, L, K] row by row; values of a patch in the order colour, row, column."""
        (patch, _), (batch, channels, height, width) = self.proj.kernel_size, image_BCHW.shape
        rows, columns = height // patch, width // patch
        grid = image_BCHW.reshape(batch, channels, rows, patch, columns, patch)
        return grid.permute(0, 2, 4, 1, 3, 5).reshape(batch, rows * columns, channels * patch * patch)

    def forward(self, patch_BNK: Tensor) -> Tensor:
        return linear(patch_BNK, self.proj.weight.flatten(1), self.proj.bias)


class Mlp(nn.Module):
    """Four times as wide in between, exact (erf) GELU."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, 4 * width)
        self.fc2 = nn.Linear(4 * width, width)

    def forward(self, token_BND: Tensor) -> Tensor:
        return self.fc2(gelu(self.fc1(token_BND)))


class Attention(nn.Module):
    """Multi-head self-attention, scale 1 / sqrt(head width), by torch's fused kernel."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, token_BND: Tensor) -> Tensor:
        batch, count, width = token_BND.shape
        qkv = self.qkv(token_BND).view(batch, count, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        mixed = scaled_dot_product_attention(*qkv.unbind(0))
        return self.proj(mixed.transpose(1, 2).reshape(batch, count, width))


def fixed(value: Tensor) -> nn.Parameter:
    """A weight that is not trained. No buffer: DDP would send those around before every forward."""
    return nn.Parameter(value, requires_grad=False)


def visible_first(noise_BL: Tensor) -> Tensor:
    """Patch numbers [B, L] by rising noise: the first V are visible, the rest hidden."""
    return noise_BL.argsort(dim=1, stable=True)


def position_code(width: int, side: int) -> Tensor:
    """Sin-cos code [1, 1 + side * side, width], float32; the cls row is zero.

    First half of the width: column, second half: row; each half [sin(p w_i), cos(p w_i)], w_i = 10000^(-i / (D/4)).
    """
    frequency = 10000.0 ** (-torch.arange(width // 4, dtype=torch.float64) / (width // 4))
    angle = torch.arange(side, dtype=torch.float64)[:, None] * frequency
    along = torch.cat([angle.sin(), angle.cos()], dim=1)
    column, row = along.repeat(side, 1), along.repeat_interleave(side, dim=0)
    code = torch.cat([column, row], dim=1)
    return torch.cat([torch.zeros(1, width, dtype=torch.float64), code]).float().unsqueeze(0)


def initialise(module: nn.Module, generator: torch.Generator) -> None:
    """Draw the published initial weights in place, from the generator alone.

    Linear: Xavier-uniform, bias 0. Patch convolution: Xavier-uniform on its [D, 3 p p] view, bias as torch's
    default. Norms: 1 and 0. Tokens: normal with deviation 0.02.
    """
    for part in module.modules():
        if isinstance(part, nn.Linear):
            nn.init.xavier_uniform_(part.weight, generator=generator)
            if part.bias is not None:
                nn.init.zeros_(part.bias)
        elif isinstance(part, PatchEmbed):
            part.initialise(generator)
    for name, parameter in module.named_parameters():
        if name.endswith("_token"):
            nn.init.normal_(parameter, std=0.02, generator=generator)
