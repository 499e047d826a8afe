"""Values that follow from the published formulas by hand, and for each a wrong formula that it finds out.

A check that passes whatever the code does is no check: every one here is run again with one thing changed, and has
to fail then.
"""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import AdamW

from trainer import losses, mcf, optim, vit
from trainer.mcf import Target
from trainer.spec import RunSpec

PUBLISHED = RunSpec.model_validate({"data": {"uri": "/d"}, "teacher": "random"})
SMALL = RunSpec.model_validate({
    "data": {"uri": "/d"}, "teacher": "none", "precision": "float64", "input_size": 32,
    "encoder": {"width": 24, "depth": 1, "heads": 2, "patch": 8}, "decoder": {"width": 16, "depth": 1, "heads": 2},
    "contrastive": {"hidden": 12, "dim": 8}, "batch": {"slice": 4, "contrastive_group": 8, "global_batch": 24},
    "ema": {"momentum": 0.9},
})  # fmt: skip
IMAGES = 100 * 4096  # 100 steps an epoch


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def near(value: float | Tensor, expected: float, tolerance: float = 1e-9) -> None:
    value = value.detach() if isinstance(value, Tensor) else value
    assert float(value) == pytest.approx(expected, rel=tolerance, abs=tolerance)


# ---------------------------------------------------------------- checks


def one_tap_is_10_15_times_one_minus_the_mean_cosine_of_channels() -> None:
    predicted, wanted = draw(3, 197, 768), draw(3, 197, 768, seed=1)
    cosine = (predicted * wanted).sum(1) / (predicted.square().sum(1) * wanted.square().sum(1)).sqrt()
    near(1000 * losses.feature_loss([predicted], [wanted], "tokens"), 2000 / 197 * (1 - cosine.mean().item()))


def taps_that_correlate_by_rho_cost_40_6_times_one_minus_rho() -> None:
    for rho in 0.0, 0.5, 1.0:
        pairs = [(draw(4, 197, 768, seed=tap), draw(4, 197, 768, seed=9 + tap)) for tap in range(4)]
        mixed = [rho * wanted + math.sqrt(1 - rho**2) * other for wanted, other in pairs]
        near(1000 * losses.feature_loss(mixed, [wanted for wanted, _ in pairs], "tokens"), 40.6 * (1 - rho), 5e-3)


def keys_that_tell_nothing_cost_2t_log_of_the_group() -> None:
    keys = torch.ones(512, 16, dtype=torch.float64)
    near(losses.info_nce(keys[:64], keys, 64, 0.2), 0.4 * math.log(512))


def a_query_finds_its_own_key_among_orthogonal_ones() -> None:
    keys = torch.eye(8, dtype=torch.float64)
    near(losses.info_nce(7 * keys[4:6], 3 * keys, 4, 0.2), 0.4 * math.log(1 + 7 * math.exp(-5)))


def as_many_patches_are_kept_as_floating_point_says() -> None:
    kept = {0.75: 49, 0.5: 98, 0.6: 78, 0.7: 58, 0.8: 39, 0.85: 29, 0.9: 19}
    assert {ratio: PUBLISHED.visible_patches(ratio) for ratio in kept} == kept


def the_rate_rises_from_exactly_zero_for_an_epoch_and_falls_by_half_a_cosine() -> None:
    rates = {0: 0.0, 50: 1.2e-3, 99: 2.4e-3 * 0.99, 100: 2.4e-3, 850: 1.2e-3, 1225: 2.4e-3 * (1 - math.sqrt(0.5)) / 2}
    for step, rate in rates.items():
        near(optim.learning_rate(PUBLISHED, step, IMAGES), rate, 1e-12)


def a_target_stands_at_m_to_the_number_of_groups() -> None:
    start, online = mcf.build(SMALL), mcf.build(SMALL.model_copy(update={"seed": 1}))
    before, now = start.encoder.cls_token, online.encoder.cls_token
    for groups in [0, 1, 2], [1], [2]:
        target = Target(SMALL, start)
        for group in groups:
            target.advance_to_group(group, online)
            share = 0.9 ** (group + 1)
            near((target.encoder.cls_token - share * before - (1 - share) * now).abs().max(), 0.0)
        target.finish_step(online)
        near((target.encoder.cls_token - 0.729 * before - 0.271 * now).abs().max(), 0.0)


