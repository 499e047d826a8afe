"""What an arm asks of its subsets, told by runs of which some are shared with others that say it otherwise."""

from typing import Any

import pytest

from trainer.contract import asked_subset_seed


def specs(*pairs: tuple[int, int | str]) -> list[dict[str, Any]]:
    return [{"seed": seed, "data": {"subset_seed": asked}} for seed, asked in pairs]


@pytest.mark.parametrize(
    ("runs", "asked"),
    [
        (specs((0, "run"), (1, "run")), "run"),
        (specs((0, 0), (1, "run")), "run"),
        (specs((3, 3), (4, 4)), "run"),
        (specs((0, 0), (1, 0)), 0),
        (specs((0, "run"), (1, 0)), 0),
        (specs((3, "run"), (4, 3), (5, 3)), 3),
        (specs((3, 3), (4, 3)), 3),
        # Of one seed either is right; it is taken at its word.
        (specs((3, 3)), 3),
        (specs((3, "run")), "run"),
        # Before there was the field.
        ([{"seed": 0, "data": {}}, {"seed": 1, "data": {}}], 0),
    ],
)
def test_runs_of_one_arm_tell_together_what_it_asks_for(runs: list[dict[str, Any]], asked: int | str) -> None:
    assert asked_subset_seed(runs) == asked
