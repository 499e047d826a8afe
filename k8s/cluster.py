"""One namespace of a cluster: attempts' jobs and pods, what happened to them, and the nodes.

Before `start` every question is a request, as suits a command line. After it they are answered from watches, which
cost the API server next to nothing however many attempts there are.
"""

import contextlib
import json
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from http import HTTPStatus
from typing import Any

import urllib3
from kubernetes import client, config
from kubernetes.client.exceptions import ApiException

from k8s.capacity import Usage, used_on
from k8s.pods import ATTEMPT, Object
from k8s.pools import NoCluster
from k8s.remembered import of_attempt, of_child, of_event, of_pod
from k8s.renewal import anew
from k8s.watching import Lister, Watched

# A request that is not answered by then is asked again by whoever looks next; an API server may be away for minutes.
REQUEST_SECONDS = 10
# How old the sum of what all pods of the cluster request may be: it is asked for only while something waits.
USAGE_SECONDS = 10.0
# From the end of a Job until its controller has surely forgotten it.
SEEN_GONE_SECONDS = 0.5


class ClusterAway(Exception):
    """The API server does not answer, or refuses; says which and why."""


@dataclass(frozen=True)
class Kind:
    """The kind of object that an attempt is."""

    group: str
    version: str
    plural: str
    index_label: str
    """Of its pods: which node of the attempt one is."""
    makes_jobs: bool = False
    """Whether its pods are those of Jobs that it makes."""


