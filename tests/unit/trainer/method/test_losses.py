import math

import pytest
import torch
from torch.nn.functional import normalize

from trainer.method.losses import feature_loss, info_nce, pixel_loss


def test_one_tap_weighs_10_15_times_one_minus_the_mean_cosine_over_tokens() -> None:
    predicted, wanted = torch.randn(2, 197, 768), torch.randn(2, 197, 768)
    cosine = (normalize(predicted, dim=1) * normalize(wanted, dim=1)).sum(dim=1).mean()
    loss = 1000 * feature_loss([predicted], [wanted], "tokens")
    assert loss.item() == pytest.approx(10.15 * (1 - cosine.item()), rel=1e-3)


def test_four_opposite_taps_reach_the_published_maximum_and_equal_ones_zero() -> None:
    taps = [torch.randn(2, 197, 32) for _ in range(4)]
    assert 1000 * feature_loss([-tap for tap in taps], taps, "tokens").item() == pytest.approx(81.2, rel=1e-3)
    assert feature_loss(taps, [5 * tap for tap in taps], "tokens").item() == pytest.approx(0, abs=1e-12)


def test_features_may_be_compared_along_channels() -> None:
    tap = torch.randn(2, 5, 7)
    scaled_by_token = tap * torch.rand(2, 5, 1)
    assert feature_loss([scaled_by_token], [tap], "channels").item() == pytest.approx(0, abs=1e-10)
    assert feature_loss([scaled_by_token], [tap], "tokens").item() > 1e-4


def test_features_without_length_give_no_nan() -> None:
    predicted = torch.zeros(1, 4, 3, requires_grad=True)
    feature_loss([predicted], [torch.zeros(1, 4, 3)], "tokens").backward()
    assert predicted.grad.isfinite().all()


def test_gradients_reach_the_prediction_alone() -> None:
    predicted, wanted = (torch.randn(2, 5, 7, requires_grad=True) for _ in range(2))
    feature_loss([predicted], [wanted], "tokens").backward()
    query, key = (torch.randn(4, 8, requires_grad=True) for _ in range(2))
    info_nce(query, key, 0, 0.2).backward()
    assert predicted.grad is not None
    assert query.grad is not None
    assert wanted.grad is None
    assert key.grad is None


def test_contrastive_loss_without_information_is_2t_log_group() -> None:
    key = torch.ones(512, 16)
    assert info_nce(key[:64], key, 64, 0.2).item() == pytest.approx(0.4 * math.log(512), rel=1e-5)


def test_the_key_of_a_slice_is_found_at_its_place_in_the_group() -> None:
    key = torch.eye(8)
    right, wrong = info_nce(3 * key[4:6], key, 4, 0.2), info_nce(3 * key[4:6], key, 0, 0.2)
    assert right.item() == pytest.approx(0.4 * math.log(1 + 7 * math.exp(-5)), rel=1e-5)
    assert wrong.item() == pytest.approx(right.item() + 0.4 * 5, rel=1e-5)


def test_pixel_loss_counts_hidden_patches_alone() -> None:
    patch, predicted = torch.zeros(2, 4, 6), torch.zeros(2, 4, 6)
    predicted[0, 1], predicted[1, 2] = 3.0, 100.0
    hidden = torch.tensor([[0, 1, 1, 0], [1, 1, 0, 0]], dtype=torch.bool)
    assert pixel_loss(predicted, patch, hidden).item() == pytest.approx(9 / 4)
