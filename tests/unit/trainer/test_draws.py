from collections import Counter

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from trainer.draws import View, flipped, image_at, mask_noise, weights_generator


@given(num_images=st.integers(1, 90), seed=st.integers(0, 2**31), epochs=st.integers(1, 4))
def test_every_image_comes_once_an_epoch_without_a_gap_between_epochs(num_images: int, seed: int, epochs: int) -> None:
    drawn = [image_at(seed, position, num_images) for position in range(epochs * num_images)]
    assert Counter(index for _, index in drawn) == dict.fromkeys(range(num_images), epochs)
    assert [epoch for epoch, _ in drawn] == sorted(epoch for epoch, _ in drawn)


def test_epochs_and_seeds_have_their_own_order() -> None:
    orders = {tuple(image_at(seed, epoch * 50 + i, 50)[1] for i in range(50)) for seed in (0, 1) for epoch in (0, 1)}
    assert len(orders) == 4


def test_noise_is_a_function_of_seed_epoch_index_and_view_and_of_nothing_else() -> None:
    first = mask_noise(7, 2, 5, View.ONLINE, 196)
    np.random.default_rng(0).random(10)
    torch.rand(10)
    assert torch.equal(first, mask_noise(7, 2, 5, View.ONLINE, 196))
    others = [(8, 2, 5, View.ONLINE), (7, 3, 5, View.ONLINE), (7, 2, 6, View.ONLINE), (7, 2, 5, View.TARGET)]
    assert all((mask_noise(*other, 196) != first).all() for other in others)


def test_noise_is_float32_in_zero_to_one_and_uniform() -> None:
    noise = torch.stack([mask_noise(0, 0, index, View.ONLINE, 196) for index in range(500)])
    assert noise.dtype == torch.float32
    assert noise.min() >= 0
    assert noise.max() < 1
    assert abs(noise.mean() - 0.5) < 0.005
    assert abs(noise.var() - 1 / 12) < 0.002


def test_known_draws_stay_what_they_are() -> None:
    """A run resumed under another numpy or torch must go on with the same draws."""
    assert [image_at(3, position, 10)[1] for position in range(10)] == KNOWN_ORDER
    assert mask_noise(3, 1, 4, View.TARGET, 3).tolist() == KNOWN_NOISE
    assert "".join("01"[flipped(3, 0, index)] for index in range(16)) == KNOWN_FLIPS


def test_half_of_the_images_are_flipped() -> None:
    assert 450 < sum(flipped(0, 0, index) for index in range(1000)) < 550


def test_parts_of_a_model_draw_from_generators_of_their_own() -> None:
    first, second, again = (torch.rand(4, generator=weights_generator(0, part)) for part in (0, 1, 0))
    assert torch.equal(first, again)
    assert not torch.equal(first, second)


KNOWN_ORDER = [6, 1, 8, 5, 2, 7, 9, 4, 3, 0]
KNOWN_NOISE = [0.7718586921691895, 0.9594669938087463, 0.3399704098701477]
KNOWN_FLIPS = "1001110110101110"
