"""What a node pool has free now, and in plain words what it lacks. Pure: what there is is an argument."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from kubernetes.utils import quantity

from k8s.pods import Object, resources_of
from k8s.pools import Pool

Amounts = dict[str, Decimal]
Usage = Mapping[str, Amounts]
"""What is requested on each node."""
# Of no scheduler's interest: they keep no pod away.
HARMLESS = "PreferNoSchedule"


@dataclass(frozen=True)
class Node:
    """One node that a pool's pods may go to."""

    name: str
    ready: bool
    allocatable: Amounts
    free: Amounts


@dataclass(frozen=True)
class PoolState:
    """A pool as it is now."""

    name: str
    nodes: int
    """Ready and schedulable."""
    nodes_not_ready: int
    gpus: int
    gpus_free: int
    room: int
    """Pods of full size, all of a node's GPUs or one process where it has none, that would start at once."""


def used_on(pods: Sequence[Object]) -> Usage:
    """What these pods request, by node."""
    used: dict[str, Amounts] = {}
    for pod in pods:
        if name := pod["spec"].get("nodeName"):
            used[name] = _sum(used.get(name, {}), _requests(pod["spec"]))
    return used


def nodes_of(pool: Pool, nodes: Sequence[Object], used: Usage) -> list[Node]:
    """The pool's nodes by its selector and tolerations, with what is left of them. Affinity is not looked at."""
    return [
        _node(each, used.get(each["metadata"]["name"], {}))
        for each in nodes
        if _selected(pool.node_selector, each) and _tolerated(pool.tolerations, each)
    ]


def state_of_pool(name: str, pool: Pool, nodes: Sequence[Node]) -> PoolState:
    ready = [node for node in nodes if node.ready]
    return PoolState(
        name=name,
        nodes=len(ready),
        nodes_not_ready=len(nodes) - len(ready),
        gpus=sum(_whole(node.allocatable, pool.gpu_resource) for node in ready) if pool.gpus else 0,
        gpus_free=sum(_whole(node.free, pool.gpu_resource) for node in ready) if pool.gpus else 0,
        room=room(pool, max(1, pool.gpus), nodes),
    )


def room(pool: Pool, processes: int, nodes: Sequence[Node]) -> int:
    """How many pods of so many processes would start now."""
    wanted = {name: _amount(amount) for name, amount in resources_of(pool, processes).items()}
    return sum(_times(wanted, node.free) for node in nodes if node.ready)


def shortage(name: str, pool: Pool, processes: int, nodes: Sequence[Node]) -> str:
    """Why a pod of so many processes finds no place; empty where one is free by these numbers."""
    ready = [node for node in nodes if node.ready]
    if not nodes:
        return f"the pool {name} has no node"
    if not ready:
        return f"none of the {_count(len(nodes), 'node')} of the pool {name} is ready"
    if room(pool, processes, ready):
        return ""
    if pool.gpus:
        total = sum(_whole(node.allocatable, pool.gpu_resource) for node in ready)
        most = max(_whole(node.free, pool.gpu_resource) for node in ready)
        if most < processes:
            free = sum(_whole(node.free, pool.gpu_resource) for node in ready)
            where = "" if len(ready) == 1 else f" on {len(ready)} nodes"
            wanted = f"{processes} free GPU{'s' if processes > 1 else ''}"
            return f"no node of the pool {name} has {wanted}: {total - free} of {total} busy{where}"
    asked = resources_of(pool, processes)
    each = [f"{_rounded(node.free, 'cpu')} CPUs and {_gib(node.free)} on {node.name}" for node in ready[:3]]
    return (
        f"no node of the pool {name} has {asked['cpu']} CPUs and {asked['memory']} of memory free: "
        f"{', '.join(each)}{', ...' if len(ready) > 3 else ''}"
    )


def _node(found: Object, used: Amounts) -> Node:
    allocatable = {name: _amount(amount) for name, amount in found["status"].get("allocatable", {}).items()}
    free = {name: amount - used.get(name, Decimal(0)) for name, amount in allocatable.items()}
    return Node(found["metadata"]["name"], is_ready(found), allocatable, free)


def is_ready(node: Object) -> bool:
    return any(each["type"] == "Ready" and each["status"] == "True" for each in node["status"].get("conditions", []))


def _selected(selector: Mapping[str, str], node: Object) -> bool:
    labels = node["metadata"].get("labels", {})
    return all(labels.get(name) == value for name, value in selector.items())


def _tolerated(tolerations: Sequence[Mapping[str, Any]], node: Object) -> bool:
    """Nodes that are away for the moment keep their place in the pool: that they are not ready is said of them."""
    taints = node["spec"].get("taints", [])
    lasting = [each for each in taints if not each["key"].startswith("node.kubernetes.io/")]
    cordoned = node["spec"].get("unschedulable", False)
    return not cordoned and all(
        taint["effect"] == HARMLESS or any(_tolerates(each, taint) for each in tolerations) for taint in lasting
    )


def _tolerates(toleration: Mapping[str, Any], taint: Mapping[str, Any]) -> bool:
    if toleration.get("effect") not in (None, "", taint["effect"]):
        return False
    if toleration.get("operator") == "Exists":
        return toleration.get("key") in (None, "", taint["key"])
    return bool(toleration.get("key") == taint["key"] and toleration.get("value", "") == taint.get("value", ""))


def _requests(spec: Mapping[str, Any]) -> Amounts:
    """What the scheduler reserves: all containers together, or the largest of those that run before them."""
    together: Amounts = {}
    for container in spec.get("containers", []):
        together = _sum(together, _amounts(container))
    for container in spec.get("initContainers", []):
        alone = _amounts(container)
        together = {name: max(together.get(name, Decimal(0)), alone.get(name, Decimal(0))) for name in together | alone}
    return together


def _amounts(container: Mapping[str, Any]) -> Amounts:
    requests = container.get("resources", {}).get("requests") or {}
    return {name: _amount(amount) for name, amount in requests.items()}


def _amount(text: str) -> Decimal:
    parsed: Decimal = quantity.parse_quantity(text)  # type: ignore[no-untyped-call]
    return parsed


def _times(wanted: Amounts, free: Amounts) -> int:
    """How often `wanted` fits."""
    return max(0, min(int(free.get(name, Decimal(0)) // amount) for name, amount in wanted.items() if amount))


def _sum(one: Amounts, other: Amounts) -> Amounts:
    return {name: one.get(name, Decimal(0)) + other.get(name, Decimal(0)) for name in one | other}


def _whole(amounts: Amounts, name: str) -> int:
    return int(max(Decimal(0), amounts.get(name, Decimal(0))))


def _rounded(amounts: Amounts, name: str) -> str:
    return f"{max(Decimal(0), amounts.get(name, Decimal(0))):.3g}"


def _gib(amounts: Amounts) -> str:
    return f"{float(max(Decimal(0), amounts.get('memory', Decimal(0)))) / 2**30:.3g}Gi"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
