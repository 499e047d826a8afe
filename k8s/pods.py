"""The pods of an attempt. Pure: what is returned follows from the arguments alone."""

from typing import Any

from torchx.specs import Role

from k8s.pools import Cache, Pool

CACHE, SHM, SCRATCH = "/cache", "/dev/shm", "/tmp"
PORT = 29400
# Labels of every pod of an attempt.
ATTEMPT, ROLE = "mcf.dev/attempt", "mcf.dev/role"
# Of the job: where it was sent, and (an annotation) how many processes each of its nodes has.
POOL, PROCESSES = "mcf.dev/pool", "mcf.dev/processes"
# Of the job (an annotation), where nodes come one by one beside it: how many it has itself.
CORE = "mcf.dev/core"
# Of a Job (an annotation): how many of its pods it takes to train.
NEEDED = "mcf.dev/needed"
# Of a node beyond the core (extras.py): its number, or that of the first of several.
NODE = "mcf.dev/node"
RENDEZVOUS, WORKER = "rendezvous", "worker"
DEAD_STORE_SECONDS = 5
PREFERRED = "preferredDuringSchedulingIgnoredDuringExecution"
UNREACHABLE = ("node.kubernetes.io/unreachable", "node.kubernetes.io/not-ready")

Manifest = dict[str, Any]
# What the API server answers, in the same form.
Object = dict[str, Any]


def worker_pod(
    role: Role, pool: Pool, *, attempt: str, processes: int, endpoint: str, node: int | None = None
) -> Manifest:  # fmt: skip
    """Template of one node: an agent and its workers, which meet the others at `endpoint`.

    `node`: number of the first such node where it is beyond the core.
    """
    variables = {
        # The image's own folders cannot be written to.
        "HOME": SCRATCH,
        "MCF_CACHE_DIR": CACHE if pool.cache else f"{SCRATCH}/cache",
        # Told to stop, the agent would kill its workers after 30 s.
        "TORCH_ELASTIC_SHUTDOWN_TIMEOUT": str(pool.grace_seconds),
        # A run may have nodes in several pools, and each costs what its pool does.
        "MCF_POOL": role.metadata["pool"],
        **role.env,
        **pool.env,
        "PET_RDZV_ENDPOINT": endpoint,
        # The store is in a pod of its own: with one of the agents it would die with that agent.
        "PET_RDZV_CONF": ",".join(filter(None, [role.env.get("PET_RDZV_CONF"), "is_host=false"])),
    }
    volumes: dict[str, tuple[str, Manifest]] = {"shm": (SHM, {"emptyDir": {"medium": "Memory", "sizeLimit": pool.shm}})}
    if pool.cache:
        volumes["cache"] = CACHE, _cache(pool.cache)
    env = [{"name": name, "value": value} for name, value in variables.items()]
    address = {"name": "PET_LOCAL_ADDR", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}}
    group = {ATTEMPT: attempt, ROLE: WORKER}
    labels = group if node is None else {**group, NODE: str(node)}
    # A predecessor's machine may be dead, and nobody has said so yet. Apart from the others one that dies leaves
    # somebody who trains on.
    predecessor: Manifest = {"matchLabels": labels}
    if node is None:
        predecessor["matchExpressions"] = [{"key": NODE, "operator": "DoesNotExist"}]
    others = [] if pool.topology_spread else [({"matchLabels": group}, 20)]
    affinity = {**pool.affinity, **(_one_zone(group) if pool.one_zone else {})}
    placed = {
        "nodeSelector": pool.node_selector,
        "affinity": _apart(affinity, (predecessor, 100), *others),
        "topologySpreadConstraints": list(pool.topology_spread),
        "runtimeClassName": pool.runtime_class,
    }
    command = [role.entrypoint, *role.args]
    return _pod(pool, labels, placed, command, [*env, address], resources_of(pool, processes), volumes)


def rendezvous_pod(pool: Pool, *, attempt: str) -> Manifest:
    """Template of the pod that holds the store."""
    small = pool.rendezvous
    group = {ATTEMPT: attempt, ROLE: RENDEZVOUS}
    placed = {"nodeSelector": small.node_selector, "affinity": _apart({}, ({"matchLabels": group}, 100))}
    command = [pool.python, "-m", "trainer.elastic.rendezvous", str(PORT)]
    resources = {"cpu": small.cpu, "memory": small.memory}
    made = _pod(pool, group, placed, command, [], resources, {})
    # All wait for its start, two seconds of a core: with so small a limit it would take half a minute.
    del made["spec"]["containers"][0]["resources"]["limits"]["cpu"]
    # And nobody trains without it, while it has nothing that would be lost with it. A node that only seemed to be dead,
    # because the API server was away, has said so within this time.
    for toleration in made["spec"]["tolerations"]:
        if toleration.get("key") in UNREACHABLE:
            toleration["tolerationSeconds"] = min(DEAD_STORE_SECONDS, pool.dead_node_seconds)
    return made


def least_nodes(role: Role) -> int:
    """So many nodes of an attempt it takes to train."""
    return int(role.num_replicas if role.min_replicas is None else role.min_replicas)


def is_extra(found: Object) -> bool:
    """Whether a pod or a Job is a node beyond the core."""
    return NODE in found["metadata"].get("labels", {})


