"""Pyramid, head, normalisation, soft-argmax and losses: closed forms and shapes."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests.unit.trainer.teamwork import together
from trainer.contract import IMAGENET_MEAN, IMAGENET_STD, EncoderSpec
from trainer.evaluation.stages import heads, losses, network
from trainer.evaluation.stages.norm import SliceNorm, settle, share, take_statistics
from trainer.evaluation.team import Team, part, sum_gradients
from trainer.method.vit import Encoder, initialise, position_code

TINY = EncoderSpec(width=16, depth=4, heads=2, patch=8)


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def weights(input_size: int = 32) -> dict[str, torch.Tensor]:
    encoder = Encoder(TINY, input_size)
    initialise(encoder, generator(0))
    return encoder.state_dict()


def tiny(num_maps: int = 3, *, frozen: bool = False, seed: int = 1) -> network.Network:
    return network.build(TINY, weights(), num_maps, frozen=frozen, seed=seed, input_size=64, channels=8)


def gaussian_logits(point_BP2: torch.Tensor, side: int, deviation: float) -> torch.Tensor:
    """Logits whose sigmoid is a Gaussian around the points (0..1), deviation in pixels."""
    along = torch.arange(side, dtype=torch.float64) + 0.5
    x, y = ((along - side * place.unsqueeze(-1)) ** 2 for place in point_BP2.unbind(2))
    peak = 0.9 * torch.exp(-(y.unsqueeze(3) + x.unsqueeze(2)) / (2 * deviation**2))
    return torch.logit(peak, eps=1e-300)


def test_soft_argmax_of_a_gaussian_is_its_centre() -> None:
    point_BP2 = 0.2 + 0.6 * torch.rand(2, 5, 2, generator=generator(1), dtype=torch.float64)
    found = heads.soft_argmax(gaussian_logits(point_BP2, 112, 2.0))
    torch.testing.assert_close(found, point_BP2, atol=1e-6, rtol=0)


def test_soft_argmax_by_hand() -> None:
    logits = torch.full((1, 1, 2, 4), -1e4)
    logits[0, 0, 0, 1] = logits[0, 0, 1, 3] = 1e4
    assert heads.soft_argmax(logits).tolist() == [[[(0.375 + 0.875) / 2, 0.5]]]
    # No place is active: the clamped sum leaves no point instead of dividing by nothing.
    assert heads.soft_argmax(torch.full((1, 1, 2, 4), -1e4)).tolist() == [[[0.0, 0.0]]]
    assert heads.soft_argmax(torch.zeros(1, 1, 8, 8)).tolist() == [[[0.5, 0.5]]]


def test_target_maps_by_hand() -> None:
    found = losses.point_maps(torch.tensor([[[64.5 / 128, 30.5 / 128]]], dtype=torch.float64))[0, 0]
    assert found.shape == (128, 128)
    assert float(found[30, 64]) == 1.0
    assert float(found[30, 66]) == pytest.approx(math.exp(-8 * 4 / 25))
    assert float(found[33, 68]) == pytest.approx(math.exp(-8))
    assert float(found[30, 70]) == 0.0
    assert int((found > 0).sum()) == 81  # points of the grid within five steps of one of them
    assert not losses.point_maps(torch.tensor([[[1.5, 0.5]]])).any()


def test_the_alignment_loss_is_distance_plus_cross_entropy() -> None:
    flat = torch.zeros(2, 3, 16, 16, dtype=torch.float64)
    point_BP2 = torch.tensor([0.5, 0.5]).expand(2, 3, 2) + torch.tensor([0.03, 0.04])
    # Flat maps have their centroid in the middle, and a logit of 0 costs log 2 whatever the target.
    assert float(losses.alignment_loss(flat, point_BP2.double())) == pytest.approx(0.05 + math.log(2))
    sure = gaussian_logits(point_BP2.double(), 128, 1.25)
    assert float(losses.alignment_loss(sure, point_BP2.double())) < 0.01


def test_the_parsing_loss_is_the_mean_over_all_pixels() -> None:
    mask_BSS = torch.zeros(1, 8, 8, dtype=torch.uint8)
    mask_BSS[0, :2] = 2
    logit_BKHW = torch.tensor([0.0, 1.0, 3.0]).view(1, 3, 1, 1).expand(1, 3, 4, 4)
    total = math.log(1 + math.e + math.exp(3))
    expected = 0.75 * (total - 0) + 0.25 * (total - 3)
    assert float(losses.parsing_loss(logit_BKHW, mask_BSS)) == pytest.approx(expected, rel=1e-6)


def test_ignored_pixels_train_nothing_and_leave_the_others_their_weight_whoever_computes_them() -> None:
    mask_BSS = torch.randint(3, (2, 8, 8), generator=generator(0), dtype=torch.uint8)
    logit_BKHW = torch.randn(2, 3, 8, 8, generator=generator(1), requires_grad=True)
    whole = losses.parsing_loss(logit_BKHW, mask_BSS)
    assert float(whole) == float(nn.functional.cross_entropy(logit_BKHW, mask_BSS.long())), "the numbers of before"
    [gradient] = torch.autograd.grad(whole, logit_BKHW)
    mask_BSS[0, :5] = 255
    mixed = losses.parsing_loss(logit_BKHW, mask_BSS)
    [without] = torch.autograd.grad(mixed, logit_BKHW)
    assert not without[0, :, :5].any()
    assert torch.equal(without[1], gradient[1])
    alone = [losses.parsing_loss(logit_BKHW[face : face + 1], mask_BSS[face : face + 1]) for face in range(2)]
    assert float(sum(alone) / 2) == pytest.approx(float(mixed), rel=1e-6)
    assert float(losses.parsing_loss(logit_BKHW, torch.full_like(mask_BSS, 255))) == 0


def test_a_slice_is_normalised_as_batch_norm_does_and_its_statistics_enter_once_a_step() -> None:
    x = torch.randn(2, 3, 4, 5, 5, generator=generator(2)) * 3 + 1
    ours, theirs = SliceNorm(4), nn.BatchNorm2d(4)
    for piece in x:
        torch.testing.assert_close(ours(piece), nn.BatchNorm2d(4)(piece))
    assert torch.equal(ours.running_mean, torch.zeros(4))
    settle(ours, take_statistics(ours))
    expected = torch.stack([piece.transpose(0, 1).flatten(1).mean(1) for piece in x]).mean(0)
    torch.testing.assert_close(ours.running_mean, 0.1 * expected)
    assert ours.seen == []
    # One slice a step is torch's own bookkeeping.
    one = SliceNorm(4)
    for piece in x:
        one(piece)
        settle(one, take_statistics(one))
        theirs(piece)
    torch.testing.assert_close(one.running_mean, theirs.running_mean)
    torch.testing.assert_close(one.running_var, theirs.running_var)
    torch.testing.assert_close(one.eval()(x[0]), theirs.eval()(x[0]))


def test_a_slice_that_ranks_share_is_normalised_as_a_whole() -> None:
    x = (torch.randn(7, 4, 5, 5, generator=generator(3), dtype=torch.float64) * 3 + 100).requires_grad_()
    # Each output counts differently, so that a gradient that is only locally right is found out.
    wanted = torch.randn(7, 4, 5, 5, generator=generator(4), dtype=torch.float64)
    whole = nn.BatchNorm2d(4).double()
    nn.init.normal_(whole.weight)
    expected = whole(x)
    (expected * wanted).sum().backward()

    def shared(team: Team) -> tuple[torch.Tensor, torch.Tensor, SliceNorm]:
        norm, mine = SliceNorm(4).double(), part(7, team)
        share(norm, team)
        with torch.no_grad():
            norm.weight.copy_(whole.weight)
        piece = x.detach()[mine.start : mine.stop].requires_grad_()
        found = norm(piece)
        (found * wanted[mine.start : mine.stop]).sum().backward()
        sum_gradients(norm, team)
        settle(norm, take_statistics(norm))
        assert piece.grad is not None
        return found.detach(), piece.grad, norm

    for size in 1, 2, 3:
        outputs, gradients, norms = zip(*together(size, shared), strict=True)
        torch.testing.assert_close(torch.cat(outputs), expected.detach(), rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(torch.cat(gradients), x.grad, rtol=1e-9, atol=1e-9)
        for norm in norms:
            torch.testing.assert_close(norm.weight.grad, whole.weight.grad, rtol=1e-9, atol=1e-9)
            torch.testing.assert_close(norm.bias.grad, whole.bias.grad, rtol=1e-9, atol=1e-9)
            torch.testing.assert_close(norm.running_mean, whole.running_mean, rtol=1e-12, atol=0)
            torch.testing.assert_close(norm.running_var, whole.running_var, rtol=1e-12, atol=0)


def test_maps_are_four_times_the_grid_and_images_do_not_see_each_other_in_evaluation() -> None:
    net = tiny().eval()
    images = torch.rand(3, 3, 80, 80, generator=generator(5))
    together = net(images)
    assert together.shape == (3, 3, 32, 32)
    torch.testing.assert_close(together[1:2], net(images[1:2]), atol=1e-6, rtol=1e-4)


def test_level_sizes_of_the_pyramid() -> None:
    levels = heads.Pyramid(8)([torch.rand(2, 8, 28, 28)] * 4)
    assert [tuple(level.shape) for level in levels] == [(2, 8, side, side) for side in (112, 56, 28, 14)]


def test_the_head_is_the_sum_and_the_stack_that_upernet_describes() -> None:
    head = heads.UperHead(6, 8, 3).eval()
    for number, value in enumerate(head.state_dict().values()):  # statistics too, none of them negative
        value.copy_(torch.rand(value.shape, generator=generator(number)) - (0.4 if value.ndim > 1 else -0.1))
    level = [torch.randn(2, 6, side, side, generator=generator(side)) for side in (24, 12, 6, 3)]

    def conv(name: str, x: torch.Tensor) -> torch.Tensor:
        part = head.get_submodule(name)
        weight = part.conv.weight
        y = F.conv2d(x, weight, padding=weight.shape[-1] // 2)
        mean, var = part.norm.running_mean, part.norm.running_var
        scaled = (y - mean.view(-1, 1, 1)) / (var.view(-1, 1, 1) + 1e-5).sqrt()
        return F.relu(scaled * part.norm.weight.view(-1, 1, 1) + part.norm.bias.view(-1, 1, 1))

    def large(x: torch.Tensor, side: int) -> torch.Tensor:
        return F.interpolate(x, (side, side), mode="bilinear")

    pooled = [large(conv(f"pooled.{i}", F.adaptive_avg_pool2d(level[3], s)), 3) for i, s in enumerate((1, 2, 3, 6))]
    fourth = conv("pool_merge", torch.cat([level[3], *pooled], 1))
    third = conv("lateral.2", level[2]) + large(fourth, 6)
    second = conv("lateral.1", level[1]) + large(third, 12)
    first = conv("lateral.0", level[0]) + large(second, 24)
    smooth = [large(conv(f"smooth.{i}", x), 24) for i, x in enumerate((first, second, third))]
    merged = conv("merge", torch.cat([*smooth, large(fourth, 24)], 1))
    expected = F.conv2d(merged, head.classify.weight, head.classify.bias)
    torch.testing.assert_close(head(level), expected, rtol=1e-4, atol=1e-4)


def test_a_tenth_of_the_last_channels_is_dropped_by_the_seed() -> None:
    kept = heads.draw_dropout(4, 1000, generator(1))
    assert kept.unique().tolist() == pytest.approx([0.0, 1 / 0.9])
    assert 0.08 < float((kept == 0).double().mean()) < 0.12
    assert torch.equal(kept, heads.draw_dropout(4, 1000, generator(1)))
    assert not torch.equal(kept, heads.draw_dropout(4, 1000, generator(2)))
    small, level = tiny().head.train(), [torch.rand(2, 16, side, side) for side in (32, 16, 8, 4)]
    torch.nn.init.normal_(small.classify.weight)
    torch.testing.assert_close(small(level, torch.ones(2, 8)), small(level))
    # A face of which everything is dropped is left with the bias; the other one does not notice.
    half = small(level, torch.tensor([[0.0], [1.0]]).expand(2, 8))
    assert float(half[0].std()) == 0.0
    torch.testing.assert_close(half[1], small(level)[1])


def test_a_frozen_encoder_gets_no_gradient_and_the_rest_does() -> None:
    for frozen in True, False:
        net = tiny(frozen=frozen).train()
        net(torch.rand(2, 3, 64, 64)).square().mean().backward()
        assert net.head.classify.weight.grad is not None
        assert net.pyramid.doubled.weight.grad is not None
        assert (net.encoder.blocks[0].attn.qkv.weight.grad is None) == frozen


def test_every_tap_and_the_whole_head_are_used() -> None:
    net = tiny().train()
    net(torch.rand(2, 3, 64, 64)).square().mean().backward()
    unused = [name for name, weight in net.named_parameters() if weight.requires_grad and weight.grad is None]
    # cls is read by the patches of the next block, the final norm by nobody.
    assert unused == ["encoder.norm.weight", "encoder.norm.bias"]


def test_the_draw_is_the_seeds() -> None:
    same, again, other = (tiny(seed=seed).state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(same[name], again[name]) for name in same)
    assert not torch.equal(same["head.merge.conv.weight"], other["head.merge.conv.weight"])
    deviation = float(same["head.merge.conv.weight"].std())
    assert deviation == pytest.approx((2 / (4 * 8 * 9)) ** 0.5, rel=0.1)


def test_token_maps_are_the_tapped_blocks_of_normalised_resized_images() -> None:
    net = tiny().eval()
    image_BCSS = torch.rand(1, 3, 64, 64, generator=generator(6))
    mean, std = (torch.tensor(three).view(3, 1, 1) for three in (IMAGENET_MEAN, IMAGENET_STD))
    outputs = net.encoder.block_outputs((image_BCSS - mean) / std, (0, 1, 2, 3))
    for found, token_BND in zip(net._token_maps(image_BCSS), outputs, strict=True):
        assert torch.equal(found[0, :, 3, 5], token_BND[0, 1 + 3 * 8 + 5])


def test_taps_are_the_published_ones_or_rise_with_the_depth() -> None:
    assert [tuple(network.taps(depth)) for depth in (12, 24, 32, 4)] == [
        (3, 5, 7, 11), (7, 11, 15, 23), (8, 14, 20, 31), (0, 1, 2, 3),
    ]  # fmt: skip
    with pytest.raises(ValueError, match="3 blocks cannot feed a pyramid"):
        network.taps(3)


def test_the_position_code_is_resized_between_its_places_and_keeps_its_cls_row() -> None:
    code = position_code(16, 4)
    code[0, 0] = 7
    assert network.resized_position_code(code, 4) is code
    larger = network.resized_position_code(code, 8)
    assert larger.shape == (1, 65, 16)
    assert torch.equal(larger[0, 0], code[0, 0])
    # Cubic interpolation is exact for a plane: one that rises by 1 a column.
    plane = torch.arange(4.0).repeat(4).view(1, 16, 1)
    rising = network.resized_position_code(torch.cat([torch.zeros(1, 1, 1), plane], dim=1), 8)[0, 1:, 0].view(8, 8)
    assert rising[4, 2:6].tolist() == pytest.approx([0.75, 1.25, 1.75, 2.25], abs=0.15)
    with pytest.raises(ValueError, match="no multiple of the encoder's patch"):
        network.encoder_at(TINY, weights(), 60)
