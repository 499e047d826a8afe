"""Values that follow from the published formulas by hand, and for each a wrong formula that it finds out.

A check that passes whatever the code does is no check: every one here is run again with one thing changed, and has
to fail then.
"""

import math
from collections.abc import Callable
from decimal import Decimal
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import AdamW

from trainer.contract import RunSpec
from trainer.method import losses, mcf, optim, vit
from trainer.method.mcf import Target

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
    larger = PUBLISHED.model_copy(update={"input_size": 320})
    assert [larger.visible_patches(ratio) for ratio in (0.9, 0.8, 0.7)] == [39, 79, 120]  # 400 * (1 - 0.9) < 40


def the_rate_rises_from_exactly_zero_for_an_epoch_and_falls_by_half_a_cosine() -> None:
    rates = {0: 0.0, 50: 1.2e-3, 99: 2.4e-3 * 0.99, 100: 2.4e-3, 850: 1.2e-3, 1225: 2.4e-3 * (1 - math.sqrt(0.5)) / 2}
    for step, rate in rates.items():
        near(optim.learning_rate(PUBLISHED, step, IMAGES), rate, 1e-12)


def the_rate_ends_at_its_lowest_and_stays_there() -> None:
    schedule = PUBLISHED.schedule.model_copy(update={"unit": "steps", "length": 1000, "warmup": 0, "min_lr": 4e-4})
    run = PUBLISHED.model_copy(update={"schedule": schedule})
    for step, rate in {0: 2.4e-3, 500: 1.4e-3, 1000: 4e-4, 1001: 4e-4}.items():
        near(optim.learning_rate(run, step, 1), rate, 1e-12)


def momentum_rises_to_one_by_half_a_cosine_of_the_whole_run() -> None:
    near(optim.ema_momentum(PUBLISHED, 800, IMAGES), 0.99, 1e-15)
    run = PUBLISHED.model_copy(update={"ema": PUBLISHED.ema.model_copy(update={"ramp": "cosine"})})
    for step, rest in {0: 0.01, 100: 0.005 * (1 + math.cos(math.pi / 16)), 800: 0.005, 1600: 0.0}.items():
        near(optim.ema_momentum(run, step, IMAGES), 1 - rest, 1e-15)


def a_target_that_moves_once_a_step_stands_at_m_for_all_groups() -> None:
    run = SMALL.model_copy(update={"ema": SMALL.ema.model_copy(update={"per": "step"})})
    start, online = mcf.build(run), mcf.build(run.model_copy(update={"seed": 1}))
    expected = 0.9 * start.encoder.cls_token + 0.1 * online.encoder.cls_token
    target = Target(run, start)
    for group in 0, 1, 2:
        target.advance_to_group(group, online)
        near((target.encoder.cls_token - expected).abs().max(), 0.0)
    target.finish_step(online)
    near((target.encoder.cls_token - expected).abs().max(), 0.0)


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
    shallow = PUBLISHED.encoder.model_copy(update={"depth": 1})
    decoder = PUBLISHED.decoder.model_copy(update={"depth": 1})
    model = mcf.build(PUBLISHED.model_copy(update={"encoder": shallow, "decoder": decoder}))
    encoder = model.encoder
    for weight, bound in (
        (encoder.blocks[0].attn.qkv.weight, math.sqrt(6 / (4 * 768))),
        (encoder.blocks[0].mlp.fc1.weight, math.sqrt(6 / (5 * 768))),
        (encoder.patch_embed.proj.weight, math.sqrt(6 / (768 + 768))),
        (model.projector[0].weight, math.sqrt(6 / (768 + 4096))),
        (model.predictor[3].weight, math.sqrt(6 / (4096 + 256))),
        (model.decoder.embed.weight, math.sqrt(6 / (768 + 512))),
    ):
        near(weight.abs().max() / bound, 1.0, 1e-3)
        near(weight.std() / bound * math.sqrt(3), 1.0, 1e-2)
        near(weight.mean() / bound, 0.0, 1e-2)
    near(encoder.patch_embed.proj.bias.abs().max() * math.sqrt(768), 1.0, 2e-2)
    for token in encoder.cls_token, model.decoder.mask_token:
        near(token.std() / 0.02, 1.0, 0.15)
    for name, value in model.named_parameters():
        if value.ndim == 1 and name != "encoder.patch_embed.proj.bias":
            near(value.min(), float(name.endswith("weight")))
            near(value.max(), float(name.endswith("weight")))


