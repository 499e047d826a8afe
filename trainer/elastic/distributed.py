"""The processes of a run: who I am, which device I use, and what we agree on.

Works under torchrun and, as a world of one, without it.
"""

import os
import uuid
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from trainer.elastic.peers import PeerWatch
from trainer.elastic.siblings import SiblingWatch
from trainer.elastic.stop import ended_at_once
from trainer.elastic.trees import places, with_tensors, without_tensors
from trainer.method.grid import GroupShare


class NotEnoughGpus(Exception):
    """More processes were started on this node than it has GPUs."""


class Synchronised(Protocol):
    """A model whose gradients are summed over all ranks, but for what is computed within `no_sync`."""

    def __call__(self, *inputs: Any) -> Any: ...

    def no_sync(self) -> AbstractContextManager[None]: ...


class Alone:
    """Of a world of one, where DDP would copy every gradient and have nobody to send it to."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model

    def __call__(self, *inputs: Any) -> Any:
        return self.model(*inputs)

    def no_sync(self) -> AbstractContextManager[None]:
        return nullcontext()


@dataclass(frozen=True)
class World:
    """One rank's view of all of them. Every method is a collective: all ranks call it, in the same order."""

    rank: int
    size: int
    device: torch.device
    local_rank: int = 0
    """Among the ranks of this node."""
    _group: Any = None
    """Process group of these ranks; None = of all that torchrun started."""
    _patient: Any = None
    """Process group of the same ranks, for what may take long: start-up."""
    _teams: dict[tuple[int, ...], Any] = field(default_factory=dict)

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    @property
    def is_first_of_node(self) -> bool:
        return self.local_rank == 0

    @property
    def node(self) -> int:
        """Of this rank, among the nodes."""
        return int(os.environ.get("GROUP_RANK", "0"))

    @property
    def is_one_node(self) -> bool:
        return self.size == int(os.environ.get("LOCAL_WORLD_SIZE", "1"))

    def patient(self, count: int) -> "World | None":
        """The first `count` ranks as a world that waits as long as starting up may take; None on the others.

        Raises ValueError for more ranks than there are.
        """
        if not 0 < count <= self.size:
            raise ValueError(f"{count} ranks of {self.size}")
        group = self._patient if count == self.size else dist.new_group(list(range(count)), timeout=_patience())
        within = self.rank < count
        return World(self.rank, count, self.device, self.local_rank, group, group) if within else None

    def form_teams(self, teams: Sequence[tuple[int, ...]]) -> None:
        """Make a process group for each team, so that a team's collectives are its own affair."""
        for team in teams:
            alone = len(teams) > 1
            self._teams[team] = dist.new_group(list(team), timeout=_timeout()) if alone else dist.group.WORLD

    def synchronised(self, model: nn.Module) -> "Synchronised":
        """The model under DDP, for use with `no_sync` on all but a rank's last pass of a step.

        The weights are equal already: they are drawn from the seed, or have been broadcast.
        """
        if self.size == 1:
            return Alone(model)
        return DistributedDataParallel(model, gradient_as_bucket_view=True, init_sync=False)

    def gather_keys(self, mine: Sequence[Tensor], group: GroupShare, team: tuple[int, ...]) -> Tensor:
        """Keys [slices * B, E] of a contrastive group in slice order, from this rank's [B, E] of each of its slices.

        Only the team takes part. Ranks may hold unequally many slices, so shares travel padded to the largest.
        """
        if len(team) == 1:
            return torch.cat(list(mine))
        most = max(map(len, group.by_rank))
        share = mine[0].new_zeros(most, *mine[0].shape)
        torch.stack(list(mine), out=share[: len(mine)])
        gathered = share.new_empty(len(team), *share.shape)
        dist.all_gather_into_tensor(gathered.flatten(0, 1), share, group=self._teams[team])
        place = {index: (rank, turn) for rank, held in enumerate(group.by_rank) for turn, index in enumerate(held)}
        return torch.cat([gathered[place[index]] for index in range(len(place))])

    def sum(self, values: Tensor) -> Tensor:
        """Sum over ranks, the same on all of them: what is not finite on one is not finite anywhere."""
        total = values.clone()
        dist.all_reduce(total, group=self._group)
        return total

    def gather(self, values: Tensor) -> Tensor:
        """Every rank's values, of one shape, in rank order: one dimension more, in front."""
        gathered = values.new_empty(self.size, *values.shape)
        dist.all_gather_into_tensor(gathered.flatten(), values.flatten().contiguous(), group=self._group)
        return gathered

    def collect(self, item: Any) -> list[Any]:
        """Every rank's item (picklable), in rank order, on every rank. Waits as long as starting up may take."""
        items: list[Any] = [None] * self.size
        dist.all_gather_object(items, item, group=self._patient)
        return items

    def share(self, item: Any) -> Any:
        """Rank 0's item (picklable) on every rank."""
        items = [item]
        dist.broadcast_object_list(items, device=self.device, group=self._group)
        return items[0]

    def broadcast_state(self, state: dict[str, Any] | None, source: int) -> dict[str, Any] | None:
        """The source rank's state on every rank: nested dicts and lists with tensors, which end up on this device.

        Waits as long as starting up may take.
        """
        tensors: list[Tensor] = []
        skeleton = [without_tensors(state, tensors) if self.rank == source else None]
        dist.broadcast_object_list(skeleton, src=source, device=self.device, group=self._patient)
        if self.rank == source:
            tensors = [tensor.to(self.device, copy=True).contiguous() for tensor in tensors]  # it may map a file
        else:
            tensors = [torch.empty(p.shape, dtype=p.dtype, device=self.device) for p in places(skeleton[0])]
        for tensor in tensors:
            dist.broadcast(tensor, src=source, group=self._patient)
        whole: dict[str, Any] | None = with_tensors(skeleton[0], tensors)
        return whole


