"""An attempt as a JobSet (v1alpha2): the agents meet in a small pod, and each node is a pod of an Indexed Job.

Pure. What each setting is for was seen on a real cluster; without any one of them some loss ends the attempt:

    publishNotReadyAddresses             agents find the store before its pod counts as ready
    successPolicy over the workers       the store never ends by itself
    podReplacementPolicy Failed          a new pod only when the old one is gone: two of one index would share a rank
    podFailurePolicy ignoring            a reclaimed or drained node is nobody's failure
      DisruptionTarget
    backoffLimit                         every replaced pod costs one; then the service makes the next attempt
"""

from torchx.specs import AppDef

from k8s.pods import PORT, Manifest, rendezvous_pod, worker_pod
from k8s.pools import Pool

RENDEZVOUS, WORKER = "rendezvous", "worker"
PREFIX = "mcf-"
LABEL = "mcf.dev/attempt"
BACKOFF_LIMIT = 20


def jobset_for(app: AppDef, pool: Pool, *, processes: int, namespace: str) -> Manifest:
    """The manifest of an attempt; `processes`: workers of one node. Its name is the attempt's, whoever submits it."""
    [role] = app.roles
    name = jobset_name(app.name)
    endpoint = f"{name}-{RENDEZVOUS}-0-0.{name}:{PORT}"
    labels = {LABEL: app.name, **pool.labels}
    if pool.queue and pool.queue.kind == "kueue":
        labels["kueue.x-k8s.io/queue-name"] = pool.queue.name
        if pool.queue.priority_class:
            labels["kueue.x-k8s.io/priority-class"] = pool.queue.priority_class
    # Labels that JobSet gives to the workers' pods.
    group = {"jobset.sigs.k8s.io/jobset-name": name, "jobset.sigs.k8s.io/replicatedjob-name": WORKER}
    workers = {
        "parallelism": role.num_replicas,
        "completions": role.num_replicas,
        "completionMode": "Indexed",
        "backoffLimit": BACKOFF_LIMIT,
        "podReplacementPolicy": "Failed",
        "podFailurePolicy": {"rules": [{"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget"}]}]},
        "template": worker_pod(role, pool, processes=processes, endpoint=endpoint, group=group),
    }
    if pool.deadline_seconds:
        workers["activeDeadlineSeconds"] = pool.deadline_seconds
    store = {
        "parallelism": 1,
        "completions": 1,
        "completionMode": "Indexed",
        "backoffLimit": BACKOFF_LIMIT,
        "template": rendezvous_pod(role, pool),
    }
    return {
        "apiVersion": "jobset.x-k8s.io/v1alpha2",
        "kind": "JobSet",
        "metadata": {"name": name, "namespace": namespace, "labels": labels, "annotations": pool.annotations},
        "spec": {
            # Kueue lets it go when there is room.
            "suspend": bool(pool.queue and pool.queue.kind == "kueue"),
            "network": {"enableDNSHostnames": True, "publishNotReadyAddresses": True},
            "successPolicy": {"operator": "All", "targetReplicatedJobs": [WORKER]},
            # A Job that fails for good is the end of the attempt: the service makes the next one.
            "failurePolicy": {"maxRestarts": 0},
            "ttlSecondsAfterFinished": pool.ttl_seconds,
            "replicatedJobs": [
                {"name": RENDEZVOUS, "replicas": 1, "template": {"spec": store}},
                {"name": WORKER, "replicas": 1, "template": {"spec": workers}},
            ],
        },
    }


def jobset_name(attempt: str) -> str:
    """A name that a Service may have as well: it begins with a letter."""
    return f"{PREFIX}{attempt}"
