import pytest
import torch

from trainer.contract import RunSpec
from trainer.method import mcf
from trainer.method.losses import info_nce
from trainer.method.mcf import Target, patchify, unpatchify
from trainer.teachers import build as build_teacher

CPU = torch.device("cpu")


def changed(run: RunSpec, **fields: object) -> RunSpec:
    return RunSpec.model_validate({**run.model_dump(), **fields})


@pytest.fixture
def batch(tiny_run: RunSpec) -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    return torch.randn(16, 3, 64, 64), torch.rand(16, tiny_run.num_patches)


def test_weights_come_from_the_seed_alone_and_leave_torchs_generator_alone(tiny_run: RunSpec) -> None:
    torch.manual_seed(1)
    first, before = mcf.build(tiny_run).state_dict(), torch.rand(3)
    torch.manual_seed(1)
    assert torch.equal(torch.rand(3), before)
    torch.manual_seed(2)
    again, other = mcf.build(tiny_run).state_dict(), mcf.build(changed(tiny_run, seed=1)).state_dict()
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["encoder.cls_token"], other["encoder.cls_token"])


def test_arms_with_other_decoders_or_without_contrast_start_from_the_same_encoder(tiny_run: RunSpec) -> None:
    first = mcf.build(tiny_run).encoder.state_dict()
    for other in changed(tiny_run, decoder="32x2x4"), changed(tiny_run, contrastive={"weight": 0}):
        assert all(torch.equal(first[name], value) for name, value in mcf.build(other).encoder.state_dict().items())


def test_heads_have_the_published_norms_and_no_bias(tiny_run: RunSpec) -> None:
    model = mcf.build(tiny_run)
    names = {name for name, _ in model.named_parameters() if name.startswith(("projector", "predictor"))}
    assert names == {
        "projector.0.weight", "projector.1.weight", "projector.1.bias", "projector.3.weight",
        "predictor.0.weight", "predictor.1.weight", "predictor.1.bias", "predictor.3.weight",
    }  # fmt: skip
    assert not list(model.buffers())  # no running statistics, and nothing for DDP to send around


def test_patches_are_row_column_colour_and_go_back_together() -> None:
    image = torch.randn(2, 3, 8, 8)
    patches = patchify(image, 4)
    assert patches.shape == (2, 4, 48)
    assert torch.equal(patches[0, 1, :6], torch.cat([image[0, :, 0, 4], image[0, :, 0, 5]]))
    assert torch.equal(unpatchify(patches, 4), image)


def test_total_is_the_weighted_sum_of_both_losses(tiny_run: RunSpec, batch: tuple[torch.Tensor, torch.Tensor]) -> None:
    image, noise = batch
    run = changed(tiny_run, contrastive={**tiny_run.contrastive.model_dump(), "weight": 0.5})
    model, teacher = mcf.build(run), build_teacher(run, CPU)
    keys = Target(run, model).keys(image, noise)
    losses = model(image, noise, keys, 0, teacher)
    assert losses.total.item() == pytest.approx(
        1000 * losses.perceptual.item() + 0.5 * losses.contrastive.item(), rel=1e-6
    )
    query = model.predictor(model.projector(model.encoder(image, noise, run.visible_patches())[:, 0]))
    assert losses.contrastive.item() == pytest.approx(info_nce(query, keys, 0, 0.2).item(), rel=1e-6)


def test_without_teacher_the_hidden_pixels_are_what_is_learnt(
    tiny_run: RunSpec, batch: tuple[torch.Tensor, torch.Tensor]
) -> None:
    image, noise = batch
    run = changed(tiny_run, teacher="none", contrastive={"weight": 0})
    model = mcf.build(run)
    guess = model.reconstruct(image, noise, run.visible_patches())
    hidden = noise.argsort(1).argsort(1) >= run.visible_patches()
    expected = (patchify(guess, 8) - patchify(image, 8))[hidden].square().mean()
    losses = model(image, noise, None, 0, None)
    assert losses.total.item() == losses.pixel.item() == pytest.approx(expected.item(), rel=1e-5)
    losses.total.backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)


def test_losses_do_not_depend_on_the_order_of_the_batch(
    tiny_run: RunSpec, batch: tuple[torch.Tensor, torch.Tensor]
) -> None:
    image, noise = batch
    model, teacher = mcf.build(tiny_run), build_teacher(tiny_run, CPU)
    target = Target(tiny_run, model)
    order = torch.randperm(16)
    one = model(image, noise, target.keys(image, noise), 0, teacher)
    other = model(image[order], noise[order], target.keys(image[order], noise[order]), 0, teacher)
    assert torch.allclose(torch.stack(one), torch.stack(other), rtol=1e-4)


@pytest.mark.parametrize(("per", "moves"), [("group", 2), ("step", 1)])
def test_after_a_step_the_target_stands_at_m_to_the_groups_however_it_got_there(
    tiny_run: RunSpec, per: str, moves: int
) -> None:
    run = changed(tiny_run, ema={"momentum": 0.9, "per": per}, precision="float64")
    online = mcf.build(changed(run, seed=5))
    start = Target(run, mcf.build(run)).state_dict()["projector.0.weight"].clone()
    expected = 0.9**moves * start + (1 - 0.9**moves) * online.projector[0].weight
    for groups in ([0, 1], [1], [0]):  # alone; one team of two; the other
        target = Target(run, mcf.build(run))
        for group in groups:
            target.advance_to_group(group, online)
            now = target.projector[0].weight
            after = 0.9 ** (group + 1) if per == "group" else 0.9
            assert torch.allclose(now, after * start + (1 - after) * online.projector[0].weight, atol=1e-12)
        target.finish_step(online)
        assert torch.allclose(target.projector[0].weight, expected, atol=1e-12)


def test_the_target_starts_as_the_online_encoder_and_takes_no_gradient(tiny_run: RunSpec) -> None:
    model = mcf.build(tiny_run)
    target = Target(tiny_run, model)
    assert torch.equal(target.encoder.cls_token, model.encoder.cls_token)
    assert not any(parameter.requires_grad for parameter in target.parameters())