@contextmanager
def joined_world() -> Iterator[World]:
    """Join the other processes that torchrun started: NCCL on GPUs, gloo on CPUs.

    A rank that waits longer than MCF_COLLECTIVE_TIMEOUT_SECONDS for the others gives up. Until the first step they
    have MCF_STARTUP_TIMEOUT_SECONDS, because one of them may be listing a data set or reading a checkpoint. A node
    that has gone is noticed long before (trainer/elastic/peers.py). Raises NotEnoughGpus before it joins anybody.
    """
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    processes, gpus = int(os.environ.get("LOCAL_WORLD_SIZE", "1")), torch.cuda.device_count()
    if processes > gpus > 0:
        raise NotEnoughGpus(
            f"processes: asked for {processes}; possible: at most {gpus}, one for each GPU of this node"
        )
    cuda = torch.cuda.is_available()
    device = torch.device("cuda", local_rank) if cuda else torch.device("cpu")
    # float32 is computed in float32: by default torch's convolutions round their inputs to 10 bits (TF32) on a GPU.
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    if cuda:
        torch.cuda.set_device(device)
    timeout = _timeout()
    backend, device_id = ("nccl", device) if cuda else ("gloo", None)
    # The others may have gone meanwhile, and then the agent ends this process: it has nothing to save yet.
    with ended_at_once():
        if "RANK" in os.environ:
            dist.init_process_group(backend, timeout=timeout, device_id=device_id)
        else:
            alone = dist.HashStore()  # type: ignore[attr-defined]
            dist.init_process_group(backend, store=alone, rank=0, world_size=1, device_id=device_id)
        world = World(
            rank=dist.get_rank(), size=dist.get_world_size(), device=device, local_rank=local_rank,
            _patient=dist.new_group(timeout=_patience()),
        )  # fmt: skip
        # Without torchrun's agents nobody would go on without the one that is missing.
        watches = watch_over(world) if "GROUP_RANK" in os.environ else []
    orderly = True
    try:
        yield world
    except Exception:
        orderly = False
        raise
    finally:
        # Also after an error: who writes down how the run has failed must not be ended for want of the others.
        for watch in watches:
            watch.stop(orderly=orderly)
    # Not after an error: the others may be gone, and leaving in good order would wait for them.
    dist.destroy_process_group()


def watch_over(world: World) -> list[PeerWatch | SiblingWatch]:
    """Whoever is there to be missed: the other nodes, and the other workers of this one. Every rank calls this."""
    round_id = world.share(uuid.uuid4().hex)
    processes = world.collect((world.node, os.getpid()))
    here = {rank: pid for rank, (node, pid) in enumerate(processes) if node == world.node and rank != world.rank}
    watches: list[PeerWatch | SiblingWatch] = []
    if here:
        watches.append(SiblingWatch(round_id, world.rank, here))
    if not world.is_one_node:
        watches.append(PeerWatch(round_id, beats=world.is_first_of_node))
    return watches


def _timeout() -> timedelta:
    return timedelta(seconds=float(os.environ.get("MCF_COLLECTIVE_TIMEOUT_SECONDS", "120")))


def _patience() -> timedelta:
    return timedelta(seconds=float(os.environ.get("MCF_STARTUP_TIMEOUT_SECONDS", "900")))
