"""Mask Contrastive Face: online encoder, decoder and heads, and the target that follows the encoder.

Letters: B batch, C channel, H W pixels, L patches, V visible patches, P tokens (1 + L), D width,
K values of a patch (patch * patch * 3), G images of a contrastive group, E length of a key.
"""

import copy
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from trainer.contract import Contrastive, RunSpec
from trainer.method.draws import weights_generator
from trainer.method.losses import feature_loss, info_nce, patch_statistics, pixel_loss
from trainer.method.vit import LAYER_NORM_EPS, Block, Encoder, fixed, initialise, position_code, visible_first

Features = Callable[[Tensor], list[Tensor]]
"""A teacher as the method sees it: images [B, 3, H, W] -> what is compared, [B, P, D] of every tap."""


class Losses(NamedTuple):
    """Means over one slice, unweighted but for `total`; zero for what the run does not have."""

    perceptual: Tensor
    pixel: Tensor
    contrastive: Tensor
    total: Tensor


def build(run: RunSpec) -> "Mcf":
    """The model with its initial weights, drawn from the spec's seed alone: the same on every rank.

    Every part draws from its own generator, so arms that differ in the decoder start from the same encoder.
    """
    with torch.random.fork_rng(devices=[]):  # torch's default weights are replaced; the caller's generator stays put
        model = Mcf(run)
    for number, name in enumerate(("encoder", "projector", "predictor", "decoder")):
        if (part := getattr(model, name)) is not None:
            initialise(part, weights_generator(run.seed, number))
    return model.double() if run.precision == "float64" else model


class Mcf(nn.Module):
    """What gradients train. Call it on one slice for the losses; BatchNorm takes its statistics over that slice."""

    def __init__(self, run: RunSpec) -> None:
        super().__init__()
        self.run = run
        self.encoder = Encoder(run.encoder, run.input_size)
        self.decoder = Decoder(run)
        # Parts that a run does not train do not exist: DDP waits for the gradient of every parameter.
        contrasts = run.contrastive.weight > 0
        self.projector = projector(run.encoder.width, run.contrastive) if contrasts else None
        self.predictor = predictor(run.contrastive) if contrasts else None

    def forward(
        self, image_BCHW: Tensor, noise_BL: Tensor, keys_GE: Tensor | None, first_label: int, teacher: Features | None,
        wanted: list[Tensor] | None = None,
    ) -> Losses:  # fmt: skip
        """Losses of one slice of normalised images.

        `keys_GE`: keys of the whole contrastive group in slice order, None where contrastive.weight is 0;
        `first_label`: row of this slice's first image in it; `teacher`: None where the spec says `none`;
        `wanted`: teacher(image_BCHW) where it is known already.
        """
        token_BND = self.encoder(image_BCHW, noise_BL, self.run.visible_patches())
        patch_BLK = self.decoder(token_BND, noise_BL)
        losses: dict[str, Tensor] = {}
        if teacher is not None:
            losses["perceptual"] = self._perceptual(patch_BLK, image_BCHW, noise_BL, teacher, wanted)
        if "pixel" in self.run.loss_weights:
            losses["pixel"] = self._pixel(patch_BLK, image_BCHW, noise_BL)
        if keys_GE is not None:
            losses["contrastive"] = self._contrastive(token_BND[:, 0], keys_GE, first_label)
        total = torch.stack([self.run.loss_weights[name] * loss for name, loss in losses.items()]).sum()
        absent = torch.zeros_like(total)
        perceptual, pixel, contrastive = (losses.get(n, absent) for n in ("perceptual", "pixel", "contrastive"))
        return Losses(perceptual, pixel, contrastive, total)

    def reconstruct(self, image_BCHW: Tensor, noise_BL: Tensor, num_visible: int) -> Tensor:
        """The predicted image [B, 3, H, W], ImageNet-normalised, whatever the run trains on."""
        patch_BLK = self.decoder(self.encoder(image_BCHW, noise_BL, num_visible), noise_BL)
        if "pixel" in self.run.loss_weights and self.run.pixels.normalise == "patch":
            mean, deviation = patch_statistics(patchify(image_BCHW, self.run.encoder.patch))
            patch_BLK = patch_BLK * deviation + mean
        return unpatchify(patch_BLK, self.run.encoder.patch)

    def _perceptual(
        self, patch_BLK: Tensor, image_BCHW: Tensor, noise_BL: Tensor, teacher: Features, wanted: list[Tensor] | None
    ) -> Tensor:
        # Published: the teacher embeds the whole predicted image, visible patches included, none replaced.
        if self.run.teacher.visible == "image":
            own_BLK = patchify(image_BCHW, self.run.encoder.patch).to(patch_BLK.dtype)
            patch_BLK = torch.where(self._hidden(noise_BL).unsqueeze(-1), patch_BLK, own_BLK)
        predicted = teacher(unpatchify(patch_BLK, self.run.encoder.patch))
        if wanted is None:
            with torch.no_grad():
                wanted = teacher(image_BCHW)
        return feature_loss(predicted, wanted, self.run.teacher.normalise)

    def _pixel(self, patch_BLK: Tensor, image_BCHW: Tensor, noise_BL: Tensor) -> Tensor:
        hidden_BL = self._hidden(noise_BL)
        counted_BL = hidden_BL if self.run.pixels.patches == "hidden" else torch.ones_like(hidden_BL)
        own_BLK = patchify(image_BCHW, self.run.encoder.patch)
        return pixel_loss(patch_BLK, own_BLK, counted_BL, self.run.pixels.normalise)

    def _contrastive(self, cls_BD: Tensor, keys_GE: Tensor, first_label: int) -> Tensor:
        assert self.projector, "keys for a run without contrastive branch"
        assert self.predictor
        query_BE = self.predictor(self.projector(cls_BD))
        return info_nce(query_BE, keys_GE, first_label, self.run.contrastive.temperature)

    def _hidden(self, noise_BL: Tensor) -> Tensor:
        """Which patches [B, L] the encoder does not see."""
        return visible_first(noise_BL).argsort(dim=1) >= self.run.visible_patches()


