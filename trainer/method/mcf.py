"""Mask Contrastive Face: online encoder, decoder and heads, and the target that follows the encoder.

Letters: B batch, C channel, H W pixels, L patches, V visible patches, P tokens (1 + L), D width,
K values of a patch (patch * patch * 3), G images of a contrastive group, E length of a key, S slices of a pass,
N = S * B images of a pass.
"""

import copy
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import instance_norm

from trainer.contract import Contrastive, RunSpec
from trainer.method.draws import weights_generator
from trainer.method.losses import feature_loss, info_nce, patch_statistics, pixel_loss
from trainer.method.vit import LAYER_NORM_EPS, Block, Encoder, fixed, initialise, position_code, visible_first

Features = Callable[[Tensor], list[Tensor]]
"""A teacher as the method sees it: images [B, 3, H, W] -> what is compared, [B, P, D] of every tap."""


Compare = Callable[[list[Tensor], list[Tensor]], Tensor]
"""Features of the prediction and of the image, [S, B, P, D] of every tap -> the loss [S] of every slice."""


class Losses(NamedTuple):
    """Means over one slice, or over each of several [S]; unweighted but for `total`. Zero for what a run has not."""

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
        self.compare: Compare | None = None
        """In place of the published comparison, where user code says how (trainer.teachers.comparing)."""

    def forward(
        self, image_BCHW: Tensor, noise_BL: Tensor, keys_GE: Tensor | None, first_label: int, teacher: Features | None,
        wanted: list[Tensor] | None = None,
    ) -> Losses:  # fmt: skip
        """Losses of one slice of normalised images.

        `keys_GE`: keys of the whole contrastive group in slice order, None where contrastive.weight is 0;
        `first_label`: row of this slice's first image in it; `teacher`: None where the spec says `none`;
        `wanted`: teacher(image_BCHW) where it is known already.
        """
        keys_SGE = None if keys_GE is None else keys_GE.unsqueeze(0)
        label_S = torch.tensor([first_label], device=image_BCHW.device)
        losses = self.of_slices(image_BCHW, noise_BL, keys_SGE, label_S, teacher, wanted)
        return Losses(*(loss_S[0] for loss_S in losses))

    def of_slices(
        self, image_NCHW: Tensor, noise_NL: Tensor, keys_SGE: Tensor | None, label_S: Tensor, teacher: Features | None,
        wanted: list[Tensor] | None = None,
    ) -> Losses:  # fmt: skip
        """Losses [S] of slices that follow each other in the batch, each as `forward` has them.

        `keys_SGE`: of each slice the keys of its group; `label_S`: the row of its first image in them.
        """
        num_visible, count = self.run.visible_patches(), len(label_S)
        # Sorted once: both halves and the losses ask where patches are in the order of their noise.
        order_NL = visible_first(noise_NL)
        place_NL = order_NL.argsort(dim=1)
        token_NVD = self.encoder.visible(image_NCHW, order_NL[:, :num_visible])
        patch_NLK = self.decoder.in_place(token_NVD, place_NL)
        hidden_NL = place_NL >= num_visible
        losses: dict[str, Tensor] = {}
        if teacher is not None:
            losses["perceptual"] = self._perceptual(patch_NLK, image_NCHW, hidden_NL, teacher, wanted, count)
        if "pixel" in self.run.loss_weights:
            losses["pixel"] = self._pixel(patch_NLK, image_NCHW, hidden_NL, count)
        if keys_SGE is not None:
            losses["contrastive"] = self._contrastive(token_NVD[:, 0], keys_SGE, label_S)
        total = torch.stack([self.run.loss_weights[name] * loss for name, loss in losses.items()]).sum(dim=0)
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
        self, patch_NLK: Tensor, image_NCHW: Tensor, hidden_NL: Tensor, teacher: Features,
        wanted: list[Tensor] | None, count: int,
    ) -> Tensor:  # fmt: skip
        # Published: the teacher embeds the whole predicted image, visible patches included, none replaced.
        if self.run.teacher.visible == "image":
            own_NLK = patchify(image_NCHW, self.run.encoder.patch).to(patch_NLK.dtype)
            patch_NLK = torch.where(hidden_NL.unsqueeze(-1), patch_NLK, own_NLK)
        predicted = teacher(unpatchify(patch_NLK, self.run.encoder.patch))
        if wanted is None:
            with torch.no_grad():
                wanted = teacher(image_NCHW)
        found, known = ([_by_slice(tap, count) for tap in taps] for taps in (predicted, wanted))
        if self.compare is not None:
            return self.compare(found, known)
        return _of_each(lambda mine, theirs: feature_loss(mine, theirs, self.run.teacher.normalise), found, known)

    def _pixel(self, patch_NLK: Tensor, image_NCHW: Tensor, hidden_NL: Tensor, count: int) -> Tensor:
        counted_NL = hidden_NL if self.run.pixels.patches == "hidden" else torch.ones_like(hidden_NL)
        own_NLK = patchify(image_NCHW, self.run.encoder.patch)
        parts = (_by_slice(part, count) for part in (patch_NLK, own_NLK, counted_NL))
        return _of_each(lambda guess, own, counted: pixel_loss(guess, own, counted, self.run.pixels.normalise), *parts)

    def _contrastive(self, cls_ND: Tensor, keys_SGE: Tensor, label_S: Tensor) -> Tensor:
        first, second, temperature = self.projector, self.predictor, self.run.contrastive.temperature
        assert first is not None, "keys for a run without contrastive branch"
        assert second is not None
        query_SBE = _headed(lambda cls: second(first(cls)), cls_ND, len(label_S))
        return _of_each(lambda q, k, label: info_nce(q, k, label, temperature), query_SBE, keys_SGE, label_S)


