"""Who computes which cell of the optimizer step (docs/method.md, "One step"). No torch.

A step is a grid of G contrastive groups x S slices, fixed by the spec. Ranks fill a group first; when there
are more ranks than slices in a group, teams take different groups in parallel. The result does not
depend on the division, only the speed does.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

from trainer.contract import Batch


class TooManyWorkers(ValueError):
    """More ranks than a step has cells: some would have nothing to do."""


@dataclass(frozen=True)
class GroupShare:
    """What one rank computes of one contrastive group, and what its team mates do."""

    index: int
    """Of the group in the step."""
    slices: tuple[int, ...]
    """This rank's, by their index in the group, rising."""
    by_rank: tuple[tuple[int, ...], ...]
    """The slices of every rank of the team, in the team's order."""


@dataclass(frozen=True)
class StepPlan:
    """One rank's part of every step."""

    groups: tuple[GroupShare, ...]
    """In rising order; the rank has at least one slice in each."""
    team: tuple[int, ...]
    """Ranks that share these groups, and among which keys are gathered."""
    num_cells: int
    """Cells of the whole step: each loss counts 1 / num_cells."""

    @property
    def num_mine(self) -> int:
        """Cells of this rank."""
        return sum(len(group.slices) for group in self.groups)

    @property
    def most_of_a_group(self) -> int:
        """Cells of the group that this rank has most of."""
        return max(len(group.slices) for group in self.groups)

    def evened(self, limit: int) -> int:
        """Cells of a pass when passes are as few as `limit` allows, and then as small as can be."""
        limit = min(limit, self.num_mine)
        fewest = self._num_passes(limit)
        return next(size for size in range(1, limit + 1) if self._num_passes(size) == fewest)

    def _num_passes(self, size: int) -> int:
        return sum(-(-sum(len(group.slices) for group in held) // size) for held in self.in_passes(size))

    def in_passes(self, size: int) -> Iterator[list[GroupShare]]:
        """Groups whose slices go through the networks together: as many as have `size` slices, one at least."""
        held: list[GroupShare] = []
        for group in self.groups:
            if held and sum(len(each.slices) for each in [*held, group]) > size:
                yield held
                held = []
            held.append(group)
        yield held

    def is_last(self, group: int, slice_index: int) -> bool:
        """Whether this is the rank's last cell of the step, with which gradients are synchronised."""
        return (group, slice_index) == (self.groups[-1].index, self.groups[-1].slices[-1])


def teams(batch: Batch, world_size: int) -> list[tuple[int, ...]]:
    """Ranks of each team: as few teams as can be, neighbouring ranks, sizes that differ by one at most.

    Neighbours share a node where they can, so that gathering keys does not leave it.
    """
    if not 1 <= world_size <= batch.num_cells:
        raise TooManyWorkers(
            f"{world_size} workers cannot share a step of {batch.num_cells} cells (global_batch / slice); "
            f"possible: 1 to {batch.num_cells} workers"
        )
    count = -(-world_size // batch.slices_per_group)
    bounds = [team * world_size // count for team in range(count + 1)]
    return [tuple(range(first, last)) for first, last in pairwise(bounds)]


def step_plan(batch: Batch, rank: int, world_size: int) -> StepPlan:
    """The cells of one rank. Raises TooManyWorkers when there are more ranks than cells."""
    everyone = teams(batch, world_size)
    number, team = next((number, team) for number, team in enumerate(everyone) if rank in team)
    shares = []
    for turn, group in enumerate(range(number, batch.num_groups, len(everyone))):
        # Dealt out through all groups of the team, so that ranks differ by one cell a step at most.
        dealt = range(turn * batch.slices_per_group, (turn + 1) * batch.slices_per_group)
        by_rank = tuple(
            tuple(cell % batch.slices_per_group for cell in dealt if cell % len(team) == place)
            for place in range(len(team))
        )
        shares.append(GroupShare(index=group, slices=by_rank[team.index(rank)], by_rank=by_rank))
    return StepPlan(groups=tuple(shares), team=team, num_cells=batch.num_cells)


def first_position(batch: Batch, step: int, group: int, slice_index: int) -> int:
    """Position in the run of a cell's first image; the others follow one by one."""
    return step * batch.global_batch + group * batch.contrastive_group + slice_index * batch.slice
