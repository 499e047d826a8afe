"""What is remembered of watched objects: what somebody here reads (observed.py, renewal.py, scheduler.py, logs.py).

Pure. The objects of an attempt that has ended stay for `ttl_seconds`, a day by default. Whole ones take 270 kB of
memory an attempt, and most of that says which controller has set which field, or how a pod is to be made.
"""

from k8s.pods import Object

EVENT = ("reason", "message", "lastTimestamp", "eventTime")


def of_attempt(job: Object) -> Object:
    """A JobSet or Volcano job: whether it waits, and for what; its pods' templates are nobody's business any more."""
    spec = {name: value for name, value in job["spec"].items() if name not in ("replicatedJobs", "tasks")}
    return {**_plain(job), "spec": spec}


def of_pod(pod: Object) -> Object:
    spec = {name: value for name, value in pod.get("spec", {}).items() if name == "nodeName"}
    return {**_plain(pod), "spec": spec}


def of_child(job: Object) -> Object:
    """A Job of a JobSet. One that goes on is kept whole, as it may have to be made anew."""
    conditions = job.get("status", {}).get("conditions", [])
    has_ended = any(each["type"] in ("Complete", "Failed") and each["status"] == "True" for each in conditions)
    return {**_plain(job), "spec": {}} if has_ended else _plain(job)


def of_event(event: Object) -> Object:
    about = event.get("involvedObject", {})
    found = {name: event[name] for name in EVENT if event.get(name) is not None}
    metadata = {name: event["metadata"].get(name) for name in ("name", "creationTimestamp", "resourceVersion")}
    return {**found, "metadata": metadata, "involvedObject": {name: about.get(name) for name in ("kind", "name")}}


def _plain(found: Object) -> Object:
    metadata = {name: value for name, value in found["metadata"].items() if name != "managedFields"}
    return {**found, "metadata": metadata}