class Pass(nn.Module):
    """The model called on several slices at once: what DDP wraps."""

    def __init__(self, model: Mcf) -> None:
        super().__init__()
        self.model = model

    def forward(
        self, image_NCHW: Tensor, noise_NL: Tensor, keys_SGE: Tensor | None, label_S: Tensor, teacher: Features | None,
        wanted: list[Tensor] | None,
    ) -> Losses:  # fmt: skip
        return self.model.of_slices(image_NCHW, noise_NL, keys_SGE, label_S, teacher, wanted)


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
        return self.in_place(token_BND, visible_first(noise_BL).argsort(dim=1))

    def in_place(self, token_BND: Tensor, place_BL: Tensor) -> Tensor:
        """The same, where `place_BL` says where each patch stands in the noise's order."""
        token_BND = self.embed(token_BND)
        batch, count = place_BL.shape
        hidden = self.mask_token.expand(batch, count + 1 - token_BND.shape[1], -1).to(token_BND.dtype)
        shuffled_BLD = torch.cat([token_BND[:, 1:], hidden], dim=1)
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
        self._pairs: tuple[list[Tensor], list[Tensor]] | None = None
        self.momentum = run.ema.momentum
        """Of one move; the loop sets it where the spec has it change with the step."""

    def advance_to_group(self, index: int, online: Mcf) -> None:
        """Move to where the target stands for the keys of group `index`; groups come in rising order."""
        self._move(index + 1 if self.run.ema.per == "group" else 1, online)

    def finish_step(self, online: Mcf) -> None:
        """Move to where every rank's target stands after the step. Before the optimizer moves `online`."""
        self._move(self.run.batch.num_groups if self.run.ema.per == "group" else 1, online)
        self._moves = 0

    def keys(self, image_BCHW: Tensor, noise_BL: Tensor) -> Tensor:
        """Keys [B, E] of one slice of normalised images, not yet scaled to length 1."""
        return self.of_slices(image_BCHW, noise_BL, 1)[0]

    @torch.no_grad()
    def of_slices(self, image_NCHW: Tensor, noise_NL: Tensor, count: int) -> Tensor:
        """Keys [S, B, E] of `count` slices that follow each other in the batch, each as `keys` has them."""
        num_visible = self.run.visible_patches(self.run.contrastive.target_mask_ratio)
        token_NVD = self.encoder(image_NCHW, noise_NL, num_visible)
        return _headed(self.projector, token_NVD[:, 0], count)

    @torch.no_grad()
    def _move(self, moves: int, online: Mcf) -> None:
        weight = 1 - self.momentum ** (moves - self._moves)
        # Once a run: its networks stay the objects that they are.
        if self._pairs is None or self._pairs[1][0] is not next(online.parameters()):
            theirs = dict(online.named_parameters())
            mine = dict(self.named_parameters())
            self._pairs = list(mine.values()), [theirs[name] for name in mine]
        torch._foreach_lerp_(*self._pairs, weight)
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


def batch_norm(width: int, affine: bool = True) -> "SliceNorm":
    # Running statistics would be used by nothing, and differ between ranks.
    return SliceNorm(width, affine=affine, track_running_stats=False)


class SliceNorm(nn.BatchNorm1d):
    """BatchNorm of one slice [B, D], or of each of several by itself [S, B, D]."""

    def forward(self, x: Tensor) -> Tensor:
        if x.dim() == 2:
            return super().forward(x)
        # A slice's images are to it what an image's pixels are to InstanceNorm.
        return instance_norm(x.mT, weight=self.weight, bias=self.bias, eps=self.eps).mT


def _headed(heads: Callable[[Tensor], Tensor], cls_ND: Tensor, count: int) -> Tensor:
    """What heads make of the cls tokens of `count` slices: [S, B, E]."""
    if count == 1:
        return heads(cls_ND).unsqueeze(0)
    return heads(_by_slice(cls_ND, count))


def _by_slice(x: Tensor, count: int) -> Tensor:
    """[S * B, ...] -> [S, B, ...]."""
    return x.unflatten(0, (count, -1))


def patchify(image_BCHW: Tensor, patch: int) -> Tensor:
    """Patches [B, L, K] of an image; values of a patch in the order row, column, colour."""
    batch, channels, height, width = image_BCHW.shape
    rows, columns = height // patch, width // patch
    grid = image_BCHW.view(batch, channels, rows, patch, columns, patch)
    return grid.permute(0, 2, 4, 3, 5, 1).reshape(batch, rows * columns, patch * patch * channels)


def unpatchify(patch_BLK: Tensor, patch: int) -> Tensor:
    """The square image [B, 3, H, W] of its patches; inverse of patchify."""
    batch, count, _ = patch_BLK.shape
    side = round(count**0.5)
    grid = patch_BLK.reshape(batch, side, side, patch, patch, 3)
    return grid.permute(0, 5, 1, 3, 2, 4).reshape(batch, 3, side * patch, side * patch)


def _of_each(loss: Callable[..., Tensor], *parts: Any) -> Tensor:
    """The loss [S] of every slice; `parts`: tensors, or lists of tensors, [S, ...]."""
    [count] = {len(part[0] if isinstance(part, list) else part) for part in parts}
    if count == 1:
        return loss(*([tap[0] for tap in part] if isinstance(part, list) else part[0] for part in parts)).unsqueeze(0)
    found: Tensor = torch.vmap(loss)(*parts)
    return found
