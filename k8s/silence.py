"""Whether the rendezvous pods of attempts answer. One that does not is on a machine that is dead or cut off.

Kubernetes takes 40 s and more to say so of a machine, and only then makes other pods. Nobody trains on without a
rendezvous, so the service asks by itself, and has them made anew elsewhere (docs/decisions/0028-a-silent-machine.md).
"""

import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from k8s.pods import PORT, RENDEZVOUS, ROLE, Object

ASK_EVERY_SECONDS, ANSWER_SECONDS = 2.0, 1.0
# Two or three times in a row without an answer.
SILENT_SECONDS = 6.0
# What was seen before counts no more: others may look after the attempt now.
OLD_SECONDS = 15.0


def answers(address: str) -> bool:
    """Whether there is somebody at the rendezvous' port; a machine that refuses to connect is alive, too."""
    try:
        socket.create_connection((address, PORT), ANSWER_SECONDS).close()
    except ConnectionRefusedError:
        return True
    except OSError:
        return False
    return True


@dataclass
class _Store:
    uid: str
    node: str
    asked_at: float
    has_answered: bool = False
    silent_since: float | None = None


class Silence:
    """What one service has seen of the rendezvous pods that it looks after; safe to ask from several threads."""

    def __init__(
        self, answers: Callable[[str], bool] = answers, clock: Callable[[], float] = time.monotonic
    ) -> None:  # fmt: skip
        self._answers, self._clock = answers, clock
        self._stores: dict[str, _Store] = {}

    def node(self, attempt: str, pods: Sequence[Object]) -> str:
        """Name of the machine that has fallen silent with the attempt's rendezvous pod, once; else empty.

        `pods`: the attempt's. Only who has answered before can fall silent: where a network policy keeps the service
        from these pods, or it runs outside of the cluster, nothing follows from that. And not if pods on several
        machines do at the same time: then it is the service that is cut off.
        """
        found = [pod for pod in pods if _is_store(pod)]
        if not found:
            self._stores.pop(attempt, None)
            return ""
        pod, now = found[-1], self._clock()
        store = self._stores.get(attempt)
        if store is None or store.uid != pod["metadata"]["uid"]:
            store = self._stores[attempt] = _Store(pod["metadata"]["uid"], pod["spec"]["nodeName"], -ASK_EVERY_SECONDS)
        if now - store.asked_at < ASK_EVERY_SECONDS:
            return ""
        if now - store.asked_at > OLD_SECONDS:
            store.silent_since = None
        store.asked_at = now
        if self._answers(pod["status"]["podIP"]):
            store.has_answered, store.silent_since = True, None
            return ""
        if not store.has_answered:
            return ""
        store.silent_since = store.silent_since or now
        if now - store.silent_since < SILENT_SECONDS or self._silent_nodes(now) != {store.node}:
            return ""
        # Said once: what is done about it takes a while to show in the pods.
        store.has_answered = False
        return store.node

    def forget(self, attempt: str) -> None:
        self._stores.pop(attempt, None)

    def _silent_nodes(self, now: float) -> set[str]:
        stores = list(self._stores.values())
        return {each.node for each in stores if each.silent_since and now - each.asked_at < OLD_SECONDS}


def is_alone_on(node: str, pods: Sequence[Object]) -> bool:
    """Whether all pods of a Job that have not been told to stop are on that machine."""
    alive = [pod for pod in pods if "deletionTimestamp" not in pod["metadata"]]
    return bool(node and alive) and all(pod.get("spec", {}).get("nodeName") == node for pod in alive)


def _is_store(pod: Object) -> bool:
    status, metadata = pod.get("status", {}), pod["metadata"]
    is_there = status.get("phase") == "Running" and bool(status.get("podIP")) and "deletionTimestamp" not in metadata
    return is_there and metadata["labels"].get(ROLE) == RENDEZVOUS
