"""Checkpoints as the released code leaves them, with every weight drawn: something to start from and to compare."""

import math

import torch

from tests.exact.reference import Shape, State, sin_cos


def draw_checkpoint(shape: Shape, seed: int) -> State:
    """A released checkpoint's `model`, float32: every weight random, none at its initial value, target != online."""
    generator = torch.Generator().manual_seed(seed)
    s: State = {}

    def normal(name: str, *size: int, mean: float = 0.0, std: float | None = None) -> None:
        std = std or 1 / math.sqrt(size[-1])
        s[name] = mean + std * torch.randn(*size, generator=generator)

    def affine(name: str, width: int) -> None:
        normal(f"{name}.weight", width, mean=1, std=0.1)
        normal(f"{name}.bias", width, std=0.1)

    def dense(name: str, into: int, out: int) -> None:
        normal(f"{name}.weight", out, into)
        normal(f"{name}.bias", out, std=0.1)

    def blocks(name: str, depth: int, width: int) -> None:
        for index in range(depth):
            affine(f"{name}.{index}.norm1", width)
            dense(f"{name}.{index}.attn.qkv", width, 3 * width)
            dense(f"{name}.{index}.attn.proj", width, width)
            affine(f"{name}.{index}.norm2", width)
            dense(f"{name}.{index}.mlp.fc1", width, 4 * width)
            dense(f"{name}.{index}.mlp.fc2", 4 * width, width)

    def vit(name: str, image: int, patch: int, width: int, depth: int) -> None:
        normal(f"{name}.cls_token", 1, 1, width, std=0.5)
        s[f"{name}.pos_embed"] = sin_cos(width, image // patch)
        normal(f"{name}.patch_embed.proj.weight", width, 3, patch, patch, std=1 / patch)
        normal(f"{name}.patch_embed.proj.bias", width, std=0.1)
        blocks(f"{name}.blocks", depth, width)
        affine(f"{name}.norm", width)

    def statistics(name: str, width: int) -> None:
        normal(f"{name}.running_mean", width, std=0.3)
        s[f"{name}.running_var"] = torch.rand(width, generator=generator) + 0.5
        s[f"{name}.num_batches_tracked"] = torch.tensor(17)

    def head(name: str, into: int, last_norm: bool) -> None:
        normal(f"{name}.0.weight", shape.hidden, into)
        affine(f"{name}.1", shape.hidden)
        statistics(f"{name}.1", shape.hidden)
        normal(f"{name}.3.weight", shape.dim, shape.hidden)
        if last_norm:
            statistics(f"{name}.4", shape.dim)

    sizes = shape.patch, shape.width, shape.depth
    teacher = shape.teacher_sizes[:3] if shape.teacher_sizes else sizes
    for branch in "target_encoder", "online_encoder":
        vit(branch, shape.image, *sizes)
        head(f"{branch}.fc", shape.width, True)
    head("predictor", shape.dim, False)
    dense("decoder_embed", shape.width, shape.decoder_width)
    normal("mask_token", 1, 1, shape.decoder_width, std=0.5)
    s["decoder_pos_embed"] = sin_cos(shape.decoder_width, shape.image // shape.patch)
    blocks("decoder_blocks", shape.decoder_depth, shape.decoder_width)
    affine("decoder_norm", shape.decoder_width)
    dense("decoder_pred", shape.decoder_width, 3 * shape.patch**2)
    vit("perceptual_loss.model", shape.teacher_image, *teacher)
    # A teacher's own code is learned, not sin-cos.
    code = s["perceptual_loss.model.pos_embed"]
    code += 0.2 * torch.randn(code.shape, generator=generator)
    dense("perceptual_loss.model.head", teacher[1], 1000)
    return s
