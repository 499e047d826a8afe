"""The published method once more, from its description alone (method.md part 1): no line of it is the trainer's.

Float64, in the names of the released checkpoints, as functions of a state dict. Written for being checked by eye,
not for speed: attention, norms, AdamW and the schedule are spelled out, and ranks are taken one after the other.
Letters: N images of one rank's micro-batch, L patches, T tokens, D width.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import conv2d

State = dict[str, Tensor]


@dataclass(frozen=True)
class Shape:
    """What the state dict does not say, and what is needed to draw one."""

    image: int
    patch: int
    width: int
    depth: int
    heads: int
    decoder_width: int
    decoder_depth: int
    decoder_heads: int
    hidden: int
    dim: int
    teacher_image: int
    taps: tuple[int, ...]
    """The teacher has the encoder's patch, width, depth and heads, as in the published B/16."""

    mask_ratio: float = 0.75
    temperature: float = 0.2
    momentum: float = 0.99
    weight: float = 1000.0
    along: int = 1
    """Axis over which features are normalised: 1 tokens (published), 2 channels."""
    once_a_step: bool = False
    """Whether the target moves in the first micro-step alone."""
    ramp: bool = False
    """Whether the momentum rises to 1 over the run by half a cosine, as the released code defines and never does."""


# ---------------------------------------------------------------- the networks


