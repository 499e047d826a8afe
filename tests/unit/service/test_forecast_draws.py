"""What a forecast does not know: which images a subset draws, where all seeds train on the same ones."""

import numpy as np

from service.compare.power_law import Declined, forecast

SIZES, ALL = (12, 24, 48, 96), 192
SEEDS = 5


def test_an_interval_holds_the_truth_where_each_seed_draws_its_images_and_not_where_all_seeds_share_them() -> None:
    # docs/effects.md has more of this: 300 experiments and four spreads.
    assert coverage(spread=0.2, own=True, count=100) >= 0.95
    assert coverage(spread=0.2, own=False, count=100) <= 0.8


def coverage(*, spread: float, own: bool, count: int) -> float:
    """Share of intervals that hold the truth. `spread`: between draws, at the smallest size."""
    rng, holds = np.random.default_rng(0), []
    for _ in range(count):
        shared = drawn(rng, spread)
        draws = [drawn(rng, spread) if own else shared for _ in range(SEEDS)]
        points = {n: {s: truth(n) + draws[s][n] + rng.normal(0, 0.06) for s in range(SEEDS)} for n in SIZES}
        try:
            found = forecast(points, ALL, higher_is_better=True).at_size
        except Declined:
            continue
        holds.append(found.low <= truth(ALL) <= found.high)
    return float(np.mean(holds))


def truth(n: float) -> float:
    return 13.3 - 1.1 * float((n / SIZES[0]) ** -0.8)


def drawn(rng: np.random.Generator, spread: float) -> dict[int, float]:
    """What nested subsets of one draw add at each size; of all images, every draw is the same."""
    image_N = rng.normal(0, spread * SIZES[0] ** 0.5, ALL)
    image_N -= image_N.mean()
    return {n: float(image_N[:n].mean()) for n in SIZES}
