"""Whether the rendezvous pods of attempts answer. One that does not is on a machine that is dead or cut off.

Kubernetes takes 40 s and more to say so of a machine, and only then makes other pods. Nobody trains on without a
rendezvous, so every service asks by itself, and has them made anew elsewhere (docs/decisions/0028-a-silent-machine.md).
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
from k8s.pods import ATTEMPT, PORT, RENDEZVOUS, ROLE, Object

log = structlog.get_logger()

ASK_EVERY_SECONDS, ANSWER_SECONDS, AT_ONCE = 2.0, 1.0, 200
SILENT_SECONDS = 6.0
# A machine that refuses is alive: its pod has a Job that sees to it.
ALIVE = (0, errno.ECONNREFUSED)


@dataclass
class _Store:
    """One rendezvous pod."""

    uid: str
    node: str
    address: str
    has_answered: bool = False
    silent_since: float | None = None
    is_dead: bool = False


class Silence:
    """What this service hears of all rendezvous pods, whoever looks after their attempts. Safe to ask from any thread.

    Only who has answered before can fall silent: where a network policy keeps the service from these pods, or it runs
    outside of the cluster, nothing follows. And nothing follows if pods on several machines are silent at the same
    time: then it is the service that is cut off.
    """

    def __init__(
        self, pods: Callable[[], Iterable[Object]], ask: Callable[[Sequence[str]], set[str]] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:  # fmt: skip
        """`pods`: all there are, of attempts; `ask`: addresses -> those at which a machine answers."""
        self._pods, self._ask, self._clock = pods, ask or answering, clock
        self._stores: dict[str, _Store] = {}
        self._stopping = threading.Event()

    def start(self, changed: Callable[[str], None]) -> None:
        """Ask from now on; `changed` is told the name of an attempt whose rendezvous has fallen silent."""
        threading.Thread(target=self._run, args=[changed], name="silence", daemon=True).start()

    def stop(self) -> None:
        self._stopping.set()

    def node(self, attempt: str, pods: Sequence[Object]) -> str:
        """Name of the machine that has fallen silent with the attempt's rendezvous pod, once; else empty.

        `pods`: the attempt's.
        """
        store = self._stores.get(attempt)
        if store is None or not store.is_dead or store.uid not in {pod["metadata"]["uid"] for pod in pods}:
            return ""
        # Once: what is done about it takes a while to show in the pods.
        store.has_answered = store.is_dead = False
        return store.node

    def listen(self) -> list[str]:
        """Ask all of them once. Returns the attempts whose rendezvous has fallen silent now."""
        found = {pod["metadata"]["labels"][ATTEMPT]: pod for pod in self._pods() if _is_store(pod)}
        stores = {attempt: self._known(attempt, pod) for attempt, pod in found.items()}
        self._stores = stores
        there, now = self._ask([store.address for store in stores.values()]), self._clock()
        for store in stores.values():
            if store.address in there:
                store.has_answered, store.silent_since, store.is_dead = True, None, False
            elif store.has_answered and store.silent_since is None:
                store.silent_since = now
        silent = {store.node for store in stores.values() if store.silent_since is not None}
        dead = [
            attempt
            for attempt, store in stores.items()
            if len(silent) == 1 and store.has_answered and not store.is_dead
            and store.silent_since is not None and now - store.silent_since >= SILENT_SECONDS
        ]  # fmt: skip
        for attempt in dead:
            stores[attempt].is_dead = True
        return dead

    def _known(self, attempt: str, pod: Object) -> _Store:
        before = self._stores.get(attempt)
        uid = pod["metadata"]["uid"]
        return before if before and before.uid == uid else _Store(uid, pod["spec"]["nodeName"], pod["status"]["podIP"])

    def _run(self, changed: Callable[[str], None]) -> None:
        while not self._stopping.wait(ASK_EVERY_SECONDS):
            try:
                for attempt in self.listen():
                    log.warning("rendezvous silent", attempt=attempt, node=self._stores[attempt].node)
                    changed(attempt)
            except ClusterAway:
                continue
            except Exception:
                # Without us Kubernetes notices, later.
                log.exception("rendezvous pods not asked")


def answering(addresses: Sequence[str]) -> set[str]:
    """Those of the addresses at whose rendezvous port a machine answers within a second."""
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


def _is_store(pod: Object) -> bool:
    status, metadata = pod.get("status", {}), pod["metadata"]
    is_there = status.get("phase") == "Running" and bool(status.get("podIP")) and "deletionTimestamp" not in metadata
    return is_there and metadata["labels"].get(ROLE) == RENDEZVOUS
