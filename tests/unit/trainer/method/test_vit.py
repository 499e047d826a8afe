import math

import pytest
import torch

from trainer.contract import EncoderSpec, RunSpec
from trainer.method.vit import Encoder, initialise, position_code, visible_first

SMALL = EncoderSpec(width=48, depth=3, heads=4, patch=8)


@pytest.fixture
def vit() -> Encoder:
    torch.manual_seed(0)
    encoder = Encoder(SMALL, 32)
    initialise(encoder, torch.Generator().manual_seed(0))
    return encoder


@pytest.mark.parametrize(
    ("side", "ratio", "kept"),
    [(14, 0.75, 49), (14, 0.5, 98), (14, 0.6, 78), (14, 0.7, 58), (14, 0.8, 39), (14, 0.85, 29), (14, 0.9, 19)],
)
def test_kept_patches_are_the_published_floating_point_floor(side: int, ratio: float, kept: int) -> None:
    run = RunSpec.model_validate({"data": {"uri": "/d"}, "teacher": "none", "mask_ratio": ratio})
    assert run.num_patches == side * side
    assert run.visible_patches() == kept


def test_position_code_has_column_first_then_row_and_a_zero_cls() -> None:
    code = position_code(8, 3)[0]
    assert code.dtype == torch.float32
    assert code.shape == (10, 8)
    assert (code[0] == 0).all()
    row, column = 2, 1
    w = [1.0, 10000**-0.5]
    expected = [math.sin(column * w[0]), math.sin(column * w[1]), math.cos(column * w[0]), math.cos(column * w[1])]
    expected += [math.sin(row * w[0]), math.sin(row * w[1]), math.cos(row * w[0]), math.cos(row * w[1])]
    assert torch.allclose(code[1 + row * 3 + column], torch.tensor(expected), atol=1e-7)


def test_weights_and_features_are_those_of_a_timm_vit(vit: Encoder) -> None:
    from timm.models.vision_transformer import VisionTransformer

    timm = VisionTransformer(img_size=32, patch_size=8, embed_dim=48, depth=3, num_heads=4, num_classes=0).eval()
    timm.load_state_dict(vit.state_dict(), strict=True)
    image = torch.randn(2, 3, 32, 32)
    assert torch.allclose(vit.features(image), timm.forward_features(image), atol=1e-5)
    taps = timm.forward_intermediates(
        image, indices=[0, 2], return_prefix_tokens=True, output_fmt="NLC", intermediates_only=True
    )
    for own, (patches, cls) in zip(vit.block_outputs(image, [0, 2]), taps, strict=True):
        assert torch.allclose(own, torch.cat([cls, patches], dim=1), atol=1e-5)


def test_the_encoder_sees_the_patches_with_the_smallest_noise_and_nothing_else(vit: Encoder) -> None:
    image, noise = torch.randn(2, 3, 32, 32), torch.rand(2, 16)
    tokens = vit(image, noise, 4)
    assert tokens.shape == (2, 5, 48)
    hidden = (visible_first(noise).argsort(dim=1) >= 4).view(2, 1, 4, 4)
    hidden = hidden.repeat_interleave(8, 2).repeat_interleave(8, 3)
    assert torch.equal(tokens, vit(image.masked_fill(hidden, 9.0), noise, 4))
    assert not torch.allclose(tokens[:, 0], vit(image.masked_fill(~hidden, 9.0), noise, 4)[:, 0])


def test_seeing_every_patch_masked_or_whole_is_the_same(vit: Encoder) -> None:
    image = torch.randn(2, 3, 32, 32)
    in_order = torch.arange(16.0).expand(2, -1) / 16
    assert torch.allclose(vit(image, in_order, 16), vit.features(image), atol=1e-6)


def test_the_order_of_the_batch_does_not_matter(vit: Encoder) -> None:
    image, noise = torch.randn(5, 3, 32, 32), torch.rand(5, 16)
    order = torch.tensor([3, 0, 4, 1, 2])
    assert torch.allclose(vit(image, noise, 4)[order], vit(image[order], noise[order], 4), atol=1e-6)


def test_initial_weights_are_the_published_ones(vit: Encoder) -> None:
    qkv, proj = vit.blocks[0].attn.qkv, vit.patch_embed.proj
    # One [3D, D] matrix, not three: its bound is narrower.
    assert qkv.weight.abs().max().item() == pytest.approx(math.sqrt(6 / (48 + 144)), rel=0.01)
    assert (qkv.bias == 0).all()
    assert proj.weight.abs().max().item() == pytest.approx(math.sqrt(6 / (48 + 3 * 64)), rel=0.01)
    assert 0 < proj.bias.abs().max() <= 1 / math.sqrt(3 * 64)
    assert vit.cls_token.std().item() == pytest.approx(0.02, rel=0.3)
    assert (vit.norm.weight == 1).all()
    assert not vit.pos_embed.requires_grad
