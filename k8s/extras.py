"""Nodes of an attempt beyond its core, each a Job of one pod that joins the others when it gets a node. Pure.

The core, the rendezvous pod and `min_nodes` workers, is one JobSet, admitted whole. What is beyond it is sent node by
node, so that a quota that fits the core starts the run, free quota is used, and one node at a time is given back. The
numbers of a run do not depend on how many nodes there are (docs/decisions/0027-core-and-extra-nodes.md).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from torchx.specs import AppDef

from k8s.jobset import BACKOFF_LIMIT, endpoint, job_name
from k8s.pods import ATTEMPT, NODE, POOL, ROLE, WORKER, Manifest, Object, queue_labels, said, worker_pod
from k8s.pools import Pool
from k8s.renewal import is_short

# A node that has waited so long goes to another of its pools that has room.
MOVE_AFTER = timedelta(seconds=60)


@dataclass(frozen=True)
class Plan:
    """What is to be done about the extra nodes of an attempt."""

    remove: tuple[Object, ...] = ()
    create: tuple[tuple[int, str], ...] = ()
    """Number of a node, and the pool it goes to."""


def extra_job(app: AppDef, pool: Pool, node: int, core: Object, namespace: str) -> Manifest:
    """The manifest of one node; its name is the attempt's and the node's, whoever submits it.

    `app`: the attempt as a node of this pool runs it; `core`: its JobSet, with which the Job is gone at the latest.
    """
    [role] = app.roles
    queue, processes = pool.queue, role.metadata["processes_per_node"]
    queued = queue_labels(pool, queue.extra_priority_class or queue.priority_class) if queue else {}
    labels = {ATTEMPT: app.name, ROLE: WORKER, NODE: str(node), POOL: role.metadata["pool"]}
    # No controller of it: Kueue would take the Job for a part of the JobSet's workload.
    owner = {
        "apiVersion": core["apiVersion"], "kind": core["kind"], "name": core["metadata"]["name"],
        "uid": core["metadata"]["uid"], "controller": False, "blockOwnerDeletion": False,
    }  # fmt: skip
    spec = {
        "suspend": bool(queued),
        "parallelism": 1,
        "completions": 1,
        "backoffLimit": BACKOFF_LIMIT,
        "podReplacementPolicy": "TerminatingOrFailed",
        "ttlSecondsAfterFinished": pool.ttl_seconds,
        "template": worker_pod(
            role, pool, node=node, endpoint=endpoint(app.name), attempt=app.name, processes=processes
        ),
    }
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": said(
            {
                "name": f"{job_name(app.name)}-x{node}", "namespace": namespace,
                "labels": {**pool.labels, **labels, **queued}, "annotations": pool.annotations,
                "ownerReferences": [owner],
            }
        ),
        "spec": spec,
    }  # fmt: skip


def plan(
    wanted: range, pools: Sequence[str], room: Callable[[str], int], jobs: Sequence[Object], pods: Sequence[Object],
    now: datetime,
) -> Plan:  # fmt: skip
    """What is to be removed, and created where nothing of that number is any more.

    `wanted`: numbers of the nodes beyond the core; `pools`: theirs, the best first; `room`: for how many of them a pool
    has room now, asked only where there is a choice; `jobs`, `pods`: the extra ones that there are.
    """
    there = [job for job in jobs if "deletionTimestamp" not in job["metadata"]]
    remove = [job for job in there if _is_lost(job, wanted, pools, pods)]
    missing = [node for node in wanted if node not in map(_number, jobs)]
    has_choice = len(pools) > 1
    waits = [job for job in there if job not in remove and _waits(job, pods, now)] if has_choice else []
    left = {name: room(name) for name in pools} if has_choice and (missing or waits) else {}
    create = []
    for node in missing:
        pool = next((name for name in pools if left.get(name, 0) > 0), pools[0])
        left[pool] = left.get(pool, 0) - 1
        create.append((node, pool))
    for job in waits:
        if other := next((name for name in pools if name != _pool(job) and left[name] > 0), None):
            left[other] -= 1
            remove.append(job)
    return Plan(tuple(remove), tuple(create))


def _is_lost(job: Object, wanted: range, pools: Sequence[str], pods: Sequence[Object]) -> bool:
    """Nobody's, given up, or held up by its back-off. (Not one that has ended well: it has seen the end of the run.)"""
    own = [pod for pod in pods if _number(pod) == _number(job)]
    return _number(job) not in wanted or _pool(job) not in pools or _has_failed(job) or is_short(job, own)


def _waits(job: Object, pods: Sequence[Object], now: datetime) -> bool:
    """For a node or in a queue, and has done so for long."""
    own = [pod for pod in pods if _number(pod) == _number(job)]
    waited = now - datetime.fromisoformat(job["metadata"]["creationTimestamp"])
    return waited > MOVE_AFTER and not any(map(_is_placed, own))


def _has_failed(job: Object) -> bool:
    conditions = job.get("status", {}).get("conditions", [])
    return any(each["type"] in ("Failed", "FailureTarget") and each["status"] == "True" for each in conditions)


def _is_placed(pod: Object) -> bool:
    conditions = pod.get("status", {}).get("conditions", [])
    return any(each["type"] == "PodScheduled" and each["status"] == "True" for each in conditions)


def _number(found: Object) -> int:
    return int(found["metadata"]["labels"][NODE])


def _pool(job: Object) -> str:
    return str(job["metadata"]["labels"].get(POOL, ""))