class Decoder(nn.Module):
    """The learnable half M0: visible tokens -> pixels of every patch."""

    def __init__(self, run: RunSpec) -> None:
        super().__init__()
        width, patch = run.decoder.width, run.encoder.patch
        self.embed = nn.Linear(run.encoder.width, width)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = fixed(position_code(width, run.input_size // patch))
        self.blocks = nn.ModuleList(Block(width, run.decoder.heads) for _ in range(run.decoder.depth))
        self.norm = nn.LayerNorm(width, eps=LAYER_NORM_EPS)
        self.predict = nn.Linear(width, 3 * patch * patch)

    def forward(self, token_BND: Tensor, noise_BL: Tensor) -> Tensor:
        """Patches [B, L, K] from cls and visible tokens [B, 1 + V, D], which are in the noise's order."""
        token_BND = self.embed(token_BND)
        batch, count = noise_BL.shape
        hidden = self.mask_token.expand(batch, count + 1 - token_BND.shape[1], -1).to(token_BND.dtype)
        shuffled_BLD = torch.cat([token_BND[:, 1:], hidden], dim=1)
        place_BL = visible_first(noise_BL).argsort(dim=1)
        token_BLD = shuffled_BLD.gather(1, place_BL.unsqueeze(-1).expand(-1, -1, shuffled_BLD.shape[-1]))
        token_BPD = torch.cat([token_BND[:, :1], token_BLD], dim=1) + self.pos_embed
        for block in self.blocks:
            token_BPD = block(token_BPD)
        return self.predict(self.norm(token_BPD))[:, 1:]


class Target(nn.Module):
    """The encoder's and projector's moving average, which makes the keys. Never sees a gradient.

    Where it stands is a function of the group's index in the step, whoever computes that group: before
    group g it has moved g + 1 times, and after the step as often as there are groups (docs/method.md, "One step").
    """

    def __init__(self, run: RunSpec, online: Mcf) -> None:
        super().__init__()
        self.run = run
        assert online.projector is not None, "a run without contrastive branch has no target"
        self.encoder = copy.deepcopy(online.encoder).requires_grad_(False)
        self.projector = copy.deepcopy(online.projector).requires_grad_(False)
        self._moves = 0
        self.momentum = run.ema.momentum
        """Of one move; the loop sets it where the spec has it change with the step."""

    def advance_to_group(self, index: int, online: Mcf) -> None:
        """Move to where the target stands for the keys of group `index`; groups come in rising order."""
        self._move(index + 1 if self.run.ema.per == "group" else 1, online)

    def finish_step(self, online: Mcf) -> None:
        """Move to where every rank's target stands after the step. Before the optimizer moves `online`."""
        self._move(self.run.batch.num_groups if self.run.ema.per == "group" else 1, online)
        self._moves = 0

    @torch.no_grad()
    def keys(self, image_BCHW: Tensor, noise_BL: Tensor) -> Tensor:
        """Keys [B, E] of one slice of normalised images, not yet scaled to length 1."""
        num_visible = self.run.visible_patches(self.run.contrastive.target_mask_ratio)
        return self.projector(self.encoder(image_BCHW, noise_BL, num_visible)[:, 0])

    @torch.no_grad()
    def _move(self, moves: int, online: Mcf) -> None:
        weight = 1 - self.momentum ** (moves - self._moves)
        online_weights = dict(online.named_parameters())
        mine = dict(self.named_parameters())
        torch._foreach_lerp_(list(mine.values()), [online_weights[name] for name in mine], weight)
        self._moves = moves


def projector(width: int, contrastive: Contrastive) -> nn.Sequential:
    """cls -> key space. Its last BatchNorm has no scale of its own."""
    return nn.Sequential(
        nn.Linear(width, contrastive.hidden, bias=False),
        batch_norm(contrastive.hidden),
        nn.ReLU(inplace=True),
        nn.Linear(contrastive.hidden, contrastive.dim, bias=False),
        batch_norm(contrastive.dim, affine=False),
    )


def predictor(contrastive: Contrastive) -> nn.Sequential:
    """Key space -> query. Online only, and without a last BatchNorm."""
    return nn.Sequential(
        nn.Linear(contrastive.dim, contrastive.hidden, bias=False),
        batch_norm(contrastive.hidden),
        nn.ReLU(inplace=True),
        nn.Linear(contrastive.hidden, contrastive.dim, bias=False),
    )


def batch_norm(width: int, affine: bool = True) -> nn.BatchNorm1d:
    # Running statistics would be used by nothing, and differ between ranks.
    return nn.BatchNorm1d(width, affine=affine, track_running_stats=False)


def patchify(image_BCHW: Tensor, patch: int) -> Tensor:
    """Patches [B, L, K] of an image; values of a patch in the order row, column, colour."""
    batch, channels, height, width = image_BCHW.shape
    grid = image_BCHW.view(batch, channels, height // patch, patch, width // patch, patch)
    return grid.permute(0, 2, 4, 3, 5, 1).reshape(batch, -1, patch * patch * channels)


def unpatchify(patch_BLK: Tensor, patch: int) -> Tensor:
    """The square image [B, 3, H, W] of its patches; inverse of patchify."""
    batch, count, _ = patch_BLK.shape
    side = round(count**0.5)
    grid = patch_BLK.reshape(batch, side, side, patch, patch, 3)
    return grid.permute(0, 5, 1, 3, 2, 4).reshape(batch, 3, side * patch, side * patch)
