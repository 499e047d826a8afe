from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer.contract import Batch
from trainer.method.grid import TooManyWorkers, first_position, step_plan, teams

shapes = st.tuples(st.integers(1, 9), st.integers(1, 9))


def batch_of(num_groups: int, slices_per_group: int, slice: int = 4) -> Batch:
    group = slice * slices_per_group
    return Batch(slice=slice, contrastive_group=group, global_batch=group * num_groups)


@given(shape=shapes, data=st.data())
def test_every_cell_is_computed_exactly_once_at_every_world_size(shape: tuple[int, int], data: st.DataObject) -> None:
    batch = batch_of(*shape)
    size = data.draw(st.integers(1, batch.num_cells))
    plans = [step_plan(batch, rank, size) for rank in range(size)]
    cells = Counter((group.index, index) for plan in plans for group in plan.groups for index in group.slices)
    assert cells == {(group, index): 1 for group in range(shape[0]) for index in range(shape[1])}
    for rank, plan in enumerate(plans):
        assert rank in plan.team
        # DDP synchronises once a step on every rank, so nobody may be idle, in a group or in the step.
        assert all(group.slices for group in plan.groups)
        assert [group.index for group in plan.groups] == sorted(group.index for group in plan.groups)
        lasts = [plan.is_last(group.index, index) for group in plan.groups for index in group.slices]
        assert lasts == [False] * (len(lasts) - 1) + [True]


@given(shape=shapes, data=st.data())
def test_a_team_shares_whole_groups_and_its_ranks_differ_by_one_cell_at_most(
    shape: tuple[int, int], data: st.DataObject
) -> None:
    batch = batch_of(*shape)
    size = data.draw(st.integers(1, batch.num_cells))
    everyone = teams(batch, size)
    assert [rank for team in everyone for rank in team] == list(range(size))
    for team in everyone:
        plans = [step_plan(batch, rank, size) for rank in team]
        assert len({tuple(group.index for group in plan.groups) for plan in plans}) == 1
        held = [sum(len(group.slices) for group in plan.groups) for plan in plans]
        assert max(held) - min(held) <= 1


def test_the_published_step_on_8_gpus_is_one_slice_of_each_group_a_rank() -> None:
    for rank in range(8):
        plan = step_plan(Batch(), rank, 8)
        assert [group.slices for group in plan.groups] == [(rank,)] * 8


def test_sixteen_ranks_are_two_teams_that_take_groups_in_turn() -> None:
    assert teams(Batch(), 16) == [tuple(range(8)), tuple(range(8, 16))]
    assert [group.index for group in step_plan(Batch(), 9, 16).groups] == [1, 3, 5, 7]


@pytest.mark.parametrize("size", [0, 5])
def test_more_ranks_than_cells_are_refused(size: int) -> None:
    with pytest.raises(TooManyWorkers, match="possible: 1 to 4"):
        step_plan(batch_of(2, 2), 0, size)


def test_cells_cover_the_positions_of_a_step_one_after_the_other() -> None:
    batch = batch_of(2, 3)
    firsts = [first_position(batch, 5, group, index) for group in range(2) for index in range(3)]
    assert firsts == [5 * 24 + 4 * cell for cell in range(6)]