def core_nodes(role: Role, pool: Pool) -> int:
    """So many nodes are one object, admitted and scheduled together; those beyond it come and go one by one.

    Of an app that no service of ours looks after: all, as nobody would send the others.
    """
    others = role.metadata.get("extra_pools")
    alone = others is not None and (bool(others) or _is_queued(pool))
    return least_nodes(role) if alone else int(role.num_replicas)


def queue_labels(pool: Pool, priority_class: str | None) -> dict[str, str]:
    """Labels by which Kueue takes charge of an object; none where the pool has no queue of Kueue's."""
    if not _is_queued(pool):
        return {}
    assert pool.queue
    labels = {"kueue.x-k8s.io/queue-name": pool.queue.name}
    return labels | ({"kueue.x-k8s.io/priority-class": priority_class} if priority_class else {})


def _is_queued(pool: Pool) -> bool:
    """By Kueue; Volcano's queue gives a job as many of its nodes as there are."""
    return pool.queue is not None and pool.queue.kind == "kueue"


def resources_of(pool: Pool, processes: int) -> dict[str, str]:
    """What a worker pod of so many processes requests, and is limited to."""
    resources = {"cpu": _times(pool.cpu, processes), "memory": pool.memory}
    return resources | ({pool.gpu_resource: str(processes)} if pool.gpus else {})


def _pod(
    pool: Pool, labels: dict[str, str], placed: Manifest, command: list[str], env: list[Manifest],
    resources: dict[str, str], volumes: dict[str, tuple[str, Manifest]],
) -> Manifest:  # fmt: skip
    """`placed`: what decides where the pod runs; `volumes`: name -> where it is mounted, and what it is."""
    volumes = {"scratch": (SCRATCH, {"emptyDir": {}}), **volumes}
    container = {
        "name": "main",
        "image": pool.image,
        "imagePullPolicy": pool.image_pull_policy,
        "command": command,
        "env": env,
        # Never a value: what is secret is in a Secret, and only its name is here.
        "envFrom": [{"secretRef": {"name": name}} for name in pool.env_from_secrets],
        # Requested and limited alike: such a pod is the last to be evicted.
        "resources": {"requests": resources, "limits": dict(resources)},
        "securityContext": {
            "allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]},
        },
        "volumeMounts": [{"name": name, "mountPath": path} for name, (path, _) in volumes.items()],
        "terminationMessagePolicy": "FallbackToLogsOnError",
    }  # fmt: skip
    dead = [
        {"key": key, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": pool.dead_node_seconds}
        for key in UNREACHABLE
    ]
    spec: Manifest = {
        **placed,
        # A container that ends comes back in its pod within a second, with the node's caches as they were.
        "restartPolicy": "OnFailure",
        "terminationGracePeriodSeconds": pool.grace_seconds,
        "tolerations": [*map(dict, pool.tolerations), *dead],
        "imagePullSecrets": [{"name": name} for name in pool.image_pull_secrets],
        "serviceAccountName": pool.service_account,
        "automountServiceAccountToken": bool(pool.service_account),
        "priorityClassName": pool.priority_class,
        "schedulerName": pool.scheduler_name,
        "securityContext": {
            "runAsNonRoot": True, "runAsUser": pool.run_as_user, "runAsGroup": pool.run_as_user,
            "fsGroup": pool.run_as_user, "seccompProfile": {"type": "RuntimeDefault"},
        },
        "containers": [said(container)],
        "volumes": [{"name": name, **volume} for name, (_, volume) in volumes.items()],
    }  # fmt: skip
    metadata = {"labels": {**pool.labels, **labels}, "annotations": pool.annotations}
    return {"metadata": said(metadata), "spec": said(spec)}


def _one_zone(group: dict[str, str]) -> Manifest:
    near = {"labelSelector": {"matchLabels": group}, "topologyKey": "topology.kubernetes.io/zone"}
    return {"podAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [near]}}


def _apart(affinity: Manifest, *others: tuple[Manifest, int]) -> Manifest:
    """Not on the machines of these pods where there are others; selector of pods, and how much that weighs.

    Pods that have been told to stop count as long as they are in the books. (A topology spread does not look at them.)
    """
    anti = affinity.get("podAntiAffinity", {})
    wishes = [
        {"weight": weight, "podAffinityTerm": {"labelSelector": pods, "topologyKey": "kubernetes.io/hostname"}}
        for pods, weight in others
    ]
    return {**affinity, "podAntiAffinity": {**anti, PREFERRED: [*anti.get(PREFERRED, []), *wishes]}}


def _cache(cache: Cache) -> Manifest:
    if cache.host_path:
        # Never made by the kubelet: it would be root's, and no run could write there.
        return {"hostPath": {"path": cache.host_path, "type": "Directory"}}
    if cache.storage_class is None:
        return {"emptyDir": {"sizeLimit": cache.size}}
    claim = {
        "accessModes": ["ReadWriteOnce"], "storageClassName": cache.storage_class,
        "resources": {"requests": {"storage": cache.size}},
    }  # fmt: skip
    return {"ephemeral": {"volumeClaimTemplate": {"spec": claim}}}


def said(manifest: Manifest) -> Manifest:
    """Without what nobody has asked for: a manifest is read by people, too."""
    return {name: value for name, value in manifest.items() if value not in (None, {}, [])}


def _times(quantity: str, count: int) -> str:
    if quantity.endswith("m"):
        return f"{int(quantity[:-1]) * count}m"
    return f"{float(quantity) * count:g}"
