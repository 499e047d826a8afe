"""Those who fit one head together, each with a part of every slice."""

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


def sum_gradients(network: nn.Module, team: Team) -> None:
    """Replace every gradient by its sum over ranks, in one collective."""
    if team.size == 1:
        return
    gradients = [weight.grad for weight in network.parameters() if weight.grad is not None]
    summed = team.sum(torch.cat([gradient.flatten() for gradient in gradients]))
    pieces = summed.split([gradient.numel() for gradient in gradients])
    for gradient, piece in zip(gradients, pieces, strict=True):
        gradient.copy_(piece.view_as(gradient))
