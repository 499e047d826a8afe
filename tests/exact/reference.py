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
# ImageNet's, which images are normalised with.
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


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
    teacher_sizes: tuple[int, int, int, int] | None = None
    """The teacher's patch, width, depth and heads; None = the encoder's, as in the published B/16."""
    teacher_mean: tuple[float, ...] = MEAN
    teacher_std: tuple[float, ...] = STD

    mask_ratio: float = 0.75
    target_mask_ratio: float | None = None
    """Of the target; None = the same."""
    temperature: float = 0.2
    momentum: float = 0.99
    weight: float = 1000.0
    """Of the perceptual loss."""
    contrast: float = 1.0
    """Weight of the contrastive loss."""
    pixels: float = 0.0
    """Weight of the squared error of hidden pixels."""
    along: int = 1
    """Axis over which features are normalised: 1 tokens (published), 2 channels."""
    hidden_only: bool = False
    """Whether the teacher sees the image's own pixels where patches were visible."""
    clip: float | None = None
    """Longest gradient."""
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


def encode(s: State, name: str, image: Tensor, noise: Tensor, ratio: float, shape: Shape) -> Tensor:
    """Latent tokens [N, 1 + kept, D], cls first."""
    x = embed(s, name, image) + s[f"{name}.pos_embed"][:, 1:]
    order, _ = restored(noise)
    kept = order[:, : int(noise.shape[1] * (1 - ratio))]
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
    image = image[:, :, nearest][:, :, :, nearest]
    colours = [(image[:, c] * STD[c] + MEAN[c] - shape.teacher_mean[c]) / shape.teacher_std[c] for c in range(3)]
    x = embed(s, name, torch.stack(colours, dim=1))
    x = torch.cat([s[f"{name}.cls_token"].expand(len(x), -1, -1), x], dim=1) + s[f"{name}.pos_embed"]
    heads = shape.teacher_sizes[3] if shape.teacher_sizes else shape.heads
    taps = []
    for index in range(max(shape.taps) + 1):
        x = block(s, f"{name}.blocks.{index}", x, heads)
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


def hidden_pixels(noise: Tensor, shape: Shape) -> Tensor:
    """1 where a pixel's patch is hidden from the online encoder, else 0: [N, 1, H, W]."""
    _, place = restored(noise)
    side = shape.image // shape.patch
    hidden = (place >= int(noise.shape[1] * (1 - shape.mask_ratio))).double().reshape(-1, 1, side, side)
    return hidden.repeat_interleave(shape.patch, 2).repeat_interleave(shape.patch, 3)


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
    sums = {"total": 0.0, "perceptual": 0.0, "pixel": 0.0, "contrastive": 0.0}
    theirs = shape.mask_ratio if shape.target_mask_ratio is None else shape.target_mask_ratio
    for number, ranks in enumerate(grid):
        if not (shape.once_a_step and number):
            move_target(s, shape.momentum)
        with torch.no_grad():
            latents = [encode(s, "target_encoder", m.image, m.target_noise, theirs, shape) for m in ranks]
            keys = torch.cat([project(s, "target_encoder.fc", latent[:, 0], True) for latent in latents])
        for rank, micro in enumerate(ranks):
            latent = encode(s, "online_encoder", micro.image, micro.online_noise, shape.mask_ratio, shape)
            predicted = decode(s, latent, micro.online_noise, shape)
            hidden = hidden_pixels(micro.online_noise, shape)
            query = project(s, "predictor", project(s, "online_encoder.fc", latent[:, 0], True), False)
            c = contrastive(query, keys, rank, shape.temperature)
            e = ((predicted - micro.image) ** 2 * hidden).sum() / (3 * hidden.sum())
            seen = predicted * hidden + micro.image * (1 - hidden) if shape.hidden_only else predicted
            p = perceptual(s, seen, micro.image, shape)
            loss = shape.weight * p + shape.pixels * e + shape.contrast * c
            share = 1 / (len(grid) * len(ranks))
            for name, gradient in zip(names, torch.autograd.grad(loss, [s[n] for n in names]), strict=True):
                total[name] += gradient * share
            for name, value in ("total", loss), ("perceptual", p), ("pixel", e), ("contrastive", c):
                sums[name] += value.item() * share if name != "pixel" or shape.pixels else 0.0
    return sums, total


def clipped(gradient: dict[str, Tensor], shape: Shape) -> dict[str, Tensor]:
    norm = math.sqrt(sum(g.square().sum().item() for g in gradient.values()))
    # torch has 1e-6 in the denominator, and this is for those who compare with it.
    factor = min(1.0, shape.clip / (norm + 1e-6)) if shape.clip else 1.0
    return {name: g * factor for name, g in gradient.items()}


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


def wide(s: State) -> State:
    return {name: value.double() if value.is_floating_point() else value for name, value in s.items()}
