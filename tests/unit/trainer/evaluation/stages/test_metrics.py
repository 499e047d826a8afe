"""Metrics of the benchmarks: by hand, and against formulas written another way."""

import math
from typing import Any

import numpy as np
import pytest
import scipy.integrate
import sklearn.metrics
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from trainer.evaluation.stages import metrics

LENGTHS = st.floats(-50, 50)
SIZES = st.floats(0.5, 100)
# An error on the grid itself is counted or not by its last bit.
ERRORS = st.floats(0, 0.2).filter(lambda error: abs(error / 1e-4 - round(error / 1e-4)) > 1e-6)


def test_units_of_a_box_of_three_by_four() -> None:
    box_N4 = torch.tensor([[10.0, 20.0, 13.0, 24.0]]).double()
    assert float(metrics.diagonal(box_N4)) == 5.0
    assert float(metrics.box_side(box_N4)) == pytest.approx(math.sqrt(12))
    square = torch.tensor([[0.0, 0.0, 7.0, 7.0]]).double()
    assert float(metrics.diagonal(square)) == pytest.approx(math.sqrt(2) * float(metrics.box_side(square)))


def test_a_distance_is_that_of_the_means_of_two_groups() -> None:
    point_NP2 = torch.tensor([[[0.0, 0.0], [2.0, 0.0], [10.0, 3.0], [12.0, 5.0]]]).double()
    assert float(metrics.distance_between(point_NP2, [0], [2])) == pytest.approx(math.sqrt(109))
    assert float(metrics.distance_between(point_NP2, [0, 1], [2, 3])) == pytest.approx(math.sqrt(116))


def test_units_between_the_eyes_are_between_each_benchmarks_own_points() -> None:
    # Point p lies at (p^2, 0): every pair of points has a distance of its own.
    point_NP2 = torch.stack([torch.arange(98).double() ** 2, torch.zeros(98).double()], dim=1)[None]
    corners = {"aflw19": 11**2 - 6**2, "300w": 45**2 - 36**2, "wflw": 72**2 - 60**2}
    assert {name: float(metrics.inter_ocular(point_NP2, name)) for name in metrics.INTER_OCULAR} == corners
    # The mean of 42^2..47^2 less that of 36^2..41^2 is 6 (44.5 + 38.5).
    pupils = {"aflw19": 10**2 - 7**2, "300w": 6 * 83, "wflw": 97**2 - 96**2}
    found = {name: float(metrics.inter_pupil(point_NP2, name)) for name in metrics.INTER_PUPIL}
    assert found == pytest.approx(pupils)


@settings(max_examples=50, deadline=None)
@given(corner=hnp.arrays(np.float64, (3, 2), elements=LENGTHS), size=hnp.arrays(np.float64, (3, 2), elements=SIZES))
def test_units_of_boxes_are_those_of_their_width_and_height(corner: Any, size: Any) -> None:
    box_N4 = torch.from_numpy(np.concatenate([corner, corner + size], axis=1))
    assert metrics.diagonal(box_N4).tolist() == pytest.approx([math.hypot(w, h) for w, h in size], rel=1e-6)
    # The geometric mean of width and height.
    sides = [math.exp((math.log(w) + math.log(h)) / 2) for w, h in size]
    assert metrics.box_side(box_N4).tolist() == pytest.approx(sides, rel=1e-6)


def test_an_error_by_hand() -> None:
    target = torch.zeros(1, 2, 2).double()
    guess = torch.tensor([[[3.0, 4.0], [0.0, 1.0]]]).double()
    assert metrics.nme(guess, target, torch.tensor([10.0]).double()).tolist() == pytest.approx([0.3])
    with pytest.raises(ValueError, match=r"images \[0\] have units of length 0"):
        metrics.nme(guess, target, torch.zeros(1))


@settings(max_examples=50, deadline=None)
@given(
    points=hnp.arrays(np.float64, (2, 3, 5, 2), elements=LENGTHS),
    units=hnp.arrays(np.float64, 3, elements=SIZES),
)
def test_nme_is_the_sum_written_out(points: Any, units: Any) -> None:
    guess, target = points
    expected = []
    for i in range(3):
        total = sum(math.hypot(*(guess[i, p] - target[i, p])) for p in range(5))
        expected.append(total / (5 * units[i]))
    found = metrics.nme(*map(torch.from_numpy, (guess, target, units)))
    assert found.tolist() == pytest.approx(expected, rel=1e-6, abs=1e-12)


