"""The comparison with the reference, one formula of ours made wrong at a time: it has to find every one of them."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Adam, AdamW

from tests.exact.ours import TINY, compare_steps
from trainer.contract import RunSpec
from trainer.method import losses, mcf, optim, vit
from trainer.method.mcf import Target
from trainer.method.vit import Encoder
from trainer.teachers import Teacher
from trainer.weights import published

SIZES = {"slice": 3, "ranks": 2, "micro_steps": 2}
# How the comparison says that a gradient or a weight differs; of losses pytest itself tells.
WEIGHT = r"^[\w.]+: \d\.\de"
BUILD = published.build
FEATURES, BLOCKS, UNPATCHIFY = losses.feature_loss, Encoder.block_outputs, mcf.unpatchify
TEACHER, INFO_NCE, POSITIONS, GROUPS = Teacher.forward, losses.info_nce, vit.position_code, optim.adamw


def norm(eps: float = 1e-5, last_has_scale: bool = False) -> Any:
    return lambda width, affine=True: nn.BatchNorm1d(
        width, eps=eps, affine=affine or last_has_scale, track_running_stats=False
    )


def normed_taps(encoder: Encoder, image: Tensor, taps: tuple[int, ...]) -> list[Tensor]:
    return [encoder.norm(tap) for tap in BLOCKS(encoder, image, taps)]


def colours_first(patch_BLK: Tensor, patch: int) -> Tensor:
    batch, count, _ = patch_BLK.shape
    values = patch_BLK.reshape(batch, count, 3, patch, patch).permute(0, 1, 3, 4, 2)
    return UNPATCHIFY(values.reshape(batch, count, -1), patch)


def over_the_batch(predicted: list[Tensor], wanted: list[Tensor], along: Any) -> Tensor:
    """Length 1 over all images together, not image by image."""
    return FEATURES([x.flatten(0, 1)[None] for x in predicted], [x.flatten(0, 1)[None] for x in wanted], along)


def both_ways(query: Tensor, key: Tensor, first: int, temperature: float) -> Tensor:
    """Symmetric, as MoCo v3: keys look for queries too."""
    own = key[first : first + len(query)]
    return (INFO_NCE(query, key, first, temperature) + INFO_NCE(own, query, 0, temperature)) / 2


def other_adam(kind: type[Adam] | type[AdamW], **settings: Any) -> Any:
    return lambda model, run: kind(
        [
            {k: v for k, v in group.items() if k in ("params", "weight_decay")}
            for group in GROUPS(model, run).param_groups
        ],
        **{"betas": run.optimizer.betas, "eps": run.optimizer.eps, **settings},
    )


def decaying(wanted: Any) -> Any:
    """AdamW that decays what `wanted` says of a parameter's name and value."""

    def adamw(model: nn.Module, run: RunSpec) -> AdamW:
        trained = [(name, value) for name, value in model.named_parameters() if value.requires_grad]
        groups = [
            {"params": [v for n, v in trained if wanted(n, v) is yes], "weight_decay": 0.05 * yes}
            for yes in (True, False)
        ]
        return AdamW(groups, betas=run.optimizer.betas, eps=run.optimizer.eps)

    return adamw


