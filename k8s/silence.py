"""Whether the machines of attempts answer. One on which no pod of ours does is dead or cut off.

Kubernetes takes 40 s and more to say so of a machine, and only then makes other pods. Every service asks by itself, and
has what nobody trains without made anew elsewhere (docs/decisions/0028-a-silent-machine.md).
"""

import errno
import selectors
import socket
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import structlog

from k8s.cluster import ClusterAway
from k8s.pods import ATTEMPT, PORT, Object

log = structlog.get_logger()

ASK_EVERY_SECONDS, ANSWER_SECONDS, AT_ONCE = 2.0, 1.0, 200
SILENT_SECONDS = 6.0
# Only a rendezvous has somebody at the port; a machine that refuses is alive, too.
ALIVE = (0, errno.ECONNREFUSED)


@dataclass
class _Pod:
    uid: str
    attempt: str
    node: str
    address: str
    has_answered: bool = False
    silent_since: float | None = None


class Silence:
    """What this service hears of all pods of attempts, whoever looks after them. Safe to ask from any thread.

    Only who has answered before can fall silent: where a network policy keeps the service from these pods, or it runs
    outside of the cluster, nothing follows. And nothing follows if several machines are silent at the same time: then
    it is the service that is cut off.
    """

    def __init__(
        self, pods: Callable[[], Iterable[Object]], ask: Callable[[Sequence[str]], set[str]] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:  # fmt: skip
        """`pods`: all there are, of attempts; `ask`: addresses -> those at which a machine answers."""
        self._list, self._ask, self._clock = pods, ask or answering, clock
        self._pods: dict[str, _Pod] = {}
        self._node = ""
        self._told = set[str]()
        self._stopping = threading.Event()

    def start(self, changed: Callable[[str], None]) -> None:
        """Ask from now on; `changed` is told the name of each attempt with a pod on a machine that falls silent."""
        threading.Thread(target=self._run, args=[changed], name="silence", daemon=True).start()

    def stop(self) -> None:
        self._stopping.set()

    def node(self, attempt: str) -> str:
        """Name of the machine that is silent, once for each attempt; empty where none is, or it has been told."""
        node = self._node
        if not node or attempt in self._told:
            return ""
        # Once: what is done about it takes a while to show in the pods.
        self._told.add(attempt)
        return node

    def listen(self) -> str:
        """Ask all pods once. Returns the machine that is silent now; empty where none is."""
        pods = [self._known(pod) for pod in self._list() if _is_there(pod)]
        self._pods = {pod.uid: pod for pod in pods}
        there, now = self._ask([pod.address for pod in pods]), self._clock()
        for pod in pods:
            if pod.address in there:
                pod.has_answered, pod.silent_since = True, None
            elif pod.has_answered and pod.silent_since is None:
                pod.silent_since = now
        heard = {pod.node for pod in pods if pod.address in there}
        silent = [pod for pod in pods if pod.silent_since is not None and pod.node not in heard]
        nodes, since = {pod.node for pod in silent}, max((pod.silent_since or now for pod in silent), default=now)
        node = nodes.pop() if len(nodes) == 1 and now - since >= SILENT_SECONDS else ""
        if node != self._node:
            self._told = set()
        self._node = node
        return node

    def _known(self, pod: Object) -> _Pod:
        metadata = pod["metadata"]
        return self._pods.get(metadata["uid"]) or _Pod(
            metadata["uid"], metadata["labels"][ATTEMPT], pod["spec"]["nodeName"], pod["status"]["podIP"]
        )

    def _run(self, changed: Callable[[str], None]) -> None:
        before = ""
        while not self._stopping.wait(ASK_EVERY_SECONDS):
            try:
                node = self.listen()
                attempts = {pod.attempt for pod in self._pods.values() if pod.node == node} if node != before else set()
                before = node
                for attempt in attempts:
                    log.warning("machine silent", node=node, attempt=attempt)
                    changed(attempt)
            except ClusterAway:
                continue
            except Exception:
                # Without us Kubernetes notices, later.
                log.exception("pods not asked")


def answering(addresses: Sequence[str]) -> set[str]:
    """Those of the addresses at which a machine answers within a second."""
    there = set()
    for first in range(0, len(addresses), AT_ONCE):
        there |= _answering(addresses[first : first + AT_ONCE])
    return there


def is_alone_on(node: str, pods: Sequence[Object]) -> bool:
    """Whether all pods of a Job that have not been told to stop are on that machine."""
    alive = [pod for pod in pods if "deletionTimestamp" not in pod["metadata"]]
    return bool(node and alive) and all(pod.get("spec", {}).get("nodeName") == node for pod in alive)


def _answering(addresses: Iterable[str]) -> set[str]:
    there, deadline = set(), time.monotonic() + ANSWER_SECONDS
    with selectors.DefaultSelector() as waiting:
        for address in addresses:
            line = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET)
            line.setblocking(False)
            code = line.connect_ex((address, PORT))
            if code == errno.EINPROGRESS:
                waiting.register(line, selectors.EVENT_WRITE, address)
                continue
            there |= {address} if code in ALIVE else set()
            line.close()
        while waiting.get_map() and (left := deadline - time.monotonic()) > 0:
            for key, _ in waiting.select(left):
                line = key.fileobj  # type: ignore[assignment]
                there |= {key.data} if line.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) in ALIVE else set()
                waiting.unregister(line)
                line.close()
        for key in list(waiting.get_map().values()):
            key.fileobj.close()  # type: ignore[union-attr]
    return there


def _is_there(pod: Object) -> bool:
    status = pod.get("status", {})
    return status.get("phase") == "Running" and bool(status.get("podIP")) and "deletionTimestamp" not in pod["metadata"]
