"""How far a mean over images would move if other images of the same kind had been annotated.

Percentile bootstrap (Efron and Tibshirani 1993, chapter 13): images are drawn with replacement, predictions stay as
they are. So the interval holds the choice of test images alone, neither of training images nor of seeds.
Letters: N images, R resamples.
"""

import numpy as np
from torch import Tensor

from trainer.contract.records import Metric

LEVEL = 0.95
# By chance of the draws alone an end of the interval then has a deviation of a fiftieth of its width.
RESAMPLES = 1000
# Not a run's seed: every arm and every seed sees the same resamples of the same images.
SEED = 20_240_118
# Resamples drawn at a time: 8 MB of indices with 4,000 images.
CHUNK = 250


def interval(
    value_N: Tensor, *, level: float = LEVEL, resamples: int = RESAMPLES, seed: int = SEED
) -> tuple[float, float]:
    """Low and high end of the mean of `value_N`, in its unit. Raises ValueError without values."""
    values_N = value_N.detach().double().cpu().numpy()
    if not len(values_N):
        raise ValueError("no images, so no interval")
    generator = np.random.default_rng(seed)
    means = []
    for first in range(0, resamples, CHUNK):
        drawn_RN = generator.integers(len(values_N), size=(min(CHUNK, resamples - first), len(values_N)))
        means.append(values_N[drawn_RN].mean(axis=1))
    low, high = np.quantile(np.concatenate(means), [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def mean_metric(value_N: Tensor, *, name: str, unit: str, higher_is_better: bool) -> Metric:
    """The mean over images as a metric with its interval."""
    low, high = interval(value_N)
    value = float(value_N.double().mean())
    return Metric(name=name, value=value, unit=unit, higher_is_better=higher_is_better, low=low, high=high)
