"""What one attempt of a run asks of a scheduler, as a TorchX AppDef. Pure: no files, no clock, no environment.

TorchX's own `dist.ddp` component never passes --max-restarts, whose default is 0: a job made with it ends
with the first node it loses. So the AppDef is built here.
"""

from dataclasses import dataclass, field

from torchx.specs import AppDef, Resource, Role

from trainer.contract import Placement

ROLE = "node"

# Agents find a lost peer within seconds (2 s beats, 3 of them missed) instead of the default of 25 s, and
# re-form without waiting the default 30 s for late joiners.
RENDEZVOUS = "keep_alive_interval=2,keep_alive_max_attempt=3,last_call_timeout=3,join_timeout=300"

# Restarts are cheap (workers resume from a checkpoint) and torchrun counts every change of membership as
# one; an attempt that uses this many up makes no progress, and the service decides about the next.
MAX_RESTARTS = 20


@dataclass(frozen=True)
class LaunchRequest:
    """One attempt: everything the AppDef is a function of."""

    name: str
    """Name of the attempt, `<run id>-<n>`: the same whoever submits it, so submitting twice is harmless."""
    attempt: int
    spec_uri: str
    run_uri: str
    placement: Placement
    tracking_uri: str | None = None
    tracking_run_id: str | None = None
    weights_uri: str | None = None
    """Directory of a run of the same pretraining, whose checkpoints count as this one's."""
    python: str = "python"
    """Interpreter on the nodes."""
    image: str = ""
    """Container image; nodes that are processes of this machine need none."""
    threads: int = 1
    """CPU threads of a worker process."""
    gpus_per_node: int = 0
    agent: str = "trainer.elastic.forked"
    """Module that runs a node's agent, with torchrun's options."""
    entrypoint: tuple[str, ...] = field(default=())
    """Program and arguments in place of torchrun and the trainer; `--spec URI` is appended to either."""


def app_for(request: LaunchRequest) -> AppDef:
    """The attempt as one role of min_nodes to max_nodes equal nodes, each running a torchrun agent."""
    placement = request.placement
    command = (*(request.entrypoint or _torchrun(request)), "--spec", request.spec_uri)
    role = Role(
        name=ROLE,
        image=request.image,
        entrypoint=command[0],
        args=list(command[1:]),
        env=_environment(request),
        num_replicas=placement.max_nodes,
        min_replicas=placement.min_nodes,
        resource=Resource(cpu=request.threads * placement.processes_per_node, gpu=request.gpus_per_node, memMB=-1),
        metadata={
            "pool": placement.pool,
            "extra_pools": list(placement.extra_pools),
            "priority": placement.priority,
            "processes_per_node": placement.processes_per_node,
        },
    )
    return AppDef(name=request.name, roles=[role])


def _torchrun(request: LaunchRequest) -> tuple[str, ...]:
    placement = request.placement
    return (
        request.python, "-m", request.agent,
        "--nnodes", f"{placement.min_nodes}:{placement.max_nodes}",
        "--nproc-per-node", str(placement.processes_per_node),
        "--max-restarts", str(MAX_RESTARTS),
        "--monitor-interval", "0.5",
        "--rdzv-id", request.name,
        "-m", "trainer.main",
    )  # fmt: skip


def _environment(request: LaunchRequest) -> dict[str, str]:
    environment = {
        "MCF_RUN_URI": request.run_uri,
        "MCF_ATTEMPT": str(request.attempt),
        "OMP_NUM_THREADS": str(request.threads),
        # Threads that wait by spinning take the cores from those they wait for, wherever another run, or a node's other
        # pods, share them: two runs of two threads on two cores took ten times as long.
        "OMP_WAIT_POLICY": "PASSIVE",
        # In the environment and not arguments: the scheduler adds which agent hosts the store, and an agent may have a
        # rendezvous of its own.
        "PET_RDZV_BACKEND": "c10d",
        "PET_RDZV_CONF": RENDEZVOUS,
        # With the rendezvous' store shared, a node that joins any round but the first is told no address (torch 2.15).
        "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1",
    }
    if request.placement.teacher_cache_gib:
        environment["MCF_TEACHER_CACHE_GIB"] = f"{request.placement.teacher_cache_gib:g}"
    if request.placement.cells_a_pass:
        environment["MCF_CELLS_A_PASS"] = str(request.placement.cells_a_pass)
    if request.placement.compile is not None:
        environment["MCF_COMPILE"] = "1" if request.placement.compile else "0"
    if request.weights_uri:
        environment["MCF_WEIGHTS_URI"] = request.weights_uri
    if request.tracking_uri and request.tracking_run_id:
        environment["MLFLOW_TRACKING_URI"] = request.tracking_uri
        environment["MLFLOW_RUN_ID"] = request.tracking_run_id
    return environment
