"""The processes of a run: who I am, which device I use, and what we agree on.

Works under torchrun and, as a world of one, without it.
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel


@dataclass(frozen=True)
class World:
    """One rank's view of all of them. Every method is a collective: all ranks call it, in the same order."""

    rank: int
    size: int
    device: torch.device
    _teams: dict[tuple[int, ...], Any] = field(default_factory=dict)

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    def form_teams(self, teams: Sequence[tuple[int, ...]]) -> None:
        """Make a process group for each team, so that a team's collectives are its own affair."""
        for team in teams:
            self._teams[team] = dist.new_group(list(team)) if len(teams) > 1 else dist.group.WORLD

    def synchronised(self, model: nn.Module) -> DistributedDataParallel:
        """The model under DDP, for use with `no_sync` on all but a rank's last cell of a step.

        The weights are equal already: they are drawn from the seed, or have been broadcast.
        """
        return DistributedDataParallel(model, gradient_as_bucket_view=True, init_sync=False)

    def gather_keys(self, mine: dict[int, Tensor], num_slices: int, team: tuple[int, ...]) -> Tensor:
        """Keys [slices * B, E] of a group in slice order, from what each rank of the team holds of it."""
        sample = next(iter(mine.values()))
        keys_SBE = sample.new_zeros(num_slices, *sample.shape)
        for index, key_BE in mine.items():
            keys_SBE[index] = key_BE
        if len(team) > 1:
            # A sum with zeros is exact, and asks nobody to hold equally many slices as an all-gather would.
            dist.all_reduce(keys_SBE, group=self._teams[team])
        return keys_SBE.flatten(0, 1)

    def sum(self, values: Tensor) -> Tensor:
        """Sum over ranks, the same on all of them: what is not finite on one is not finite anywhere."""
        total = values.clone()
        dist.all_reduce(total)
        return total

    def any(self, flag: bool) -> bool:
        """Whether any rank says so."""
        return bool(self.sum(torch.tensor(float(flag), device=self.device)).item())

    def collect(self, item: Any) -> list[Any]:
        """Every rank's item (picklable), in rank order, on every rank."""
        items: list[Any] = [None] * self.size
        dist.all_gather_object(items, item)
        return items

    def broadcast_state(self, state: dict[str, Any] | None) -> dict[str, Any] | None:
        """Rank 0's state on every rank: nested dicts and lists with tensors in them, which stay on this device."""
        tensors: list[Tensor] = []
        shape = [_without_tensors(state, tensors) if self.is_first else None]
        dist.broadcast_object_list(shape, device=self.device)
        received: list[Tensor] = []
        whole = _with_tensors(shape[0], tensors if self.is_first else None, self.device, received)
        for tensor in received:
            dist.broadcast(tensor, src=0)
        return whole


@contextmanager
def joined_world() -> Iterator[World]:
    """Join the other processes that torchrun started: NCCL on GPUs, gloo on CPUs.

    A rank that waits longer than MCF_COLLECTIVE_TIMEOUT_SECONDS for the others gives up: a node that has
    silently gone is noticed by nothing else.
    """
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    cuda = torch.cuda.is_available()
    device = torch.device("cuda", local_rank) if cuda else torch.device("cpu")
    if cuda:
        torch.cuda.set_device(device)
    timeout = timedelta(seconds=float(os.environ.get("MCF_COLLECTIVE_TIMEOUT_SECONDS", "120")))
    backend, device_id = ("nccl", device) if cuda else ("gloo", None)
    if "RANK" in os.environ:
        dist.init_process_group(backend, timeout=timeout, device_id=device_id)
    else:
        alone = dist.HashStore()  # type: ignore[attr-defined]
        dist.init_process_group(backend, store=alone, rank=0, world_size=1, device_id=device_id)
    yield World(rank=dist.get_rank(), size=dist.get_world_size(), device=device)
    # Not after an error: the others may be gone, and leaving in good order would wait for them.
    dist.destroy_process_group()


@dataclass(frozen=True)
class _Place:
    """Where a tensor was."""

    shape: tuple[int, ...]
    dtype: torch.dtype


def _without_tensors(tree: Any, tensors: list[Tensor]) -> Any:
    if isinstance(tree, Tensor):
        tensors.append(tree)
        return _Place(tuple(tree.shape), tree.dtype)
    if isinstance(tree, dict):
        return {key: _without_tensors(value, tensors) for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        return type(tree)(_without_tensors(value, tensors) for value in tree)
    return tree


def _with_tensors(tree: Any, given: list[Tensor] | None, device: torch.device, made: list[Tensor]) -> Any:
    if isinstance(tree, _Place):
        if given is None:
            made.append(torch.empty(tree.shape, dtype=tree.dtype, device=device))
        else:
            made.append(given[len(made)].to(device).contiguous())
        return made[-1]
    if isinstance(tree, dict):
        return {key: _with_tensors(value, given, device, made) for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        return type(tree)(_with_tensors(value, given, device, made) for value in tree)
    return tree