class Cluster:
    """Raises ClusterAway from every method that asks."""

    def __init__(self, namespace: str, kind: Kind, api: client.ApiClient | None = None) -> None:
        """`api`: None = the pod's own service account, or the kubeconfig of who runs this."""
        self.namespace, self.kind = namespace, kind
        self._api = api or api_client()
        # Generated code, whose types say less than nothing.
        self._core: Any = client.CoreV1Api(self._api)
        self._custom: Any = client.CustomObjectsApi(self._api)
        self._batch: Any = client.BatchV1Api(self._api)
        self._watches: dict[str, Watched] = {}
        self._usage: Usage | None = None
        self._usage_at = -USAGE_SECONDS
        self._usage_lock = threading.Lock()

    def start(self, changed: Callable[[str], None]) -> None:
        """Watch from now on; `changed` is told the name of every attempt that has news, from threads of ours."""

        def news(found: Object) -> None:
            if attempt := found["metadata"].get("labels", {}).get(ATTEMPT):
                changed(attempt)

        listers = self._listers()
        self._watches = {
            "jobs": Watched(self.kind.plural, listers["jobs"], news, kept=of_attempt),
            "pods": Watched("pods", listers["pods"], news, ATTEMPT, of_pod),
            "events": Watched("events", listers["events"], kept=of_event),
            "nodes": Watched("nodes", listers["nodes"]),
        }
        if self.kind.makes_jobs:
            self._watches["children"] = Watched("jobs", listers["children"], news, ATTEMPT, of_child)
        for watch in self._watches.values():
            watch.start()

    def close(self) -> None:
        for watch in self._watches.values():
            watch.stop()
        self._api.close()  # type: ignore[no-untyped-call]

    # ------------------------------------------------------------ what there is

    def job(self, name: str) -> Object | None:
        """The job of that name. That there is none is never taken from a copy, which may be old."""
        if watch := self._watches.get("jobs"):
            self._wait(watch)
            if found := watch.get(name):
                return found
        return self._get_job(name)

    def jobs(self) -> list[Object]:
        """Every attempt's."""
        return self._all("jobs")

    def pods(self, attempt: str) -> list[Object]:
        """Oldest first."""
        return sorted(self._of("pods", attempt), key=lambda pod: str(pod["metadata"]["creationTimestamp"]))

    def all_pods(self) -> list[Object]:
        """Of every attempt."""
        return self._all("pods")

    def children(self, attempt: str) -> list[Object]:
        """The Jobs of an attempt: those that its JobSet has made, and its extra nodes."""
        return self._of("children", attempt)

    def events(self, name: str) -> list[Object]:
        """Of the job of that name and of all that was made for it, but for its extra nodes; Kueue puts its kind before
        the name."""
        beginnings, extra = (f"{name}-", f"jobset-{name}-", f"job-{name}-"), (f"{name}-x", f"job-{name}-x")
        about = ((each.get("involvedObject", {}).get("name", ""), each) for each in self._all("events"))
        mine = ((other, each) for other, each in about if other == name or other.startswith(beginnings))
        return [each for other, each in mine if not other.startswith(extra)]

    def nodes(self) -> list[Object]:
        return self._all("nodes")

    def usage(self) -> Usage:
        """What all pods that have not ended request, by node. A few seconds old, or older while nobody answers.

        Only this namespace's where others' pods may not be looked at: then more seems free than is.
        """
        with self._usage_lock:
            if time.monotonic() - self._usage_at > USAGE_SECONDS:
                try:
                    self._usage = used_on(self._placed_pods())
                except ClusterAway:
                    # Everybody who waits asks: one of them waits for the answer in vain, and not each.
                    if self._usage is None:
                        raise
                self._usage_at = time.monotonic()
            assert self._usage is not None
            return self._usage

    # ------------------------------------------------------------ what is done

    def create(self, manifest: Object) -> None:
        """Of two that create the same, one does, and both are content."""
        kind = self.kind
        try:
            with _asked("create a job"):
                made = self._custom.create_namespaced_custom_object(
                    kind.group, kind.version, self.namespace, kind.plural, manifest, _request_timeout=REQUEST_SECONDS
                )
        except AlreadyThere:
            return
        if watch := self._watches.get("jobs"):
            watch.put(made)

    def delete(self, name: str) -> None:
        """With its pods, each within its grace period; it is there until they are gone. None of that name: done."""
        kind = self.kind
        if (watch := self._watches.get("jobs")) and (found := watch.get(name)) and _is_deleted(found):
            return
        with contextlib.suppress(Missing), _asked("delete a job"):
            self._custom.delete_namespaced_custom_object(
                kind.group, kind.version, self.namespace, kind.plural, name,
                propagation_policy="Foreground", _request_timeout=REQUEST_SECONDS,
            )  # fmt: skip

    def renew(self, child: Object) -> None:
        """Put a Job without a past in the place of one that the attempt's JobSet has made."""
        self.remove(child)
        # Kubernetes remembers the losses of a Job by its name until it has seen that there is none of that name: one
        # made at once would wait out the old back-off of 10 s and more. JobSet makes what it lacks; but its controller
        # may have been on the node that is gone.
        time.sleep(SEEN_GONE_SECONDS)
        self.add(anew(child))

    def add(self, child: Object) -> None:
        """Create a Job of an attempt; of two that create the same, one does, and both are content."""
        with contextlib.suppress(AlreadyThere), _asked("create a job"):
            self._batch.create_namespaced_job(self.namespace, child, _request_timeout=REQUEST_SECONDS)

    def remove(self, child: Object) -> None:
        """Delete this Job of an attempt, and none that has its name since; its pods have their grace period."""
        metadata = child["metadata"]
        options = {"propagationPolicy": "Background", "preconditions": {"uid": metadata["uid"]}}
        with contextlib.suppress(Missing, AlreadyThere), _asked("delete a job"):
            self._batch.delete_namespaced_job(
                metadata["name"], self.namespace, body=options, _request_timeout=REQUEST_SECONDS
            )

    def forget(self, pod: Object) -> None:
        """Take a pod that nobody will hear of again out of the books."""
        metadata = pod["metadata"]
        options = {"gracePeriodSeconds": 0, "preconditions": {"uid": metadata["uid"]}}
        with contextlib.suppress(Missing, AlreadyThere), _asked("delete a pod"):
            self._core.delete_namespaced_pod(
                metadata["name"], self.namespace, body=options, _request_timeout=REQUEST_SECONDS
            )

    def log(self, pod: str, *, previous: bool = False, follow: bool = False, tail: int | None = None) -> Iterator[str]:
        """Lines that a pod has printed, or its container before this one; all, or the last `tail`."""
        with _asked(f"read the log of {pod}"):
            answer = self._core.read_namespaced_pod_log(
                pod, self.namespace, previous=previous, follow=follow, _preload_content=False,
                **({"tail_lines": tail} if tail else {}),
                _request_timeout=None if follow else REQUEST_SECONDS,
            )  # fmt: skip
            with contextlib.closing(answer):
                for line in answer:
                    yield line.decode(errors="replace")

    # ------------------------------------------------------------ requests

    def _listers(self) -> dict[str, Lister]:
        kind, core = self.kind, self._core
        jobs = partial(
            self._custom.list_namespaced_custom_object, kind.group, kind.version, self.namespace, kind.plural,
            label_selector=ATTEMPT,
        )  # fmt: skip
        return {
            "jobs": jobs,
            "pods": partial(core.list_namespaced_pod, self.namespace, label_selector=ATTEMPT),
            "events": partial(core.list_namespaced_event, self.namespace),
            "nodes": core.list_node,
            "children": partial(self._batch.list_namespaced_job, self.namespace, label_selector=ATTEMPT),
        }

    def _all(self, what: str) -> list[Object]:
        if watch := self._watches.get(what):
            self._wait(watch)
            return watch.all()
        return self._list(self._listers()[what])

    def _of(self, what: str, attempt: str) -> list[Object]:
        """What is the attempt's, without a look at all the others."""
        if watch := self._watches.get(what):
            self._wait(watch)
            return watch.labelled(attempt)
        return self._list(partial(self._listers()[what], label_selector=f"{ATTEMPT}={attempt}"))

    def _wait(self, watch: Watched) -> None:
        if not watch.wait(REQUEST_SECONDS):
            raise ClusterAway("the API server of the cluster has not answered yet")

    def _list(self, lister: Lister) -> list[Object]:
        with _asked("list objects"):
            answer = lister(_preload_content=False, _request_timeout=REQUEST_SECONDS)
            with contextlib.closing(answer):
                found: list[Object] = json.loads(answer.data)["items"]
        return found

    def _placed_pods(self) -> list[Object]:
        selector = "status.phase!=Succeeded,status.phase!=Failed"
        try:
            return self._list(partial(self._core.list_pod_for_all_namespaces, field_selector=selector))
        except NotPermitted:
            return self._list(partial(self._core.list_namespaced_pod, self.namespace, field_selector=selector))

    def _get_job(self, name: str) -> Object | None:
        kind = self.kind
        with contextlib.suppress(Missing), _asked("read a job"):
            found: Object = self._custom.get_namespaced_custom_object(
                kind.group, kind.version, self.namespace, kind.plural, name, _request_timeout=REQUEST_SECONDS
            )
            return found
        return None


