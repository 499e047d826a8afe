"""Those who measure together, each with a part of the work: of every slice of a fit, or of the images of a probe."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn


class Team(Protocol):
    """One rank's view of all of them; trainer.elastic.distributed.World is one.

    The methods are collectives: every rank calls them, in the same order, with tensors of one shape.
    """

    @property
    def rank(self) -> int:
        """From 0."""

    @property
    def size(self) -> int:
        """Number of ranks."""

    def sum(self, values: Tensor) -> Tensor:
        """Sum over ranks, the same bits on all of them."""

    def gather(self, values: Tensor) -> Tensor:
        """Every rank's values in rank order: one dimension more, in front."""

    def collect(self, item: Any) -> list[Any]:
        """Every rank's item (picklable) in rank order."""


@dataclass(frozen=True)
class Alone:
    """A team of one."""

    rank: int = 0
    size: int = 1

    def sum(self, values: Tensor) -> Tensor:
        return values

    def gather(self, values: Tensor) -> Tensor:
        return values[None]

    def collect(self, item: Any) -> list[Any]:
        return [item]


ALONE = Alone()


def part(count: int, team: Team) -> range:
    """This rank's of `count` things: neighbours, as many as the others have or one less."""
    return range(team.rank * count // team.size, (team.rank + 1) * count // team.size)


@dataclass(frozen=True)
class Dealt:
    """Images dealt to a team in whole batches, so that each is computed with the same others whoever computes it.

    Letters: N images of all ranks, n of this one.
    """

    count: int
    """N"""
    team: Team = ALONE
    batch: int = 64

    @property
    def mine(self) -> range:
        """Which of the N are this rank's."""
        return self._of(self.team.rank)

    def whole(self, mine_nX: Tensor) -> Tensor:
        """Rows [N, ...] of all ranks in their order, on every rank, from each rank's own. A collective."""
        if self.team.size == 1:
            return mine_nX
        sizes = [len(self._of(rank)) for rank in range(self.team.size)]
        padded = mine_nX.new_zeros(max(sizes), *mine_nX.shape[1:])
        padded[: len(mine_nX)] = mine_nX
        gathered = self.team.gather(padded)
        return torch.cat([gathered[rank, :size] for rank, size in enumerate(sizes)])

    def my_columns(self, feature_nF: Tensor, width: int) -> Iterator[Tensor]:
        """This rank's share of the features of all images, [N, width] at a time. A collective, to its end."""
        for number, part_nC in enumerate(feature_nF.split(width, dim=1)):
            whole_NC = self.whole(part_nC)
            if number % self.team.size == self.team.rank:
                yield whole_NC

    def _of(self, rank: int) -> range:
        batches, size = -(-self.count // self.batch), self.team.size
        first, end = (min(self.count, self.batch * (turn * batches // size)) for turn in (rank, rank + 1))
        return range(first, end)


def sum_gradients(network: nn.Module, team: Team) -> None:
    """Replace every gradient by its sum over ranks, in one collective."""
    if team.size == 1:
        return
    gradients = [weight.grad for weight in network.parameters() if weight.grad is not None]
    summed = team.sum(torch.cat([gradient.flatten() for gradient in gradients]))
    pieces = summed.split([gradient.numel() for gradient in gradients])
    for gradient, piece in zip(gradients, pieces, strict=True):
        gradient.copy_(piece.view_as(gradient))
