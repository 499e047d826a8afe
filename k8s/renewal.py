"""When a Job that a JobSet has made is made anew, and when a pod is given up: their successors would be kept waiting.

Pure. A Job waits 10 s after the first pod that it loses, twice that after the next, and so on up to ten minutes, and
it never forgets. That is meant for programs that fail; here pods are lost to spot reclaims and dead nodes, dozens of
times in the life of an attempt (docs/decisions/0017-a-job-is-made-anew.md).
"""

from collections.abc import Container, Sequence
from copy import deepcopy

from k8s.pods import NEEDED, Object

# Losses after which the nodes that are left, and wait for others, are given up with their Job: the next back-off of
# 40 s and more costs more than their start.
MANY_LOSSES = 3
# Reason of a pod's condition DisruptionTarget.
BY_TAINT = "DeletionByTaintManager"
ENDED = ("Complete", "Failed", "FailureTarget", "SuccessCriteriaMet")


def is_short(job: Object, pods: Sequence[Object]) -> bool:
    """Whether the Job has lost pods without which nobody can train; `pods`: all of its role."""
    status = job.get("status", {})
    if "deletionTimestamp" in job["metadata"] or job["spec"].get("suspend"):
        return False
    if any(each["type"] in ENDED and each["status"] == "True" for each in status.get("conditions", [])):
        return False
    if any(pod.get("status", {}).get("phase") == "Succeeded" for pod in pods):
        return False
    lost = int(status.get("failed", 0)) + int(status.get("terminating", 0))
    # By its own count, too: then it has seen them go and has made no other ones.
    alive = max(sum(_lives(pod) for pod in pods), int(status.get("active", 0)))
    needed = int(job["metadata"].get("annotations", {}).get(NEEDED, 1))
    return alive < needed and lost >= (MANY_LOSSES if alive else 1)


def is_stranded(pod: Object, answering: Container[str]) -> bool:
    """Whether Kubernetes has evicted a pod because its node has gone: nobody will ever say that it has ended.

    A Job makes its successor nevertheless. Volcano's pods have fixed names: it waits until this one is no more. (A pod
    that was told to stop otherwise keeps its grace: its node may be back in a moment.) `answering`: names of the nodes
    that are there.
    """
    conditions = pod.get("status", {}).get("conditions", [])
    evicted = any(each["type"] == "DisruptionTarget" and each.get("reason") == BY_TAINT for each in conditions)
    node = pod.get("spec", {}).get("nodeName")
    return "deletionTimestamp" in pod["metadata"] and evicted and bool(node) and node not in answering


def anew(job: Object) -> Object:
    """The same Job as nobody has sent it yet: without what the API server and its controllers have added."""
    fresh = deepcopy(job)
    metadata, spec = fresh["metadata"], fresh["spec"]
    fresh.pop("status", None)
    for name in "uid", "resourceVersion", "creationTimestamp", "generation", "managedFields", "finalizers":
        metadata.pop(name, None)
    # The Job's own number, by which it knows its pods.
    spec.pop("selector", None)
    for labels in metadata.get("labels", {}), spec["template"]["metadata"].get("labels", {}):
        for name in "controller-uid", "batch.kubernetes.io/controller-uid":
            labels.pop(name, None)
    return {"apiVersion": "batch/v1", "kind": "Job", **fresh}


def _lives(pod: Object) -> bool:
    return "deletionTimestamp" not in pod["metadata"] and pod.get("status", {}).get("phase") in ("Pending", "Running")
