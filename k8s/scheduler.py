"""TorchX schedulers that send attempts to Kubernetes. What is sent is decided in jobset.py and volcano.py.

An attempt has one name, so submitting it twice is harmless, and nothing is remembered here: any number of services
may use one namespace.
"""

import json
from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import cache
from typing import Any, ClassVar

import structlog
from kubernetes import client
from torchx.schedulers.api import DescribeAppResponse, ListAppResponse, Scheduler, Stream, filter_regex
from torchx.specs import AppDef, AppDryRunInfo, AppState, runopts

from k8s.asked import asked, options
from k8s.capacity import Node, is_ready, nodes_of, room, shortage
from k8s.cluster import Cluster, Kind
from k8s.extras import Plan, extra_job, plan
from k8s.jobset import PREFIX, job_name
from k8s.logs import lines_of
from k8s.observed import Seen, nodes_wait, observe
from k8s.pods import ATTEMPT, CORE, NODE, POOL, PROCESSES, RENDEZVOUS, ROLE, Object, is_extra
from k8s.pools import Pool
from k8s.renewal import is_short, is_stranded
from k8s.silence import Silence, is_alone_on

log = structlog.get_logger()

ENDED = (AppState.SUCCEEDED, AppState.FAILED, AppState.CANCELLED)


@dataclass(frozen=True)
class Sent:
    pool: str
    at: datetime


