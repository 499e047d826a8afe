"""Two numbers on images held out from every arm's subset. They show that training works, and rank only when asked to.

Reconstruction says how well hidden patches are guessed; an arm with a teacher is trained on the teacher's
features and not on pixels. View retrieval says whether one masked view of a face finds the other view of the
same face among all held-out faces. It compares cls features of the online encoder, because those are what the
export delivers and every arm has them, also one without contrastive branch; the projector's output would depend
on which images share a batch (BatchNorm). Chance is 100 / number of held-out images, but an untrained encoder is
above it already: views overlap, and colours tell faces apart. Measured on 50 faces of 64 pixels: untrained 40 %,
after 300 steps 64 % (random teacher) and 82 % (pixels); the projector's output shows the same (44, 60, 74 %).
"""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from trainer.contract import RunSpec
from trainer.contract.ranking import FLOORS_OF, PSNR, RETRIEVAL
from trainer.contract.records import Metric
from trainer.evaluation.team import Dealt
from trainer.method.draws import Drawn, View, mask_noise
from trainer.method.mcf import Mcf
from trainer.method.vit import Encoder
from trainer.tracking.pictures import denormalise, hidden_pixels, hide

# Not a run's seed: every arm and every seed sees the same masks.
NOISE_SEED = 20_240_117

Features = Callable[[Tensor, Tensor, int], Tensor]
"""Of masked views [B, F]: images, mask noise, and how many patches are seen."""


def sanity_metrics(run: RunSpec, model: Mcf, image_NCHW: Tensor, dealt: Dealt | None = None) -> list[Metric]:
    """PSNR of hidden patches and top-1 of view retrieval, on normalised held-out images; none without images.

    `dealt`: each rank of its team calls this, with its own of the images.
    """
    dealt = dealt or Dealt(len(image_NCHW))
    if not dealt.count:
        return []
    return [
        Metric(name=PSNR, value=psnr(run, model, image_NCHW, dealt), unit="dB", higher_is_better=True),
        _percent(RETRIEVAL, retrieval(run, cls_features(model.encoder), image_NCHW, dealt)),
    ]


def sanity_floors(run: RunSpec, untrained: Encoder, image_NCHW: Tensor) -> list[Metric]:
    """View retrieval on the same images and masks without any training; none without images."""
    if not len(image_NCHW):
        return []
    features = {"pixels": seen_pixels, "random_encoder": cls_features(untrained)}
    return [
        _percent(f"{FLOORS_OF[RETRIEVAL]}_{floor}", retrieval(run, of_view, image_NCHW))
        for floor, of_view in features.items()
    ]


def _percent(name: str, value: float) -> Metric:
    return Metric(name=name, value=value, unit="%", higher_is_better=True)


def held_out_noise(run: RunSpec, count: int, view: View = View.ONLINE) -> Tensor:
    """Mask noise [N, L] of the held-out images, in their order; view says which of two masks."""
    each_once = Drawn(np.zeros(count, np.int64), np.arange(count))
    return torch.from_numpy(mask_noise(NOISE_SEED, each_once, view, run.num_patches))


def psnr(run: RunSpec, model: Mcf, image_NCHW: Tensor, dealt: Dealt | None = None) -> float:
    """Mean over images of 10 log10(1 / squared error) in dB; colours 0..1, hidden patches alone."""
    dealt = dealt or Dealt(len(image_NCHW))
    visible = run.visible_patches(run.evaluation.mask_ratio)

    def error(image_BCHW: Tensor, noise_BL: Tensor) -> Tensor:
        guess = denormalise(model.reconstruct(image_BCHW, noise_BL, visible))
        hidden = hidden_pixels(image_BCHW, noise_BL, visible).expand_as(guess)
        squared = (guess - denormalise(image_BCHW)).square().masked_fill(~hidden, 0)
        return squared.flatten(1).sum(1) / hidden.flatten(1).sum(1)

    error_N = _of_all(error, image_NCHW, held_out_noise(run, dealt.count), dealt)
    # A patch of one colour can be guessed exactly; 1e-10 is 100 dB.
    return float((-10 * error_N.clamp(min=1e-10).log10()).mean())


def cls_features(encoder: Encoder) -> Features:
    return lambda image_BCHW, noise_BL, visible: encoder(image_BCHW, noise_BL, visible)[:, 0]


def seen_pixels(image_BCHW: Tensor, noise_BL: Tensor, visible: int) -> Tensor:
    """The pixels of the visible patches, in their places; hidden ones are ImageNet's mean."""
    return hide(image_BCHW, noise_BL, visible).flatten(1)


def retrieval(run: RunSpec, features: Features, image_NCHW: Tensor, dealt: Dealt | None = None) -> float:
    """Share of images in % whose first view's nearest second view, by cosine of the features, is their own."""
    dealt = dealt or Dealt(len(image_NCHW))
    visible = run.visible_patches(run.evaluation.mask_ratio)

    def of_view(image_BCHW: Tensor, noise_BL: Tensor) -> Tensor:
        return features(image_BCHW, noise_BL, visible)

    one_ND, other_ND = (
        normalize(_of_all(of_view, image_NCHW, held_out_noise(run, dealt.count, view), dealt), dim=1) for view in View
    )
    found = (one_ND @ other_ND.T).argmax(dim=1)
    return 100 * float((found == torch.arange(len(found), device=found.device)).double().mean())


@torch.no_grad()
def _of_all(function: Callable[[Tensor, Tensor], Tensor], image_nCHW: Tensor, noise_NL: Tensor, dealt: Dealt) -> Tensor:
    """function(images, noise) over everything; images may wait on another device than the noise."""
    noise_nL = noise_NL[dealt.mine.start : dealt.mine.stop]
    parts = zip(image_nCHW.split(dealt.batch), noise_nL.split(dealt.batch), strict=True)
    mine = [function(image_BCHW, noise_BL.to(image_BCHW.device)) for image_BCHW, noise_BL in parts]
    return dealt.whole(torch.cat(mine))
