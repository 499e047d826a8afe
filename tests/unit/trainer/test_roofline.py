"""The estimate of what a GPU could do: its sums, and that it agrees with what has been measured."""

from itertools import pairwise

import pytest
import torch

from tests.bench.launches import Call, Piece
from tests.bench.roofline import (
    COMPARED,
    PASSES,
    bytes_of_stretch,
    covered,
    eager,
    estimate,
    fused,
    made_before,
    step_of,
)
from trainer.tracking.cards import CARDS

# Measured on a H200: ViT-B/16, bf16, one slice of 64 a pass, not compiled (docs/performance.md).
MEASURED_SHARE = 0.18
FLOP_AN_IMAGE = 1.747e11
SOME = (1, 8)


def test_the_flop_of_an_image_are_those_that_were_counted_in_training() -> None:
    for cells in SOME:
        assert step_of(cells).flop_an_image == pytest.approx(FLOP_AN_IMAGE, rel=0.01)


def test_the_one_share_that_is_known_is_within_twice_the_estimate() -> None:
    estimated = estimate(CARDS["H200"], "eager", 1).share_of_peak
    assert estimated / 2 < MEASURED_SHARE < estimated * 2


@pytest.mark.parametrize("card", COMPARED.values())
def test_fused_is_faster_and_more_cells_are_never_slower(card: str) -> None:
    found = {form: [estimate(CARDS[card], form, cells).seconds for cells in SOME] for form in ("eager", "fused")}
    assert all(quick < plain for quick, plain in zip(found["fused"], found["eager"], strict=True))
    assert all(more <= few * 1.001 for seconds in found.values() for few, more in pairwise(seconds))
    assert set(SOME) <= set(PASSES)


def test_fusing_changes_no_product_and_moves_fewer_bytes() -> None:
    plain, quick = (form(step_of(8).one_pass) for form in (eager, fused))
    assert sum(kernel.flop for kernel in plain) == sum(kernel.flop for kernel in quick)
    assert sum(kernel.bytes for kernel in quick) < sum(kernel.bytes for kernel in plain)
    assert len(quick) < len(plain)


def test_a_stretch_reads_what_was_there_and_writes_what_is_used_later() -> None:
    calls = [call("add", [1, 2], [3]), call("gelu", [3], [4]), call("mul", [3, 1], [5]), call("mm", [4], [6])]
    last_read = {1: 2, 2: 0, 3: 2, 4: 3}
    # 3 lives and dies in it, 5 is used by nobody: read 1 and 2, written 4.
    assert bytes_of_stretch(calls[:3], 2, last_read, made_before(calls)) == 3 * 10


def test_views_of_one_storage_count_once_and_together_no_more_than_all_of_it() -> None:
    same, other = Piece(1, (0,), 6, 10), Piece(1, (4,), 6, 10)
    assert covered([same, same]) == 6
    assert covered([same, other]) == 10


def call(name: str, read: list[int], written: list[int]) -> Call:
    pieces = [tuple(Piece(number, (), 10, 10) for number in numbers) for numbers in (read, written)]
    return Call(name, pieces[0], pieces[1], 0, torch.float32)
