"""Node pools: everything a platform team decides about where and how an attempt's pods run. No Kubernetes client.

A pool is named in one file, `pools.yaml`, and by `placement.pool` of a spec. It decides speed, cost and access,
never a run's numbers.
"""

from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, TypeAdapter, ValidationError, model_validator

from trainer.contract import plain
from trainer.contract.frozen import Frozen

Quantity = Annotated[str, Field(pattern=r"^[0-9.]+(m|[EPTGMk]i?)?$")]


class PoolsError(ValueError):
    """The file of pools cannot be used; says where and why."""


class NoCluster(ValueError):
    """Nothing says which cluster is meant."""


class Cache(Frozen):
    """A disk of its own for every node: what lies elsewhere or need not be computed again (docs/data.md)."""

    size: Quantity = "100Gi"
    """Size of the disk; not of `host_path`."""
    storage_class: str | None = None
    """None = the node's own disk (emptyDir); else a volume of this class that lives as long as the pod."""
    host_path: str | None = Field(None, pattern=r"^/.+")
    """A folder that every node of the pool has and `run_as_user` can write: all runs on a node share it, whoever's they
    are. Only for people who trust each other."""

    @model_validator(mode="after")
    def _is_one_kind(self) -> Self:
        if self.host_path and self.storage_class:
            raise ValueError("host_path is a folder of the node, and storage_class a volume: one of them")
        return self


class Queue(Frozen):
    """Who decides when an attempt may start."""

    kind: Literal["kueue", "volcano"] = "kueue"
    """Whose queue it is: kueue for JobSets, volcano for Volcano jobs."""
    name: str
    """Kueue: the LocalQueue of the namespace; Volcano: the queue."""
    priority_class: str | None = None
    """Kueue: the WorkloadPriorityClass; Volcano: the PriorityClass of the job, if it is not that of the pods."""
    extra_priority_class: str | None = None
    """Kueue: the WorkloadPriorityClass of nodes beyond `min_nodes`, lower than the other: each is admitted by itself
    while quota is free, and gives it back before any run waits. None = as the other."""


class Rendezvous(Frozen):
    """The small pod in which the agents meet; it holds no GPU and belongs on nodes that stay."""

    node_selector: dict[str, str] = Field(default_factory=dict)
    """Labels of the nodes that stay."""
    cpu: Quantity = "250m"
    """CPU request. The pod may use more while it starts, because all agents wait for it."""
    memory: Quantity = "1Gi"
    """Memory, as request and as limit."""


class Pool(Frozen):
    """Nodes of one kind, and what a pod needs to run there."""

    image: str = Field(min_length=1)
    """Container image with the trainer."""
    image_pull_policy: Literal["IfNotPresent", "Always", "Never"] = "IfNotPresent"
    """When the image is pulled."""
    image_pull_secrets: tuple[str, ...] = ()
    """Secrets to pull the image with."""
    python: str = "python"
    """Interpreter in the image."""

    gpus: int = Field(0, ge=0)
    """GPUs of a node; an attempt's pod takes one per process, or none if this is 0."""
    gpu_type: str | None = Field(None, min_length=1)
    """Type of the GPUs, such as A100-80GB, in any words: pools of different types train no run together unless it asks
    for that. None = not told apart."""
    price_per_gpu_hour: float | None = Field(None, ge=0)
    """What an hour of one GPU costs, in the service's currency; in a pool without GPUs, an hour of one process. None =
    not known: then the pool's hours are shown without money."""
    gpu_resource: str = "nvidia.com/gpu"
    """Name under which the device plug-in offers GPUs."""
    cpu: Quantity = "1"
    """CPU of one process, as request and as limit (Guaranteed)."""
    memory: Quantity = "4Gi"
    """Memory of a pod, /dev/shm included, as request and as limit."""
    shm: Quantity = "2Gi"
    """Size of /dev/shm: three copies of the state (docs/recovery.md), batches in transit, NCCL."""
    cache: Cache | None = None
    """A disk of its own for every node; None = scratch on the node's own disk."""

    node_selector: dict[str, str] = Field(default_factory=dict)
    """Labels of the pool's nodes."""
    affinity: dict[str, Any] = Field(default_factory=dict)
    """Affinity, as in a pod."""
    tolerations: tuple[dict[str, Any], ...] = ()
    """Taints of the pool's nodes, as in a pod."""
    dead_node_seconds: int = Field(20, ge=0)
    """How long a worker's pod stays on a node that does not answer; Kubernetes' own default is five minutes."""
    one_zone: bool = False
    """Keep all pods of an attempt in one zone: gradients between zones are slow and cost money."""
    topology_spread: tuple[dict[str, Any], ...] = ()
    """topologySpreadConstraints, as in a pod; none = an attempt's pods go to different nodes, if there are enough."""

    service_account: str | None = None
    """Account of the pods, for an object store that knows it (IRSA); None = no account, and no token with it."""
    env: dict[str, str] = Field(default_factory=dict)
    """For every container, such as NCCL's settings."""
    env_from_secrets: tuple[str, ...] = ()
    """Secrets whose keys become variables: credentials of the object store and of MLflow."""
    run_as_user: int = Field(10_001, ge=1)
    """User id in the container, never root's."""
    scheduler_name: str | None = Field(None, min_length=1)
    """Scheduler that places the pods, such as KAI's; None = the cluster's, or with Volcano its own."""
    runtime_class: str | None = None
    """RuntimeClass of the pods."""
    priority_class: str | None = None
    """PriorityClass of the pods."""
    labels: dict[str, str] = Field(default_factory=dict)
    """Labels of the pods and of the objects that create them."""
    annotations: dict[str, str] = Field(default_factory=dict)
    """Annotations of the pods and of the objects that create them."""
    queue: Queue | None = None
    """Queue that decides when an attempt may start; None = it starts at once."""
    rendezvous: Rendezvous = Rendezvous()
    """The small pod in which the agents meet."""

    grace_seconds: int = Field(120, ge=1)
    """From SIGTERM to SIGKILL: time for the current step and a checkpoint."""
    deadline_seconds: int | None = Field(None, ge=1)
    """Longest life of an attempt; its progress is kept, and the next attempt resumes."""
    ttl_seconds: int = Field(86_400, ge=0)
    """How long the objects of an attempt are kept after it has ended."""

    @property
    def threads(self) -> int:
        """CPU threads of one process."""
        return max(1, int(float(self.cpu[:-1]) / 1000 if self.cpu.endswith("m") else float(self.cpu)))


def read_pools(path: Path) -> dict[str, Pool]:
    """The pools of a file `name: {...}`. Raises PoolsError with everything that is wrong in it."""
    try:
        return TypeAdapter(dict[str, Pool]).validate_python(plain.from_yaml(path.read_text()) or {})
    except ValidationError as error:
        wrong = "; ".join(f"{'.'.join(map(str, each['loc']))}: {each['msg']}" for each in error.errors())
        raise PoolsError(f"{path}: {wrong}") from error
    except (OSError, UnicodeDecodeError, plain.NotPlain) as error:
        raise PoolsError(f"{path} cannot be read: {error}") from error