# ---------------------------------------------------------------- and what each of them finds out

Wrong = tuple[Callable[[], None], object, str, Any]


def as_if_fixed(target: Target, moves: int, online: mcf.Mcf) -> None:
    """Forgets that the target has moved in this step already."""
    with torch.no_grad():
        weights = dict(online.named_parameters())
        for name, mine in target.named_parameters():
            mine.lerp_(weights[name], 1 - target.momentum**moves)


def decaying(wanted: Callable[[str, Tensor], bool]) -> Callable[[nn.Module, RunSpec], AdamW]:
    """AdamW that decays what `wanted` says of a parameter's name and value."""

    def adamw(model: nn.Module, run: RunSpec) -> AdamW:
        trained = [(name, value) for name, value in model.named_parameters() if value.requires_grad]
        groups = [
            {"params": [value for name, value in trained if wanted(name, value) is yes], "weight_decay": 0.05 * yes}
            for yes in (True, False)
        ]
        return AdamW([group for group in groups if group["params"]], betas=run.optimizer.betas)

    return adamw


def over_the_batch(x: Tensor, dim: int, eps: float) -> Tensor:
    """Length 1 over all images together, not image by image."""
    return F.normalize(x.flatten(0, 1), dim=0, eps=eps).view_as(x)


def without_lowest(run: RunSpec, step: int, images: int) -> float:
    schedule = run.schedule.model_copy(update={"min_lr": 0.0})
    return RATE(run.model_copy(update={"schedule": schedule}), step, images)


def straight(run: RunSpec, step: int, images: int) -> float:
    return run.ema.momentum + (1 - run.ema.momentum) * NOW(run, step, images) / run.schedule.length


def after_warmup(run: RunSpec, step: int, images: int) -> float:
    """A ramp that waits for the warm-up, as the rate does."""
    warmup = run.schedule.warmup
    share = max(0.0, NOW(run, step, images) - warmup) / (run.schedule.length - warmup)
    return 1 - (1 - run.ema.momentum) * 0.5 * (1 + math.cos(math.pi * share))


def three_matrices(part: nn.Module, generator: torch.Generator) -> None:
    """Draws query, key and value each for themselves."""
    INITIALISE(part, generator)
    for attention in part.modules():
        if isinstance(attention, vit.Attention):
            for matrix in attention.qkv.weight.chunk(3):
                nn.init.xavier_uniform_(matrix, generator=generator)


def small_normal(part: nn.Module, generator: torch.Generator) -> None:
    """As ViTs are often drawn."""
    INITIALISE(part, generator)
    for linear in part.modules():
        if isinstance(linear, nn.Linear):
            nn.init.trunc_normal_(linear.weight, std=0.02, generator=generator)


def with_biases(part: nn.Module, generator: torch.Generator) -> None:
    INITIALISE(part, generator)
    for linear in part.modules():
        if isinstance(linear, nn.Linear) and linear.bias is not None:
            nn.init.uniform_(linear.bias, -0.01, 0.01, generator=generator)


