"""An attempt as a Volcano job: TorchX's own manifest, with what it lacks laid over it.

Pure. From TorchX come scheduler, queue, priority class, plug-ins, its labels and annotations; the pods are those of
pods.py. What is laid over it, and why (the first row was seen on a real Volcano, the others follow from its source):

    minAvailable, maxRetry,             as TorchX leaves them, one lost pod ends the job; so, it is made anew and the
      RestartPod                        others train on. Every lost pod costs one retry
    TaskFailed -> TerminateJob          containers start again in their pods, and nothing else ends an attempt that
                                        cannot start; a task's maxRetry bounds these starts
    minSuccess 1                        the agent that comes back from the last step has seen all others do so; pods
                                        that never found a node are not waited for
    the deadline, on the store's pod    a worker pod that ends is made anew, and its time would begin again; the store's
                                        pod is there from beginning to end
"""

from dataclasses import replace
from typing import Any

from torchx.schedulers.kubernetes_scheduler import LABEL_REPLICA_ID, LABEL_UNIQUE_NAME, app_to_resource
from torchx.specs import AppDef, Role

from k8s.jobset import job_name
from k8s.pods import (
    ATTEMPT,
    POOL,
    PORT,
    PROCESSES,
    RENDEZVOUS,
    WORKER,
    Manifest,
    core_nodes,
    least_nodes,
    rendezvous_pod,
    worker_pod,
)
from k8s.pools import Pool

# Volcano's label of a pod: which of its task's it is.
INDEX_LABEL = "volcano.sh/task-index"
# Made by Volcano itself.
DEFAULT_QUEUE = "default"
MAX_RETRY = 20
EXTRA = "extra"


class WrongQueue(ValueError):
    """The pool's queue is none of Volcano's."""


def vcjob_for(
    app: AppDef, pool: Pool, *, processes: int, namespace: str, elsewhere: tuple[str, Pool] | None = None
) -> Manifest:
    """The manifest of an attempt; `processes`: workers of one node. Its name is the attempt's, whoever submits it.

    `elsewhere`: name and pool of the nodes beyond the core, where that is another. A job is of one queue.
    """
    [role] = app.roles
    name = job_name(app.name)
    least, core = least_nodes(role), core_nodes(role, pool)
    endpoint = f"{name}-{RENDEZVOUS}-0.{name}:{PORT}"
    nodes = worker_pod(role, pool, attempt=app.name, processes=processes, endpoint=endpoint)
    store = rendezvous_pod(pool, attempt=app.name)
    if pool.deadline_seconds:
        store["spec"]["activeDeadlineSeconds"] = pool.deadline_seconds
    vcjob = _as_torchx_makes_it(app, role, pool)
    stores, workers = vcjob["spec"].pop("tasks")
    return {
        **vcjob,
        "metadata": {
            "name": name,
            "namespace": namespace,
            "labels": {**pool.labels, ATTEMPT: app.name, POOL: role.metadata["pool"]},
            "annotations": {**pool.annotations, PROCESSES: str(processes)},
        },
        "spec": {
            **vcjob["spec"],
            # All or none of these get their nodes; the other workers come when there is room.
            "minAvailable": 1 + least,
            "minSuccess": 1,
            "maxRetry": MAX_RETRY,
            "ttlSecondsAfterFinished": pool.ttl_seconds,
            "tasks": [
                {
                    "name": RENDEZVOUS, "replicas": 1, "minAvailable": 1, "maxRetry": MAX_RETRY,
                    "policies": _policies(PodFailed="TerminateJob" if pool.deadline_seconds else "RestartPod"),
                    "template": _laid_over(stores["template"], store, name),
                },
                {
                    "name": WORKER, "replicas": core, "minAvailable": least, "maxRetry": MAX_RETRY,
                    "policies": _policies(PodFailed="RestartPod", TaskCompleted="CompleteJob"),
                    "template": _laid_over(workers["template"], nodes, name),
                },
                *_beyond(core, role, workers, elsewhere, attempt=app.name, processes=processes, endpoint=endpoint),
            ],
        },
    }  # fmt: skip


def _beyond(
    core: int, role: Role, theirs: dict[str, Any], elsewhere: tuple[str, Pool] | None, *, attempt: str, processes: int,
    endpoint: str,
) -> list[Manifest]:  # fmt: skip
    """The task of the nodes in another pool, which come when there is room; the job goes on without them."""
    if elsewhere is None or role.num_replicas == core:
        return []
    name, pool = elsewhere
    role = replace(role, metadata={**role.metadata, "pool": name})
    pods = worker_pod(role, pool, attempt=attempt, processes=processes, endpoint=endpoint, node=core)
    return [
        {
            "name": EXTRA, "replicas": role.num_replicas - core, "minAvailable": 0, "maxRetry": MAX_RETRY,
            "policies": _policies(PodFailed="RestartPod", TaskFailed=""),
            "template": _laid_over(theirs["template"], pods, job_name(attempt)),
        }
    ]  # fmt: skip


def _as_torchx_makes_it(app: AppDef, role: Role, pool: Pool) -> dict[str, Any]:
    """With one task for each of the two kinds of pods. Its name is another each time."""
    if pool.queue and pool.queue.kind != "volcano":
        raise WrongQueue(
            f"pool {role.metadata['pool']}: its queue {pool.queue.name} is {pool.queue.kind}'s; with Volcano it has to "
            "be {kind: volcano, name: ...}, or none for the queue `default`"
        )
    kinds = AppDef(app.name, roles=[Role(RENDEZVOUS, image=pool.image), Role(role.name, image=pool.image)])
    queue, priority_class = DEFAULT_QUEUE, pool.priority_class
    if pool.queue:
        queue, priority_class = pool.queue.name, pool.queue.priority_class or pool.priority_class
    vcjob: dict[str, Any] = app_to_resource(kinds, queue, pool.service_account, priority_class)
    if pool.scheduler_name:  # its controller writes it into the pods
        vcjob["spec"]["schedulerName"] = pool.scheduler_name
    return vcjob


def _policies(**events: str) -> list[dict[str, str]]:
    """`events` -> what is done then, beside what holds for all pods; "" = nothing."""
    events = {"PodEvicted": "RestartPod", "TaskFailed": "TerminateJob", **events}
    return [{"event": event, "action": action} for event, action in events.items() if action]


def _laid_over(theirs: Any, ours: Manifest, name: str) -> Manifest:
    """The pod template `ours`, with the labels and annotations of TorchX's pod, `theirs`, as well."""
    labels = {**theirs.metadata.labels, LABEL_UNIQUE_NAME: name}
    # One template serves all pods of a task; Volcano numbers them itself.
    del labels[LABEL_REPLICA_ID]
    meta = ours["metadata"]
    return {
        "metadata": {
            "labels": {**labels, **meta.get("labels", {})},
            "annotations": {**theirs.metadata.annotations, **meta.get("annotations", {})},
        },
        "spec": ours["spec"],
    }
