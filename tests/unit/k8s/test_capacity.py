"""What a pool has free, and in plain words what it lacks."""

from typing import Any

import pytest

from k8s.capacity import nodes_of, room, shortage, state_of_pool, used_on
from k8s.pools import Pool

POOL = Pool(
    image="mcf:1", gpus=8, cpu="4", memory="100Gi", node_selector={"pool": "spot"},
    tolerations=({"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"},),
)  # fmt: skip
CPU = Pool(image="mcf:1", cpu="500m", memory="2Gi")


def node(name: str, *, pool: str = "spot", ready: bool = True, cpu: str = "96", **spec: Any) -> dict[str, Any]:
    return {
        "metadata": {"name": name, "labels": {"pool": pool}}, "spec": spec,
        "status": {
            "allocatable": {"cpu": cpu, "memory": "400Gi", "nvidia.com/gpu": "8"},
            "conditions": [{"type": "Ready", "status": str(ready)}],
        },
    }  # fmt: skip


def pod(on: str, gpus: int = 0, cpu: str = "1", before: str = "0") -> dict[str, Any]:
    requests = {"cpu": cpu, "nvidia.com/gpu": str(gpus)}
    first = {"resources": {"requests": {"cpu": before}}}
    return {"spec": {"nodeName": on, "containers": [{"resources": {"requests": requests}}], "initContainers": [first]}}


def lack(nodes: list[dict[str, Any]], pods: list[dict[str, Any]], processes: int = 8, pool: Pool = POOL) -> str:
    return shortage("spot", pool, processes, nodes_of(pool, nodes, used_on(pods)))


@pytest.mark.parametrize(
    ("nodes", "pods", "words"),
    [
        ([], [], "the pool spot has no node"),
        ([node("a", pool="other")], [], "the pool spot has no node"),
        ([node("a", ready=False)], [], "none of the 1 node of the pool spot is ready"),
        ([node("a")], [], ""),
        ([node("a")], [pod("a", 5)], "no node of the pool spot has 8 free GPUs: 5 of 8 busy"),
        ([node("a"), node("b")], [pod("a", 5)], ""),
        (
            [node("a"), node("b")], [pod("a", 5), pod("b", 1)],
            "no node of the pool spot has 8 free GPUs: 6 of 16 busy on 2 nodes",
        ),
        (
            [node("a", cpu="40")], [pod("a", cpu="10")],
            "no node of the pool spot has 32 CPUs and 100Gi of memory free: 30 CPUs and 400Gi on a",
        ),
    ],
)  # fmt: skip
def test_what_a_pool_lacks_is_said_in_plain_words(nodes: list[Any], pods: list[Any], words: str) -> None:
    assert lack(nodes, pods) == words


def test_nodes_that_no_pod_of_the_pool_may_go_to_are_none_of_it() -> None:
    gpu = {"key": "nvidia.com/gpu", "effect": "NoSchedule", "value": "present"}
    theirs = {"key": "team", "effect": "NoSchedule", "value": "other"}
    away = {"key": "node.kubernetes.io/unreachable", "effect": "NoExecute"}
    soft = {"key": "team", "effect": "PreferNoSchedule", "value": "other"}
    nodes = [node("a", taints=[gpu, soft]), node("b", taints=[theirs]), node("c", taints=[away], ready=False)]
    assert [found.name for found in nodes_of(POOL, [*nodes, node("d", unschedulable=True)], {})] == ["a", "c"]
    assert [found.name for found in nodes_of(CPU, nodes, {})] == ["c"]


def test_room_is_counted_in_whole_pods_by_what_is_scarcest() -> None:
    found = nodes_of(POOL, [node("a"), node("b"), node("c", ready=False)], used_on([pod("a", 4, before="90")]))
    # Of a's 96 CPUs 90 are taken while its pod starts.
    assert [room(POOL, processes, found) for processes in (1, 4, 8)] == [1 + 4, 2, 1]
    state = state_of_pool("spot", POOL, found)
    assert (state.nodes, state.nodes_not_ready, state.gpus, state.gpus_free, state.room) == (2, 1, 16, 12, 1)
    assert state_of_pool("cpu", CPU, found).gpus == 0