def without_tokens(part: nn.Module, generator: torch.Generator) -> None:
    INITIALISE(part, generator)
    for name, token in part.named_parameters():
        if name.endswith("_token"):
            nn.init.zeros_(token)


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
RATE, INITIALISE = optim.learning_rate, mcf.initialise
WRONG: dict[str, Wrong] = {
    "features scaled along channels": (
        one_tap_is_10_15_times_one_minus_the_mean_cosine_of_channels, losses, "normalize",
        lambda x, dim, eps: F.normalize(x, dim=3 - dim, eps=eps),
    ),
    "features scaled over the batch, not image by image": (
        one_tap_is_10_15_times_one_minus_the_mean_cosine_of_channels, losses, "normalize",
        lambda x, dim, eps: x / x.square().sum((0, dim), keepdim=True).sqrt(),
    ),
    "features scaled over images and tokens together": (
        one_tap_is_10_15_times_one_minus_the_mean_cosine_of_channels, losses, "normalize", over_the_batch,
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
    "T left out of the factor": (
        keys_that_tell_nothing_cost_2t_log_of_the_group, losses, "info_nce",
        lambda q, k, first, t: INFO_NCE(q, k, first, t) / t,
    ),
    "negatives of the slice alone": (
        keys_that_tell_nothing_cost_2t_log_of_the_group, losses, "info_nce",
        lambda q, k, first, t: INFO_NCE(q, k[first : first + len(q)], 0, t),
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
    "hidden patches floored, not kept ones": (
        as_many_patches_are_kept_as_floating_point_says, RunSpec, "visible_patches",
        lambda run, ratio: run.num_patches - int(run.num_patches * ratio),
    ),
    "kept patches floored without rounding": (
        as_many_patches_are_kept_as_floating_point_says, RunSpec, "visible_patches",
        lambda run, ratio: int(run.num_patches * (1 - Decimal(str(ratio)))),
    ),
    "warm-up a step late": (
        the_rate_rises_from_exactly_zero_for_an_epoch_and_falls_by_half_a_cosine, optim, "_now",
        lambda run, step, images: NOW(run, max(0, step - 1), images),
    ),
    "rate of whole epochs": (
        the_rate_rises_from_exactly_zero_for_an_epoch_and_falls_by_half_a_cosine, optim, "_now",
        lambda run, step, images: math.floor(NOW(run, step, images)),
    ),
    "rate down to zero": (the_rate_ends_at_its_lowest_and_stays_there, optim, "learning_rate", without_lowest),
    "momentum rises on a straight line": (
        momentum_rises_to_one_by_half_a_cosine_of_the_whole_run, optim, "ema_momentum", straight,
    ),
    "momentum rises after the warm-up": (
        momentum_rises_to_one_by_half_a_cosine_of_the_whole_run, optim, "ema_momentum", after_warmup,
    ),
    "moves in every group": (
        a_target_that_moves_once_a_step_stands_at_m_for_all_groups, Target, "advance_to_group",
        lambda target, index, online: target._move(index + 1, online),
    ),
    "a move less before each group": (
        a_target_stands_at_m_to_the_number_of_groups, Target, "advance_to_group",
        lambda target, index, online: target._move(index, online),
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
        decaying(lambda name, value: True),
    ),
    "biases decayed": (
        a_first_step_of_adamw_moves_by_the_rate_and_decays_all_but_biases_and_scales, optim, "adamw",
        decaying(lambda name, value: value.ndim > 1 or name.endswith(".bias")),
    ),
    "scales of norms decayed": (
        a_first_step_of_adamw_moves_by_the_rate_and_decays_all_but_biases_and_scales, optim, "adamw",
        decaying(lambda name, value: not name.endswith(".bias")),
    ),
    "tokens not decayed": (
        a_first_step_of_adamw_moves_by_the_rate_and_decays_all_but_biases_and_scales, optim, "adamw",
        decaying(lambda name, value: value.ndim > 1 and not name.endswith("_token")),
    ),
    "biased variance of patches": (
        a_patch_off_by_its_own_deviation_costs_one, losses, "patch_statistics",
        lambda patch: (patch.mean(2, keepdim=True), (patch.var(2, keepdim=True, correction=0) + 1e-6).sqrt()),
    ),
    "statistics of all patches together": (
        a_patch_off_by_its_own_deviation_costs_one, losses, "patch_statistics",
        lambda patch: (patch.mean(), (patch.var() + 1e-6).sqrt()),
    ),
    "images counted by their place": (losses_of_a_slice_do_not_depend_on_the_order_in_it, mcf, "info_nce", by_place),
    "torch's own initial weights": (
        weights_start_xavier_uniform_with_qkv_as_one_matrix, mcf, "initialise", lambda part, generator: None,
    ),
    "query, key and value drawn apart": (
        weights_start_xavier_uniform_with_qkv_as_one_matrix, mcf, "initialise", three_matrices,
    ),
    "normal weights": (weights_start_xavier_uniform_with_qkv_as_one_matrix, mcf, "initialise", small_normal),
    "biases drawn": (weights_start_xavier_uniform_with_qkv_as_one_matrix, mcf, "initialise", with_biases),
    "tokens at zero": (weights_start_xavier_uniform_with_qkv_as_one_matrix, mcf, "initialise", without_tokens),
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