def sin_cos(width: int, side: int) -> Tensor:
    """Position code [1, 1 + side^2, width]: the column in the first half, the row in the second."""
    table = [[0.0] * width]
    for row in range(side):
        for column in range(side):
            entry = []
            for place in column, row:
                angles = [place * 10000.0 ** (-i / (width / 4)) for i in range(width // 4)]
                entry += [math.sin(a) for a in angles] + [math.cos(a) for a in angles]
            table.append(entry)
    return torch.tensor(table, dtype=torch.float64).float().unsqueeze(0)


def linear(s: State, name: str, x: Tensor) -> Tensor:
    y = x @ s[f"{name}.weight"].T
    return y + s[f"{name}.bias"] if f"{name}.bias" in s else y


def layer_norm(s: State, name: str, x: Tensor) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    return centred / (centred.square().mean(-1, keepdim=True) + 1e-6).sqrt() * s[f"{name}.weight"] + s[f"{name}.bias"]


def attention(s: State, name: str, x: Tensor, heads: int) -> Tensor:
    width = x.shape[-1] // heads
    q, k, v = linear(s, f"{name}.qkv", x).chunk(3, dim=-1)
    mixed = []
    for head in range(heads):
        own = slice(head * width, (head + 1) * width)
        scores = q[..., own] @ k[..., own].transpose(1, 2) / math.sqrt(width)
        mixed.append(scores.softmax(-1) @ v[..., own])
    return linear(s, f"{name}.proj", torch.cat(mixed, dim=-1))


def block(s: State, name: str, x: Tensor, heads: int) -> Tensor:
    x = x + attention(s, f"{name}.attn", layer_norm(s, f"{name}.norm1", x), heads)
    y = linear(s, f"{name}.mlp.fc1", layer_norm(s, f"{name}.norm2", x))
    y = y * 0.5 * (1 + torch.erf(y / math.sqrt(2)))
    return x + linear(s, f"{name}.mlp.fc2", y)


def embed(s: State, name: str, image: Tensor) -> Tensor:
    """Patches [N, L, D] of an image, row by row."""
    weight = s[f"{name}.patch_embed.proj.weight"]
    return conv2d(image, weight, s[f"{name}.patch_embed.proj.bias"], stride=weight.shape[-1]).flatten(2).transpose(1, 2)


def restored(noise: Tensor) -> tuple[Tensor, Tensor]:
    """Patches by rising noise, and where each patch went."""
    order = noise.argsort(dim=1)
    return order, order.argsort(dim=1)


def encode(s: State, name: str, image: Tensor, noise: Tensor, shape: Shape) -> Tensor:
    """Latent tokens [N, 1 + kept, D], cls first."""
    x = embed(s, name, image) + s[f"{name}.pos_embed"][:, 1:]
    order, _ = restored(noise)
    kept = order[:, : int(noise.shape[1] * (1 - shape.mask_ratio))]
    x = torch.stack([tokens[index] for tokens, index in zip(x, kept, strict=True)])
    cls = s[f"{name}.cls_token"] + s[f"{name}.pos_embed"][:, :1]
    x = torch.cat([cls.expand(len(x), -1, -1), x], dim=1)
    for index in range(shape.depth):
        x = block(s, f"{name}.blocks.{index}", x, shape.heads)
    return layer_norm(s, f"{name}.norm", x)


def decode(s: State, latent: Tensor, noise: Tensor, shape: Shape) -> Tensor:
    """The predicted image [N, 3, H, W], every patch of it."""
    _, place = restored(noise)
    x = linear(s, "decoder_embed", latent)
    missing = s["mask_token"].expand(len(x), noise.shape[1] + 1 - x.shape[1], -1)
    shuffled = torch.cat([x[:, 1:], missing], dim=1)
    in_order = torch.stack([tokens[index] for tokens, index in zip(shuffled, place, strict=True)])
    x = torch.cat([x[:, :1], in_order], dim=1) + s["decoder_pos_embed"]
    for index in range(shape.decoder_depth):
        x = block(s, f"decoder_blocks.{index}", x, shape.decoder_heads)
    pixels = linear(s, "decoder_pred", layer_norm(s, "decoder_norm", x))[:, 1:]
    side, p = shape.image // shape.patch, shape.patch
    rows = []
    for row in range(side):
        patches = [pixels[:, row * side + column].reshape(-1, p, p, 3) for column in range(side)]
        rows.append(torch.cat(patches, dim=2))
    return torch.cat(rows, dim=1).permute(0, 3, 1, 2)


def batch_norm(s: State, name: str, x: Tensor) -> Tensor:
    y = (x - x.mean(0)) / (x.var(0, correction=0) + 1e-5).sqrt()
    return y * s[f"{name}.weight"] + s[f"{name}.bias"] if f"{name}.weight" in s else y


def project(s: State, name: str, x: Tensor, last_norm: bool) -> Tensor:
    x = linear(s, f"{name}.3", batch_norm(s, f"{name}.1", linear(s, f"{name}.0", x)).clamp(min=0))
    return batch_norm(s, f"{name}.4", x) if last_norm else x


def teacher_features(s: State, image: Tensor, shape: Shape) -> list[Tensor]:
    """Taps [N, 1 + L, D], each scaled to length 1."""
    name, size = "perceptual_loss.model", shape.teacher_image
    nearest = torch.tensor([math.floor(i * image.shape[-1] / size) for i in range(size)])
    x = embed(s, name, image[:, :, nearest][:, :, :, nearest])
    x = torch.cat([s[f"{name}.cls_token"].expand(len(x), -1, -1), x], dim=1) + s[f"{name}.pos_embed"]
    taps = []
    for index in range(max(shape.taps) + 1):
        x = block(s, f"{name}.blocks.{index}", x, shape.heads)
        if index in shape.taps:
            taps.append(unit(x, shape.along))
    return taps


def unit(x: Tensor, axis: int) -> Tensor:
    return x / x.square().sum(axis, keepdim=True).sqrt().clamp(min=1e-12)


# ---------------------------------------------------------------- losses


def perceptual(s: State, predicted: Tensor, image: Tensor, shape: Shape) -> Tensor:
    wanted = [tap.detach() for tap in teacher_features(s, image, shape)]
    return sum(
        ((tap - other) ** 2).mean() for tap, other in zip(teacher_features(s, predicted, shape), wanted, strict=True)
    )


def contrastive(query: Tensor, keys: Tensor, rank: int, temperature: float) -> Tensor:
    logits = unit(query, 1) @ unit(keys, 1).T / temperature
    labels = torch.arange(len(query)) + len(query) * rank
    chosen = logits[torch.arange(len(query)), labels]
    return 2 * temperature * (logits.exp().sum(1).log() - chosen).mean()


# ---------------------------------------------------------------- one optimizer step


@dataclass
class Micro:
    """What one rank sees in one micro-step."""

    image: Tensor
    online_noise: Tensor
    target_noise: Tensor


def trained(s: State) -> list[str]:
    """Names of what the optimizer holds."""
    frozen = ("target_encoder.", "perceptual_loss.")
    return [
        name for name in s
        if not name.startswith(frozen) and "pos_embed" not in name and "running_" not in name and "num_b" not in name
    ]  # fmt: skip


def move_target(s: State, momentum: float) -> None:
    for name in s:
        if name.startswith("target_encoder.") and "running_" not in name and "num_b" not in name:
            online = s[name.replace("target_encoder.", "online_encoder.")]
            s[name] = momentum * s[name] + (1 - momentum) * online.detach()


def gradients(s: State, grid: list[list[Micro]], shape: Shape) -> tuple[dict[str, float], dict[str, Tensor]]:
    """Mean losses and averaged gradients of a step; `grid[micro-step][rank]`. Moves the target in `s` as it goes."""
    names = trained(s)
    for name in names:
        s[name] = s[name].detach().requires_grad_()
    total = {name: torch.zeros_like(s[name]) for name in names}
    sums = {"total": 0.0, "perceptual": 0.0, "contrastive": 0.0}
    for number, ranks in enumerate(grid):
        if not (shape.once_a_step and number):
            move_target(s, shape.momentum)
        with torch.no_grad():
            keys = torch.cat([
                project(s, "target_encoder.fc", encode(s, "target_encoder", m.image, m.target_noise, shape)[:, 0], True)
                for m in ranks
            ])  # fmt: skip
        for rank, micro in enumerate(ranks):
            latent = encode(s, "online_encoder", micro.image, micro.online_noise, shape)
            predicted = decode(s, latent, micro.online_noise, shape)
            query = project(s, "predictor", project(s, "online_encoder.fc", latent[:, 0], True), False)
            c = contrastive(query, keys, rank, shape.temperature)
            p = perceptual(s, predicted, micro.image, shape)
            loss = shape.weight * p + c
            share = 1 / (len(grid) * len(ranks))
            for name, gradient in zip(names, torch.autograd.grad(loss, [s[n] for n in names]), strict=True):
                total[name] += gradient * share
            for name, value in ("total", loss), ("perceptual", p), ("contrastive", c):
                sums[name] += value.item() * share
    return sums, total


def learning_rate(step: int, steps_per_epoch: float, *, base: float, batch: int, epochs: float, warm: float) -> float:
    """Rate of the optimizer step `step`, from 0; min_lr is 0."""
    peak, epoch = base * batch / 256, step / steps_per_epoch
    if epoch < warm:
        return peak * epoch / warm
    return peak * 0.5 * (1 + math.cos(math.pi * (epoch - warm) / (epochs - warm)))


class AdamW:
    """Decoupled weight decay 0.05 on what has more than one axis, betas 0.9 and 0.95, eps 1e-8."""

    def __init__(self) -> None:
        self.first: State = {}
        self.second: State = {}
        self.steps = 0

    def step(self, s: State, gradient: dict[str, Tensor], rate: float) -> None:
        self.steps += 1
        for name, g in gradient.items():
            m = self.first[name] = 0.9 * self.first.get(name, torch.zeros_like(g)) + 0.1 * g
            v = self.second[name] = 0.95 * self.second.get(name, torch.zeros_like(g)) + 0.05 * g * g
            decay = 0.05 if g.ndim > 1 and not name.endswith(".bias") else 0.0
            value = s[name].detach() * (1 - rate * decay)
            m_hat, v_hat = m / (1 - 0.9**self.steps), v / (1 - 0.95**self.steps)
            s[name] = value - rate * m_hat / (v_hat.sqrt() + 1e-8)


# ---------------------------------------------------------------- a checkpoint to start from


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

    def vit(name: str, image: int) -> None:
        normal(f"{name}.cls_token", 1, 1, shape.width, std=0.5)
        s[f"{name}.pos_embed"] = sin_cos(shape.width, image // shape.patch)
        normal(f"{name}.patch_embed.proj.weight", shape.width, 3, shape.patch, shape.patch, std=1 / shape.patch)
        normal(f"{name}.patch_embed.proj.bias", shape.width, std=0.1)
        blocks(f"{name}.blocks", shape.depth, shape.width)
        affine(f"{name}.norm", shape.width)

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

    for branch in "target_encoder", "online_encoder":
        vit(branch, shape.image)
        head(f"{branch}.fc", shape.width, True)
    head("predictor", shape.dim, False)
    dense("decoder_embed", shape.width, shape.decoder_width)
    normal("mask_token", 1, 1, shape.decoder_width, std=0.5)
    s["decoder_pos_embed"] = sin_cos(shape.decoder_width, shape.image // shape.patch)
    blocks("decoder_blocks", shape.decoder_depth, shape.decoder_width)
    affine("decoder_norm", shape.decoder_width)
    dense("decoder_pred", shape.decoder_width, 3 * shape.patch**2)
    vit("perceptual_loss.model", shape.teacher_image)
    # A teacher's own code is learned, not sin-cos.
    code = s["perceptual_loss.model.pos_embed"]
    code += 0.2 * torch.randn(code.shape, generator=generator)
    dense("perceptual_loss.model.head", shape.width, 1000)
    return s


def wide(s: State) -> State:
    return {name: value.double() if value.is_floating_point() else value for name, value in s.items()}