def the_position_code_has_the_column_in_its_first_half() -> None:
    code = vit.position_code(8, 3)[0]
    assert code[0].abs().max() == 0
    for row, column in (0, 0), (1, 2), (2, 1):
        found = code[1 + 3 * row + column]
        for half, place in (0, column), (4, row):
            expected = [math.sin(place), math.sin(place / 100), math.cos(place), math.cos(place / 100)]
            assert found[half : half + 4].tolist() == pytest.approx(expected, abs=1e-7)


def a_first_step_of_adamw_moves_by_the_rate_and_decays_all_but_biases_and_scales() -> None:
    model = mcf.build(SMALL)
    before = {name: value.detach().clone() for name, value in model.named_parameters()}
    optimizer = optim.adamw(model, SMALL)
    optim.set_learning_rate(optimizer, 0.01)
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, 3.0) if parameter.requires_grad else None
    optimizer.step()
    for name, value in model.named_parameters():
        decay = 0.0 if value.ndim == 1 or name.endswith("bias") else 0.01 * 0.05
        moved = 0.0 if name.endswith("pos_embed") else 0.01 / (1 + 1e-8 / 3)
        expected = before[name] * (1 - (decay if moved else 0.0)) - moved
        near((value - expected).abs().max(), 0.0)


def a_patch_off_by_its_own_deviation_costs_one() -> None:
    patch = draw(2, 5, 48)
    deviation = (patch.var(dim=2, keepdim=True) + 1e-6).sqrt()
    guess = (patch - patch.mean(dim=2, keepdim=True)) / deviation + 1
    hidden = torch.tensor([[True, False, True, True, False]] * 2)
    near(losses.pixel_loss(guess, patch, hidden, "patch"), 1.0)


def losses_of_a_slice_do_not_depend_on_the_order_in_it() -> None:
    model = mcf.build(SMALL)
    image, noise = draw(4, 3, 32, 32), draw(4, 16, seed=1)
    order = torch.tensor([2, 0, 3, 1])
    keys = draw(8, 8, seed=2)
    there = torch.cat([keys[:4][order], keys[4:]])
    one, other = model(image, noise, keys, 0, None), model(image[order], noise[order], there, 0, None)
    near(one.contrastive - other.contrastive, 0.0)
    near(one.pixel - other.pixel, 0.0)


def weights_start_xavier_uniform_with_qkv_as_one_matrix() -> None:
    encoder = mcf.build(PUBLISHED).encoder
    for weight, bound in (
        (encoder.blocks[0].attn.qkv.weight, math.sqrt(6 / (4 * 768))),
        (encoder.blocks[0].mlp.fc1.weight, math.sqrt(6 / (5 * 768))),
        (encoder.patch_embed.proj.weight, math.sqrt(6 / (768 + 768))),
    ):
        near(weight.abs().max(), bound, 1e-3)
        near(weight.std(), bound / math.sqrt(3), 1e-2)
    near(encoder.patch_embed.proj.bias.abs().max(), 1 / math.sqrt(768), 2e-2)
    near(encoder.cls_token.std(), 0.02, 0.1)


# ---------------------------------------------------------------- and what each of them finds out

Wrong = tuple[Callable[[], None], object, str, Any]


def as_if_fixed(target: Target, moves: int, online: mcf.Mcf) -> None:
    """Forgets that the target has moved in this step already."""
    with torch.no_grad():
        weights = dict(online.named_parameters())
        for name, mine in target.named_parameters():
            mine.lerp_(weights[name], 1 - target.momentum**moves)


def decaying_everything(model: nn.Module, run: RunSpec) -> AdamW:
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return AdamW(trained, betas=run.optimizer.betas, eps=run.optimizer.eps, weight_decay=0.05)


def row_first(width: int, side: int) -> Tensor:
    first, second = POSITION_CODE(width, side).chunk(2, dim=2)
    return torch.cat([second, first], dim=2)