class ClusterScheduler(Scheduler):  # type: ignore[misc]  # TorchX ships no types
    """One namespace of one cluster. Raises ClusterAway where its API server does not answer."""

    backend: ClassVar[str]
    kind: ClassVar[Kind]

    def __init__(
        self, session_name: str, pools: Mapping[str, Pool], namespace: str, api: client.ApiClient | None = None
    ) -> None:
        """`api`: None = the pod's own service account, or the kubeconfig of who runs this."""
        super().__init__(self.backend, session_name)
        self.pools = pools
        self.cluster = Cluster(namespace, self.kind, api)
        self._out_of_memory: dict[str, frozenset[str]] = {}
        self._silence = Silence(self.cluster.all_pods)

    @abstractmethod
    def manifest(self, app: AppDef, pool: Pool, processes: int) -> Object:
        """The attempt as an object of this kind."""

    @abstractmethod
    def job_state(self, job: Object) -> tuple[AppState, str]:
        """What the object says by itself: state, and a note on why it waits or how it ended."""

    def start(self, changed: Callable[[str], None]) -> None:
        """Be told the name of every attempt that has news, and answer from watches from now on."""
        self.cluster.start(changed)
        self._silence.start(changed)

    def observe(self, app_id: str) -> Seen | None:
        """State of an attempt, and why it waits or how it ended; None when nothing of it is left."""
        now = datetime.now(UTC)
        name = job_name(app_id)
        job = self.cluster.job(name)
        state, note = self.job_state(job) if job else (None, "")
        events, lack = cache(lambda: self.cluster.events(name)), cache(lambda: self._lack(job, _pool(job)))
        seen = observe(state, note, self.cluster.pods(app_id), events, lack, now)
        if seen is None or seen.state in ENDED:
            self._out_of_memory.pop(app_id, None)
            return seen
        # Pods forget all but their newest ends.
        known = self._out_of_memory.get(app_id, frozenset()) | seen.out_of_memory
        if known:
            self._out_of_memory[app_id] = known
        return replace(seen, out_of_memory=known)

    def tend(self, app_id: str, seen: Seen | None, app_in: Callable[[str], AppDef]) -> None:
        """See to an attempt that was seen so: what would keep everybody waiting is made anew (renewal.py), also what is
        on a machine that has fallen silent (silence.py), and extra nodes come and go (extras.py).

        `app_in`: name of a pool -> the attempt as a node of that pool runs it.
        """
        if not self.kind.makes_jobs:
            self._forget_stranded(app_id)
            return
        children = self.cluster.children(app_id)
        extra = [child for child in children if is_extra(child)]
        job = self.cluster.job(job_name(app_id)) if seen and seen.state not in ENDED else None
        if seen is None or job is None or "deletionTimestamp" in job["metadata"] or job["spec"].get("suspend"):
            # They would wait for a rendezvous that is no more.
            self._remove(app_id, extra)
            return
        pods = self.cluster.pods(app_id)
        core = [pod for pod in pods if not is_extra(pod)]
        silent = self._silence.node(app_id)
        for child in children:
            labels = child["metadata"]["labels"]
            if is_extra(child):
                mine = [pod for pod in pods if pod["metadata"]["labels"].get(NODE) == labels[NODE]]
                # It is missed in the next look.
                self._remove(app_id, [child] if is_alone_on(silent, mine) else [])
                continue
            mine = [pod for pod in core if pod["metadata"]["labels"].get(ROLE) == labels[ROLE]]
            if is_short(child, mine) or is_alone_on(silent, mine):
                log.info("job made anew", attempt=app_id, role=labels[ROLE], silent_node=silent)
                self.cluster.renew(child)
        pool = _pool(job)
        if CORE in job["metadata"].get("annotations", {}) and pool in self.pools:
            todo = self._plan(app_in(pool), job, extra, [pod for pod in pods if is_extra(pod)])
            self._remove(app_id, todo.remove)
            # Not before the core trains, whose place they could take.
            for node, name in todo.create if seen.state is AppState.RUNNING else ():
                log.info("extra node", attempt=app_id, node=node, pool=name)
                self.cluster.add(extra_job(app_in(name), self.pools[name], node, job, self.cluster.namespace))

    def nodes_wait(self, app_id: str) -> str:
        """How many nodes an attempt that trains could still use, and for what they wait; empty where none does."""
        name, children = job_name(app_id), self.cluster.children(app_id) if self.kind.makes_jobs else []
        extra = list(filter(is_extra, children))
        pools = {child["metadata"]["labels"][NODE]: _pool(child) for child in extra}
        job = self.cluster.job(name)

        def lack(pod: Object) -> str:
            return self._lack(job, pools.get(pod["metadata"]["labels"].get(NODE, ""), _pool(job)))

        return nodes_wait(name, self.cluster.pods(app_id), extra, self.cluster.events, lack)

    def _forget_stranded(self, app_id: str) -> None:
        pods = self.cluster.pods(app_id)
        silent = self._silence.node(app_id)
        stopping = [pod for pod in pods if "deletionTimestamp" in pod["metadata"]]
        answering = {node["metadata"]["name"] for node in self.cluster.nodes() if is_ready(node)} if stopping else set()
        for pod in pods:
            is_silent = pod["metadata"]["labels"].get(ROLE) == RENDEZVOUS and is_alone_on(silent, [pod])
            if is_silent or is_stranded(pod, answering):
                log.info("pod on a dead node given up", attempt=app_id, pod=pod["metadata"]["name"])
                self.cluster.forget(pod)

    def _plan(self, app: AppDef, core: Object, jobs: Sequence[Object], pods: Sequence[Object]) -> Plan:
        [role] = app.roles
        pool, processes = role.metadata["pool"], role.metadata["processes_per_node"]
        # By what was sent: another release may have sent it.
        wanted = range(int(core["metadata"]["annotations"][CORE]), role.num_replicas)
        pools = [name for name in role.metadata["extra_pools"] if name in self.pools] or [pool]
        return plan(wanted, pools, lambda name: self.room(name, processes), jobs, pods, datetime.now(UTC))

    def _remove(self, app_id: str, extra: Iterable[Object]) -> None:
        for child in extra:
            if "deletionTimestamp" not in child["metadata"]:
                log.info("extra node removed", attempt=app_id, job=child["metadata"]["name"])
                self.cluster.remove(child)

    def sent(self, app_id: str) -> "Sent | None":
        """Where and when the attempt was sent; None when there is none, or its pool is none of ours any more."""
        job = self.cluster.job(job_name(app_id))
        pool = _pool(job)
        if not job or pool not in self.pools:
            return None
        return Sent(pool, datetime.fromisoformat(job["metadata"]["creationTimestamp"]))

    def nodes(self, pool: Pool) -> list[Node]:
        """The pool's nodes, with what is free on each."""
        return nodes_of(pool, self.cluster.nodes(), self.cluster.usage())

    def room(self, pool: str, processes: int) -> int:
        """How many nodes of so many processes the pool could start now."""
        return room(self.pools[pool], processes, self.nodes(self.pools[pool]))

    # ------------------------------------------------------------ TorchX's interface

    def _run_opts(self) -> runopts:
        return options(self.pools)

    def _validate(self, app: AppDef, scheduler: str, *more: object) -> None:
        """Nothing beyond what building the manifest finds out."""

    def _submit_dryrun(self, app: AppDef, cfg: Mapping[str, Any]) -> AppDryRunInfo[Object]:
        manifest = self.manifest(*asked(app, cfg, self.pools))
        return AppDryRunInfo(manifest, lambda manifest: json.dumps(manifest, indent=2))

    def schedule(self, dryrun_info: AppDryRunInfo[Object]) -> str:
        """Send the attempt, or find that it has been sent before. Returns its name."""
        self.cluster.create(dryrun_info.request)
        name: str = dryrun_info.request["metadata"]["labels"][ATTEMPT]
        return name

    def describe(self, app_id: str) -> DescribeAppResponse | None:
        """None when nothing of that name is left."""
        seen = self.observe(app_id)
        return seen and DescribeAppResponse(
            app_id=app_id, state=seen.state, num_restarts=seen.restarts, msg=seen.message
        )

    def list(self) -> list[ListAppResponse]:
        """Every attempt in the namespace."""
        return [
            ListAppResponse(app_id=job["metadata"]["name"].removeprefix(PREFIX), state=self.job_state(job)[0])
            for job in self.cluster.jobs()
        ]

    def _cancel_existing(self, app_id: str) -> None:
        """Ask its pods to stop. The attempt is there until they have, each within its grace period."""
        self.cluster.delete(job_name(app_id))
        if self.kind.makes_jobs:
            self._remove(app_id, filter(is_extra, self.cluster.children(app_id)))

    def log_iter(
        self,
        app_id: str,
        role_name: str,
        k: int = 0,
        regex: str | None = None,
        since: datetime | None = None,
        until: datetime | None = None,
        should_tail: bool = False,
        streams: Stream | None = None,
    ) -> Iterable[str]:
        """Lines that the pods of node `k` printed, one pod after the other: a replaced one has a successor.

        While following, an empty string says that there is nothing new yet.
        """
        lines = lines_of(self.cluster, app_id, k, lambda: self._lives(app_id), follow=should_tail)
        return filter_regex(regex, lines) if regex else lines

    def close(self) -> None:
        self._silence.stop()
        self.cluster.close()

    # ------------------------------------------------------------ pieces

    def _lives(self, app_id: str) -> bool:
        seen = self.observe(app_id)
        return seen is not None and seen.state in (AppState.PENDING, AppState.RUNNING)

    def _lack(self, job: Object | None, pool: str) -> str:
        """What this pool lacks for a pod of the attempt."""
        if not job or pool not in self.pools:
            return ""
        processes = int(job["metadata"].get("annotations", {}).get(PROCESSES, 1))
        return shortage(pool, self.pools[pool], processes, self.nodes(self.pools[pool]))


def _pool(job: Object | None) -> str:
    """Where it was sent; empty where that is not known."""
    return str(job["metadata"]["labels"].get(POOL, "")) if job else ""
