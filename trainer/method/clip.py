"""CLIP's visual ViT (Radford et al. 2021), which FaRL's encoders are: ours with a norm before the blocks.

Its names in their files -> ours. Its input statistics are CLIP's; they are folded into the patch embedding, so that it
takes the same input as any encoder of ours.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from trainer.contract import IMAGENET_MEAN, IMAGENET_STD, EncoderSpec
from trainer.method.vit import Encoder, Mlp

MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
NORM_EPS = 1e-5
PREFIX = "visual."
NAMES = {
    "norm1": "ln_1", "norm2": "ln_2", "attn.proj": "attn.out_proj", "mlp.fc1": "mlp.c_fc", "mlp.fc2": "mlp.c_proj",
}  # fmt: skip


class ClipEncoder(Encoder):
    """Blocks with x sigmoid(1.702 x) in their MLPs, and a norm before the first."""

    def __init__(self, encoder: EncoderSpec, input_size: int) -> None:
        super().__init__(encoder, input_size)
        self.norm_pre = nn.LayerNorm(encoder.width)
        for block in self.blocks:
            block.mlp = ClipMlp(encoder.width)
        for part in self.modules():
            if isinstance(part, nn.LayerNorm):
                part.eps = NORM_EPS

    def _with_cls(self, token_BND: Tensor) -> Tensor:
        token_BND = self.norm_pre(super()._with_cls(token_BND))
        return token_BND


class ClipMlp(Mlp):
    def forward(self, token_BND: Tensor) -> Tensor:
        hidden_BNM = self.fc1(token_BND)
        token_BND = self.fc2(hidden_BNM * torch.sigmoid(1.702 * hidden_BNM))
        return token_BND


def is_clip(state: Mapping[str, object]) -> bool:
    return f"{PREFIX}class_embedding" in state


def from_clip(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights of a ClipEncoder by our names. Raises KeyError for what the file lacks."""
    own = {name.removeprefix(PREFIX): value.float() for name, value in state.items() if name.startswith(PREFIX)}
    mean, std, imagenet_mean, imagenet_std = (
        torch.tensor(three).view(1, 3, 1, 1) for three in (MEAN, STD, IMAGENET_MEAN, IMAGENET_STD)
    )
    patch_D3PP = own["conv1.weight"] / std
    found = {
        "patch_embed.proj.weight": patch_D3PP * imagenet_std,
        "patch_embed.proj.bias": (patch_D3PP * (imagenet_mean - mean)).sum(dim=(1, 2, 3)),
        "cls_token": own["class_embedding"].view(1, 1, -1),
        "pos_embed": own["positional_embedding"][None],
        **{f"{ours}.{kind}": own[f"{theirs}.{kind}"] for ours, theirs in (("norm_pre", "ln_pre"), ("norm", "ln_post"))
           for kind in ("weight", "bias")},
    }  # fmt: skip
    depth = len({name.split(".")[2] for name in own if name.startswith("transformer.resblocks.")})
    for number in range(depth):
        ours, theirs = f"blocks.{number}.", f"transformer.resblocks.{number}."
        for kind in "weight", "bias":
            found[f"{ours}attn.qkv.{kind}"] = own[f"{theirs}attn.in_proj_{kind}"]
            found |= {f"{ours}{name}.{kind}": own[f"{theirs}{clip}.{kind}"] for name, clip in NAMES.items()}
    return found