def cosine_first(width: int, side: int) -> Tensor:
    parts = POSITION_CODE(width, side).chunk(4, dim=2)
    return torch.cat([parts[1], parts[0], parts[3], parts[2]], dim=2)


def by_place(query: Tensor, key: Tensor, first: int, temperature: float) -> Tensor:
    """A loss that counts later images more."""
    rows = [INFO_NCE(query[i : i + 1], key, first + i, temperature) * (i + 1) for i in range(len(query))]
    return torch.stack(rows).mean()


POSITION_CODE, INFO_NCE, FEATURE_LOSS, NOW = vit.position_code, losses.info_nce, losses.feature_loss, optim._now
WRONG: dict[str, Wrong] = {
    "features scaled along channels": (
        one_tap_is_10_15_times_one_minus_the_mean_cosine_of_channels, losses, "normalize",
        lambda x, dim, eps: F.normalize(x, dim=3 - dim, eps=eps),
    ),
    "features scaled over the batch, not image by image": (
        one_tap_is_10_15_times_one_minus_the_mean_cosine_of_channels, losses, "normalize",
        lambda x, dim, eps: x / x.square().sum((0, dim), keepdim=True).sqrt(),
    ),
    "features not scaled": (
        taps_that_correlate_by_rho_cost_40_6_times_one_minus_rho, losses, "normalize", lambda x, dim, eps: x,
    ),
    "taps averaged, not added": (
        taps_that_correlate_by_rho_cost_40_6_times_one_minus_rho, losses, "feature_loss",
        lambda predicted, wanted, along: FEATURE_LOSS(predicted, wanted, along) / len(predicted),
    ),
    "2T left out": (
        keys_that_tell_nothing_cost_2t_log_of_the_group, losses, "info_nce",
        lambda q, k, first, t: INFO_NCE(q, k, first, t) / (2 * t),
    ),
    "labels from the group's first row": (
        a_query_finds_its_own_key_among_orthogonal_ones, losses, "info_nce",
        lambda q, k, first, t: INFO_NCE(q, k, 0, t),
    ),
    "logits not over T": (
        a_query_finds_its_own_key_among_orthogonal_ones, losses, "cross_entropy",
        lambda logits, label: F.cross_entropy(logits * 0.2, label),
    ),
    "kept patches rounded": (
        as_many_patches_are_kept_as_floating_point_says, RunSpec, "visible_patches",
        lambda run, ratio: round(run.num_patches * (1 - ratio)),
    ),
    "warm-up a step early": (
        the_rate_rises_from_exactly_zero_for_an_epoch_and_falls_by_half_a_cosine, optim, "_now",
        lambda run, step, images: NOW(run, step + 1, images),
    ),
    "moves of a step added up": (a_target_stands_at_m_to_the_number_of_groups, Target, "_move", as_if_fixed),
    "row in the first half": (the_position_code_has_the_column_in_its_first_half, vit, "position_code", row_first),
    "cosine before sine": (the_position_code_has_the_column_in_its_first_half, vit, "position_code", cosine_first),
    "everything decayed": (
        a_first_step_of_adamw_moves_by_the_rate_and_decays_all_but_biases_and_scales, optim, "adamw",
        decaying_everything,
    ),
    "biased variance of patches": (
        a_patch_off_by_its_own_deviation_costs_one, losses, "patch_statistics",
        lambda patch: (patch.mean(2, keepdim=True), (patch.var(2, keepdim=True, correction=0) + 1e-6).sqrt()),
    ),
    "images counted by their place": (losses_of_a_slice_do_not_depend_on_the_order_in_it, mcf, "info_nce", by_place),
    "torch's own initial weights": (
        weights_start_xavier_uniform_with_qkv_as_one_matrix, mcf, "initialise", lambda part, generator: None,
    ),
}  # fmt: skip


@pytest.mark.parametrize(
    "check", dict.fromkeys(check for check, *_ in WRONG.values()), ids=lambda check: check.__name__
)
def test_the_published_formula_holds(check: Callable[[], None]) -> None:
    check()


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_formula_is_found_out(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    check, where, what, wrong = WRONG[name]
    monkeypatch.setattr(where, what, wrong)
    with pytest.raises(AssertionError):
        check()
