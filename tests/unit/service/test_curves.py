"""A curve shows what was logged, gaps as gaps, between round values that enclose it."""

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from service.pages.curves import HEIGHT, LEFT, MAX_POINTS, WIDTH, curve, round_values

numbers = st.floats(-1e12, 1e12, allow_nan=False)


@given(numbers, numbers)
@example(-1e12, -999999999999.9999)
@example(0.0, 5e-324)
@example(1e-310, 1e-310)
def test_round_values_enclose_what_they_label_and_are_few(one: float, other: float) -> None:
    low, high = min(one, other), max(one, other)
    marks = round_values(low, high, 4)
    slack = 1e-6 * max(abs(low), abs(high), 1e-9)
    assert marks[0] <= low + slack
    assert marks[-1] >= high - slack
    assert 2 <= len(marks) <= 8
    assert marks == sorted(set(marks))


@given(st.lists(st.one_of(st.none(), numbers), min_size=1, max_size=700))
def test_every_point_lies_inside_the_chart(values: list[float | None]) -> None:
    found = curve("loss", list(enumerate(values)))
    if found is None:
        assert not [value for value in values if value is not None]
        return
    points = [tuple(map(float, point.split(","))) for line in found.lines for point in line.split()] + found.dots
    assert 0 < len(points) <= MAX_POINTS + 1 or not found.lines
    assert all(LEFT <= x <= WIDTH and 0 <= y <= HEIGHT for x, y in points)


def test_a_value_that_is_no_number_breaks_the_line() -> None:
    found = curve("loss", [(1, 4.0), (2, 3.0), (3, None), (4, 2.0)])
    assert found
    assert len(found.lines) == 1
    assert len(found.dots) == 1
    assert found.newest == "2"


def test_nothing_to_draw_is_no_chart() -> None:
    assert curve("loss", [(1, None)]) is None
    assert curve("loss", []) is None


@pytest.mark.parametrize("value", [0.0, 5.0, -3e-9])
def test_a_constant_is_a_line_in_the_middle(value: float) -> None:
    found = curve("lr", [(1, value), (2, value)])
    assert found
    [line] = found.lines
    heights = {float(point.split(",")[1]) for point in line.split()}
    assert len(heights) == 1
    assert 0.2 * HEIGHT < heights.pop() < 0.8 * HEIGHT
