"""What the pods of one node of an attempt printed: every pod it has had that is still there, container by container."""

import contextlib
import queue
import threading
from collections.abc import Callable, Iterator

from k8s.cluster import Cluster, ClusterAway
from k8s.pods import NODE, ROLE, WORKER, Object

POLL_SECONDS = 1.0
# A reader that nobody listens to any more waits with so many lines.
AHEAD = 1000


def lines_of(cluster: Cluster, attempt: str, node: int, lives: Callable[[], bool], *, follow: bool) -> Iterator[str]:
    """Lines with their ends. While following, until the attempt has ended, "" where there is nothing new yet.

    A log that cannot be read, because its node is gone, is one line that says so.
    """
    told: set[tuple[str, int]] = set()
    while True:
        alive = follow and lives()
        for pod in _pods(cluster, attempt, node):
            name, restarts = pod["metadata"]["name"], _restarts(pod)
            if restarts and (name, restarts - 1) not in told:
                told.add((name, restarts - 1))
                yield from _read(cluster, name, previous=True)
            if _has_begun(pod) and (name, restarts) not in told:
                told.add((name, restarts))
                yield from _followed(cluster, name) if alive and _runs(pod) else _read(cluster, name)
        if not alive:
            return
        yield ""
        threading.Event().wait(POLL_SECONDS)


def tail_of(cluster: Cluster, attempt: str, count: int) -> list[str]:
    """The last lines of each pod of the attempt; of a container that has just begun, those of the one before too."""
    found: list[str] = []
    for pod in cluster.pods(attempt):
        if pod["metadata"]["labels"].get(ROLE) != WORKER:
            continue
        lines = list(_read(cluster, pod["metadata"]["name"], tail=count)) if _has_begun(pod) else []
        if len(lines) < count and _restarts(pod):
            lines = [*_read(cluster, pod["metadata"]["name"], previous=True, tail=count - len(lines)), *lines]
        found += lines
    return found


def _read(cluster: Cluster, pod: str, *, previous: bool = False, tail: int | None = None) -> Iterator[str]:
    try:
        yield from cluster.log(pod, previous=previous, tail=tail)
    except ClusterAway as error:
        yield f"({error})\n"


def _followed(cluster: Cluster, pod: str) -> Iterator[str]:
    """Lines of one container until it ends, by a thread that may wait for the next one as long as it takes."""
    lines: queue.Queue[str | None] = queue.Queue(AHEAD)
    given_up = threading.Event()

    def read() -> None:
        with contextlib.suppress(ClusterAway):
            for line in cluster.log(pod, follow=True):
                while not given_up.is_set():
                    with contextlib.suppress(queue.Full):
                        lines.put(line, timeout=POLL_SECONDS)
                        break
                if given_up.is_set():
                    return
        lines.put(None)

    threading.Thread(target=read, name=f"log {pod}", daemon=True).start()
    try:
        while True:
            try:
                line = lines.get(timeout=POLL_SECONDS)
            except queue.Empty:
                yield ""
                continue
            if line is None:
                return
            yield line
    finally:
        given_up.set()


def _pods(cluster: Cluster, attempt: str, node: int) -> list[Object]:
    workers = [pod for pod in cluster.pods(attempt) if pod["metadata"]["labels"].get(ROLE) == WORKER]
    return [pod for pod in workers if _number(pod, cluster.kind.index_label) == node]


def _number(pod: Object, index_label: str) -> int:
    """Of its node: those beyond the core are counted on from it."""
    labels = pod["metadata"]["labels"]
    return int(labels.get(NODE, 0)) + int(labels.get(index_label, 0))


def _restarts(pod: Object) -> int:
    return sum(int(each.get("restartCount", 0)) for each in pod.get("status", {}).get("containerStatuses", []))


def _has_begun(pod: Object) -> bool:
    states = [each.get("state", {}) for each in pod.get("status", {}).get("containerStatuses", [])]
    return any("running" in state or "terminated" in state for state in states)


def _runs(pod: Object) -> bool:
    return any("running" in each.get("state", {}) for each in pod.get("status", {}).get("containerStatuses", []))
