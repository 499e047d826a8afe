from collections import Counter

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from trainer.method.draws import Drawn, View, flips, images_at, mask_noise, weights_generator


def drawn(epoch: int, *indices: int) -> Drawn:
    return Drawn(np.full(len(indices), epoch), np.array(indices))


@given(num_images=st.integers(1, 90), seed=st.integers(0, 2**31), epochs=st.integers(1, 4))
def test_every_image_comes_once_an_epoch_without_a_gap_between_epochs(num_images: int, seed: int, epochs: int) -> None:
    everything = images_at(seed, 0, epochs * num_images, num_images)
    assert Counter(everything.index_B.tolist()) == dict.fromkeys(range(num_images), epochs)
    assert everything.epoch_B.tolist() == sorted(everything.epoch_B.tolist())
    one_by_one = [images_at(seed, position, 1, num_images) for position in range(epochs * num_images)]
    assert [int(each.index_B[0]) for each in one_by_one] == everything.index_B.tolist()


def test_epochs_and_seeds_have_their_own_order() -> None:
    orders = {tuple(images_at(seed, epoch * 50, 50, 50).index_B) for seed in (0, 1) for epoch in (0, 1)}
    assert len(orders) == 4


def test_every_order_of_a_small_set_is_equally_likely() -> None:
    orders = Counter(tuple(images_at(seed, 0, 4, 4).index_B.tolist()) for seed in range(12_000))
    assert len(orders) == 24
    chi_square = sum((count - 500) ** 2 / 500 for count in orders.values())
    assert chi_square < 49.7, "one in a thousand for 23 degrees of freedom, and the seeds are fixed"


def test_a_huge_set_needs_no_table() -> None:
    num_images = 10**15
    first, again = (images_at(5, 3 * num_images - 2, 4, num_images).index_B for _ in range(2))
    assert (first == again).all()
    assert len({*first.tolist()}) == 4
    assert (first < num_images).all()


def test_noise_is_a_function_of_seed_epoch_index_and_view_and_of_nothing_else() -> None:
    first = mask_noise(7, drawn(2, 5), View.ONLINE, 196)
    np.random.default_rng(0).random(10)
    torch.rand(10)
    assert (first == mask_noise(7, drawn(2, 9, 5), View.ONLINE, 196)[1]).all()
    others = [(8, 2, 5, View.ONLINE), (7, 3, 5, View.ONLINE), (7, 2, 6, View.ONLINE), (7, 2, 5, View.TARGET)]
    assert all((mask_noise(seed, drawn(*which), view, 196) != first).all() for seed, *which, view in others)


def test_noise_is_float32_in_zero_to_one_and_uniform() -> None:
    noise = mask_noise(0, drawn(0, *range(500)), View.ONLINE, 196)
    assert noise.dtype == np.float32
    assert noise.min() >= 0
    assert noise.max() < 1
    assert abs(noise.mean() - 0.5) < 0.005
    assert abs(noise.var() - 1 / 12) < 0.002


def test_known_draws_stay_what_they_are() -> None:
    """A run resumed under another numpy or torch must go on with the same draws."""
    assert images_at(3, 0, 10, 10).index_B.tolist() == KNOWN_ORDER
    assert mask_noise(3, drawn(1, 4), View.TARGET, 3)[0].tolist() == KNOWN_NOISE
    assert "".join(map(str, flips(3, drawn(0, *range(16))).astype(int))) == KNOWN_FLIPS


def test_half_of_the_images_are_flipped() -> None:
    assert 450 < flips(0, drawn(0, *range(1000))).sum() < 550


def test_parts_of_a_model_draw_from_generators_of_their_own() -> None:
    first, second, again = (torch.rand(4, generator=weights_generator(0, part)) for part in (0, 1, 0))
    assert torch.equal(first, again)
    assert not torch.equal(first, second)


KNOWN_ORDER = [7, 6, 2, 4, 8, 3, 9, 5, 0, 1]
KNOWN_NOISE = [0.7718586921691895, 0.9594669938087463, 0.3399704098701477]
KNOWN_FLIPS = "1001110110101110"