def test_curve_of_errors_at_zero_half_and_beyond() -> None:
    # Half of the images have no error, the other half fail: the curve is flat at one half.
    error_N = torch.tensor([0.0, 0.0, 0.2, 0.3])
    assert metrics.area_under_curve(error_N, 0.1) == pytest.approx(0.5, abs=1e-12)
    assert metrics.failure_rate(error_N, 0.1) == 0.5
    assert metrics.failure_rate(torch.tensor([0.07], dtype=torch.float64), 0.07) == 0.0
    with pytest.raises(ValueError, match="no even multiple"):
        metrics.area_under_curve(error_N, 0.07 + 1e-4)
    with pytest.raises(ValueError, match="no images"):
        metrics.failure_rate(torch.zeros(0), 0.1)


@settings(max_examples=30, deadline=None)
@given(errors=st.lists(ERRORS, min_size=1, max_size=20), threshold=st.sampled_from(sorted(metrics.THRESHOLD.values())))
def test_area_and_failures_are_those_of_scipy_on_the_curve_written_out(errors: list[float], threshold: float) -> None:
    grid = np.linspace(0, threshold, round(threshold / 1e-4) + 1)
    curve = np.array([np.mean(np.array(errors) <= place) for place in grid])
    error_N = torch.tensor(errors, dtype=torch.float64)
    area = scipy.integrate.simpson(curve, x=grid) / threshold
    assert metrics.area_under_curve(error_N, threshold) == pytest.approx(area, abs=1e-6)
    assert metrics.failure_rate(error_N, threshold) == pytest.approx(1 - curve[-1], abs=1e-12)
    # For steps at any place the integral is the mean head-room, up to the grid's spacing.
    exact = np.mean(np.clip(1 - np.array(errors) / threshold, 0, None))
    assert area == pytest.approx(exact, abs=2e-4 / threshold)


def test_f1_is_of_all_pixels_together_and_leaves_the_background_out() -> None:
    counted = metrics.Confusion(["background", "skin", "hair", "hat"])
    counted.add(counted.count(torch.tensor([[0, 1], [1, 2]]), torch.tensor([[0, 1], [1, 1]])))
    counted.add(counted.count(torch.tensor([[2, 2, 0]]), torch.tensor([[2, 2, 2]])))
    score = counted.score()
    # skin: 2 right, 2 guessed, 3 true; hair: 2 right, 3 guessed, 3 true; hat: nowhere.
    assert score.per_class == pytest.approx({"skin": 0.8, "hair": 2 / 3})
    assert score.mean == pytest.approx((0.8 + 2 / 3) / 2)


@settings(max_examples=50, deadline=None)
@given(maps=hnp.arrays(np.int64, (2, 3, 12), elements=st.integers(0, 4)))
def test_f1_is_sklearns(maps: Any) -> None:
    guess, target = maps
    if not (guess.any() or target.any()):
        return
    counted = metrics.Confusion([str(number) for number in range(5)])
    for one, other in zip(guess, target, strict=True):
        counted.add(counted.count(torch.from_numpy(one), torch.from_numpy(other)))
    present = sorted(set(np.unique(maps)) - {0})
    expected = sklearn.metrics.f1_score(target.ravel(), guess.ravel(), labels=present, average=None, zero_division=0.0)
    score = counted.score()
    assert list(score.per_class.values()) == pytest.approx(list(expected), abs=1e-6)
    assert score.mean == pytest.approx(expected.mean(), abs=1e-6)


def test_class_maps_that_cannot_be_counted_are_refused() -> None:
    counted = metrics.Confusion(["background", "skin"])
    with pytest.raises(ValueError, match="differ in shape"):
        counted.count(torch.zeros(2), torch.zeros(3))
    with pytest.raises(ValueError, match=r"guess has classes 0..2, not 0..1"):
        counted.count(torch.tensor([0, 2]), torch.tensor([0, 1]))
    with pytest.raises(ValueError, match="no pixel of any class but the background"):
        counted.score()


def test_an_ignored_pixel_is_not_counted() -> None:
    counted = metrics.Confusion(["background", "skin"])
    found = counted.count(torch.tensor([[0, 1], [1, 1]]), torch.tensor([[0, 1], [255, 0]], dtype=torch.uint8))
    assert found.tolist() == [[1, 1], [0, 1]]