class Missing(ClusterAway):
    """There is no such object."""


class AlreadyThere(ClusterAway):
    """There is one already."""


class NotPermitted(ClusterAway):
    """Nobody has given us the right to it."""


@contextlib.contextmanager
def _asked(what: str) -> Iterator[None]:
    try:
        yield
    except ApiException as error:
        kinds = {HTTPStatus.NOT_FOUND: Missing, HTTPStatus.CONFLICT: AlreadyThere, HTTPStatus.FORBIDDEN: NotPermitted}
        kind = kinds.get(error.status, ClusterAway)
        raise kind(f"the API server would not {what}: {error.status} {_message(error)}") from error
    except (urllib3.exceptions.HTTPError, OSError) as error:
        raise ClusterAway(f"the API server of the cluster does not answer ({type(error).__name__})") from error


def _is_deleted(found: Object) -> bool:
    return "deletionTimestamp" in found["metadata"]


def _message(error: ApiException) -> str:
    try:
        return str(json.loads(error.body or "")["message"])
    except (TypeError, ValueError, KeyError):
        return str(error.reason)


def api_client() -> client.ApiClient:
    """As the pod's own service account, or as who runs this. Raises NoCluster where there is neither."""
    try:
        config.load_incluster_config()  # type: ignore[no-untyped-call]
    except config.ConfigException:
        try:
            config.load_kube_config()  # type: ignore[no-untyped-call]
        except config.ConfigException as error:
            raise NoCluster(f"there is no cluster: no service account of a pod, and no kubeconfig ({error})") from error
    return client.ApiClient()