WRONG: dict[str, list[tuple[object, str, Any]]] = {
    "GELU by tanh": [(vit, "gelu", lambda x: F.gelu(x, approximate="tanh"))],
    "LayerNorm with torch's eps": [(vit, "LAYER_NORM_EPS", 1e-5)],
    "attention scaled by the head's width": [
        (vit, "scaled_dot_product_attention", lambda q, k, v: F.scaled_dot_product_attention(q, k, v, scale=1 / 12)),
    ],
    "BatchNorm with another eps": [(mcf, "batch_norm", norm(eps=1e-6))],
    "largest noise is visible": [
        (module, "visible_first", lambda noise: noise.argsort(dim=1, descending=True)) for module in (vit, mcf)
    ],
    "hidden patches not put back in place": [
        (mcf, "visible_first", lambda noise: torch.arange(noise.shape[1]).expand_as(noise)),
    ],
    "one patch more is visible": [(RunSpec, "visible_patches", lambda run, ratio=None: 5)],
    "colours first within a patch": [(mcf, "unpatchify", colours_first)],
    "taps after the final norm": [(Encoder, "block_outputs", normed_taps)],
    "cls not compared": [
        (Teacher, "forward", lambda teacher, image: [tap[:, 1:] for tap in TEACHER(teacher, image)]),
    ],
    "features scaled along channels": [
        (losses, "feature_loss", lambda predicted, wanted, along: FEATURES(predicted, wanted, "channels")),
        (mcf, "feature_loss", lambda predicted, wanted, along: FEATURES(predicted, wanted, "channels")),
    ],
    "features scaled over the batch": [(mcf, "feature_loss", over_the_batch)],
    "taps averaged": [(mcf, "feature_loss", lambda p, w, along: FEATURES(p, w, along) / len(p))],
    "contrast without 2T": [(mcf, "info_nce", lambda q, k, first, t: INFO_NCE(q, k, first, t) / (2 * t))],
    "contrast both ways": [(mcf, "info_nce", both_ways)],
    "negatives of the slice alone": [
        (mcf, "info_nce", lambda q, k, first, t: INFO_NCE(q, k[first : first + len(q)], 0, t)),
    ],
    "target moves after the keys": [
        (Target, "advance_to_group", lambda target, index, online: target._move(index, online)),
    ],
    "target moves by m at once": [
        (Target, "finish_step", lambda target, online: setattr(target, "_moves", 0)),
        (Target, "advance_to_group", lambda target, index, online: target._move(1, online)),
    ],
    "Adam, decay in the gradient": [(optim, "adamw", other_adam(Adam))],
    "second beta 0.999": [(optim, "adamw", other_adam(AdamW, betas=(0.9, 0.999)))],
    "eps 1e-6": [(optim, "adamw", other_adam(AdamW, eps=1e-6))],
    "biases decayed": [(optim, "adamw", decaying(lambda name, value: value.ndim > 1 or name.endswith(".bias")))],
    "scales of norms decayed": [
        (optim, "adamw", decaying(lambda name, value: not name.endswith(".bias"))),
    ],
    "tokens not decayed": [
        (optim, "adamw", decaying(lambda name, value: value.ndim > 1 and not name.endswith("token"))),
    ],
    "rate of the step after": [
        (optim, "_now", lambda run, step, images: (step + 1) * run.batch.global_batch / images),
    ],
}


def test_the_comparison_holds_as_it_is(tmp_path: Path) -> None:
    compare_steps(TINY, tmp_path, steps=3, **SIZES)


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_formula_is_found_out(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for where, what, wrong in WRONG[name]:
        monkeypatch.setattr(where, what, wrong)
    with pytest.raises(AssertionError):
        compare_steps(TINY, tmp_path, steps=3, **SIZES)


@pytest.mark.parametrize("name", list(WRONG)[list(WRONG).index("Adam, decay in the gradient") :])
def test_what_no_loss_has_shown_yet_is_found_in_the_weights(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The first step has rate 0, so two steps have moved the weights once and looked at no loss since.
    for where, what, wrong in WRONG[name]:
        monkeypatch.setattr(where, what, wrong)
    with pytest.raises(AssertionError, match=WEIGHT):
        compare_steps(TINY, tmp_path, steps=1 + (name != "rate of the step after"), **SIZES)


@pytest.mark.parametrize("part", ["encoder.cls_token", "decoder.blocks.0.attn.qkv.bias", "projector.1.weight"])
def test_one_parameter_s_gradient_off_by_a_millionth_is_found(
    part: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def with_hook(run: RunSpec) -> mcf.Mcf:
        model = BUILD(run)
        model.get_parameter(part).register_hook(lambda gradient: gradient * (1 + 1e-6))
        return model

    monkeypatch.setattr(published, "build", with_hook)
    with pytest.raises(AssertionError, match=rf"^{published.published_name(part)}: 1.0e-06"):
        compare_steps(TINY, tmp_path, steps=1, **SIZES)
