"""What a placement asks of pools that they cannot do."""

import itertools
from collections.abc import Iterator, Mapping

from k8s.pools import Pool
from trainer.contract import Placement
from trainer.contract.problems import Problem


def misplaced(
    placement: Placement, pools: Mapping[str, Pool] | None, *, needs_gpu: bool
) -> Iterator[Problem]:  # fmt: skip
    """What no pool of that name can do. `pools`: those of the cluster; None = any name will do."""
    if pools is None:
        return
    for field, names in ("placement.pool", placement.pools), ("placement.extra.pool", placement.extra_pools):
        for name in names:
            yield from _cannot(field, name, pools, placement.processes_per_node, needs_gpu=needs_gpu)
    yield from _cannot_mix(placement, pools)


def _cannot(
    field: str, name: str, pools: Mapping[str, Pool], processes: int, *, needs_gpu: bool
) -> Iterator[Problem]:  # fmt: skip
    pool = pools.get(name)
    if pool is None:
        yield Problem(field=field, asked=name, possible=", ".join(sorted(pools)) or "none")
    elif needs_gpu and not pool.gpus:
        yield Problem(field="data.decoder", asked="nvjpeg", possible=f"cpu in the pool {name}, whose nodes have no GPU")
    elif pool.gpus and processes > pool.gpus:
        yield Problem(
            field="placement.processes_per_node", asked=str(processes),
            possible=f"1 to {pool.gpus}, the GPUs of a node of the pool {name}",
        )  # fmt: skip


def _cannot_mix(placement: Placement, pools: Mapping[str, Pool]) -> Iterator[Problem]:
    """Nodes of one run in pools that do not go together. A run that may go to several pools may go to each."""
    core, extra = ([name for name in names if name in pools] for names in (placement.pools, placement.extra_pools))
    for name, other in itertools.product(extra, core):
        one, two = pools[name], pools[other]
        if bool(one.gpus) != bool(two.gpus):
            yield _problem(
                name, other, "has GPUs" if one.gpus else "has no GPUs",
                "pools of either kind alone: workers on CPUs and on GPUs cannot train together",
            )  # fmt: skip
        elif _are_of_two_types(one, two) and not (placement.extra and placement.extra.mixed_gpus):
            yield _problem(
                name, other, f"has GPUs of type {one.gpu_type} and not {two.gpu_type}",
                "pools of one gpu_type, or extra.mixed_gpus: true; then the slowest sets the pace",
            )  # fmt: skip


def _are_of_two_types(one: Pool, other: Pool) -> bool:
    """As far as their types are named."""
    return bool(one.gpu_type and other.gpu_type and one.gpu_type != other.gpu_type)


def _problem(name: str, other: str, what: str, possible: str) -> Problem:
    return Problem(field="placement.extra.pool", asked=f"{name}, which {what}, beside {other}", possible=possible)
