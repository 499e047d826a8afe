"""Teams of threads: the ranks of trainer.evaluation.team without processes."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import Tensor

from trainer.evaluation.team import Team

Answer = TypeVar("Answer")
PATIENCE_SECONDS = 60


@dataclass
class _Table:
    """Where ranks lay what the others shall have."""

    size: int
    places: list[Any] = field(init=False)
    barrier: threading.Barrier = field(init=False)

    def __post_init__(self) -> None:
        self.places, self.barrier = [None] * self.size, threading.Barrier(self.size, timeout=PATIENCE_SECONDS)


@dataclass(frozen=True)
class ThreadTeam:
    table: _Table
    rank: int

    @property
    def size(self) -> int:
        return self.table.size

    def sum(self, values: Tensor) -> Tensor:
        return self.gather(values).sum(dim=0)

    def gather(self, values: Tensor) -> Tensor:
        return torch.stack(self.collect(values.clone()))

    def collect(self, item: Any) -> list[Any]:
        self.table.places[self.rank] = item
        self.table.barrier.wait()
        found = list(self.table.places)
        self.table.barrier.wait()
        return found


def together(size: int, work: Callable[[Team], Answer]) -> list[Answer]:
    """What work(team) gives on each of so many ranks. Raises what one of them raises first, by rank."""
    table = _Table(size)

    def rank(number: int) -> Answer:
        try:
            return work(ThreadTeam(table, number))
        except BaseException:
            table.barrier.abort()
            raise

    with ThreadPoolExecutor(size) as pool:
        return [future.result() for future in [pool.submit(rank, number) for number in range(size)]]
