import math

import pytest
import torch

from trainer.contract import RunSpec
from trainer.method import mcf
from trainer.method.optim import adamw, gradient_norm, learning_rate

PUBLISHED = RunSpec.model_validate({"data": {"uri": "/d"}, "teacher": "none"})
IMAGES = 4096 * 100  # 100 steps an epoch


def test_the_published_schedule_warms_up_for_an_epoch_from_zero_and_ends_at_zero() -> None:
    rates = [learning_rate(PUBLISHED, step, IMAGES) for step in range(1600)]
    assert rates[0] == 0
    assert rates[50] == pytest.approx(1.2e-3)
    assert rates[100] == pytest.approx(2.4e-3)
    assert rates[850] == pytest.approx(1.2e-3)
    assert rates[1599] == pytest.approx(2.4e-3 * 0.5 * (1 + math.cos(math.pi * 14.99 / 15)))
    assert max(rates) == rates[100]


@pytest.mark.parametrize(("warmup", "first", "last"), [(0, 1.0, 0.5), (4, 0.0, 0.75)])
def test_a_schedule_in_steps_may_start_without_warmup_or_be_nothing_else(
    warmup: float, first: float, last: float
) -> None:
    spec = {"unit": "steps", "length": 4, "warmup": warmup}
    run = PUBLISHED.model_copy(update={"schedule": type(PUBLISHED.schedule).model_validate(spec)})
    shares = [learning_rate(run, step, 1) / run.learning_rate for step in range(4)]
    assert shares[0] == first
    assert shares[-1] == pytest.approx(last if warmup else 0.5 * (1 + math.cos(math.pi * 0.75)))


def test_tokens_are_decayed_and_biases_norms_and_what_is_fixed_are_not(tiny_run: RunSpec) -> None:
    model = mcf.build(tiny_run)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    decayed, kept = ({names[id(p)] for p in group["params"]} for group in adamw(model, tiny_run).param_groups)
    assert {"encoder.cls_token", "decoder.mask_token", "encoder.blocks.0.attn.qkv.weight"} <= decayed
    assert {"encoder.norm.weight", "encoder.patch_embed.proj.bias", "projector.1.weight"} <= kept
    assert not any(name.endswith("pos_embed") for name in decayed | kept)
    assert not any(name.endswith("bias") for name in decayed)


def test_gradient_norm_is_that_of_all_gradients_together() -> None:
    layer = torch.nn.Linear(2, 1)
    layer.weight.grad, layer.bias.grad = torch.tensor([[2.0, 3.0]]), torch.tensor([6.0])
    assert gradient_norm(layer).item() == pytest.approx(7.0)
