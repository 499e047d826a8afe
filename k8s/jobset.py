"""An attempt as a JobSet (v1alpha2): the agents meet in a small pod, and each node is a pod of an Indexed Job.

Nodes beyond the core may be Jobs of their own instead (extras.py).

Pure. What each setting is for was seen on a real cluster; without any one of them some loss ends the attempt, or holds
it up for minutes:

    publishNotReadyAddresses      agents find the store before its pod counts as ready
    restartPolicy OnFailure       an agent that ends is back in a second, in its pod; a new pod waits for the Job's
                                  back-off of ten seconds and more (one that has lost the store stays: agent.py)
    podReplacementPolicy          the pod of a dead node is never seen to end: its successor must not wait for that.
      TerminatingOrFailed         Agents take any free rank, so two pods of one index do no harm
    successPolicy of the Job      workers end well only once rank 0 has concluded the run; pods that never found a
                                  node are not waited for
    successPolicy of the JobSet   the store never ends by itself
    backoffLimit, maxRestarts     every replaced pod and every restart costs one; then JobSet begins again, and after
                                  that the service makes the next attempt
    needed (an annotation)        with fewer pods left nobody trains: then the Job's back-off is not waited for
                                  (renewal.py)
"""

from torchx.specs import AppDef

from k8s.pods import (
    ATTEMPT,
    CORE,
    NEEDED,
    POOL,
    PORT,
    PROCESSES,
    RENDEZVOUS,
    ROLE,
    WORKER,
    Manifest,
    core_nodes,
    least_nodes,
    queue_labels,
    rendezvous_pod,
    worker_pod,
)
from k8s.pools import Pool

PREFIX = "mcf-"
BACKOFF_LIMIT, MAX_RESTARTS = 20, 2


def jobset_for(app: AppDef, pool: Pool, *, processes: int, namespace: str) -> Manifest:
    """The manifest of an attempt; `processes`: workers of one node. Its name is the attempt's, whoever submits it."""
    [role] = app.roles
    name = job_name(app.name)
    queued = queue_labels(pool, pool.queue.priority_class) if pool.queue else {}
    labels = {**pool.labels, ATTEMPT: app.name, POOL: role.metadata["pool"], **queued}
    nodes, met = core_nodes(role, pool), endpoint(app.name)
    annotations = {**pool.annotations, PROCESSES: str(processes)}
    if nodes < role.num_replicas:
        annotations[CORE] = str(nodes)
    workers = {
        "parallelism": nodes,
        "completions": nodes,
        "completionMode": "Indexed",
        "backoffLimit": BACKOFF_LIMIT,
        "podReplacementPolicy": "TerminatingOrFailed",
        "successPolicy": {"rules": [{"succeededCount": 1}]},
        "template": worker_pod(role, pool, attempt=app.name, processes=processes, endpoint=met),
    }
    if pool.deadline_seconds:
        workers["activeDeadlineSeconds"] = pool.deadline_seconds
    store = {
        "parallelism": 1,
        "completions": 1,
        "completionMode": "Indexed",
        "backoffLimit": BACKOFF_LIMIT,
        "podReplacementPolicy": "TerminatingOrFailed",
        "template": rendezvous_pod(pool, attempt=app.name),
    }
    return {
        "apiVersion": "jobset.x-k8s.io/v1alpha2",
        "kind": "JobSet",
        "metadata": {"name": name, "namespace": namespace, "labels": labels, "annotations": annotations},
        "spec": {
            # Kueue lets it go when there is room.
            "suspend": bool(queued),
            "network": {"enableDNSHostnames": True, "publishNotReadyAddresses": True},
            "successPolicy": {"operator": "All", "targetReplicatedJobs": [WORKER]},
            "failurePolicy": {
                "maxRestarts": MAX_RESTARTS,
                # The deadline is one of the attempt; begun again it would never come.
                "rules": [{"action": "FailJobSet", "onJobFailureReasons": ["DeadlineExceeded"]}],
            },
            "ttlSecondsAfterFinished": pool.ttl_seconds,
            "replicatedJobs": [
                _one_job(app.name, RENDEZVOUS, 1, store),
                _one_job(app.name, WORKER, least_nodes(role), workers),
            ],
        },
    }


def _one_job(attempt: str, name: str, needed: int, spec: Manifest) -> Manifest:
    """A replicated job of one Job; `needed`: so many of its pods it takes to train."""
    metadata = {"labels": {ATTEMPT: attempt, ROLE: name}, "annotations": {NEEDED: str(needed)}}
    return {"name": name, "replicas": 1, "template": {"metadata": metadata, "spec": spec}}


def endpoint(attempt: str) -> str:
    """Where the agents of an attempt meet."""
    name = job_name(attempt)
    return f"{name}-{RENDEZVOUS}-0-0.{name}:{PORT}"


def job_name(attempt: str) -> str:
    """A name that a Service may have as well: it begins with a letter."""
    return f"{PREFIX}{attempt}"
