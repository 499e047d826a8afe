"""What is sent to Kubernetes, to the letter: one golden file for each thing that a pool may ask for.

python -m tests.unit.k8s.test_manifests     write the golden files anew; look at what changed
"""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from torchx.specs import AppDef

from k8s.appdef import LaunchRequest, app_for
from k8s.jobset import jobset_for
from k8s.pools import Pool, PoolsError, read_pools
from trainer.contract import Placement

GOLDEN = Path(__file__).parent / "golden"
CPU: dict[str, Any] = {"image": "registry.example/mcf-trainer:1.0"}
GPU: dict[str, Any] = {
    **CPU, "gpus": 8, "cpu": "12", "memory": "400Gi", "shm": "64Gi", "node_selector": {"pool": "a100-spot"},
    "tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}],
    "rendezvous": {"node_selector": {"pool": "cpu"}},
}  # fmt: skip
CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "plain": (CPU, {}),
    "elastic": (GPU, {"min_nodes": 1, "max_nodes": 4, "processes_per_node": 8}),
    "kueue": (
        {**GPU, "queue": {"name": "research", "priority_class": "high"}, "priority_class": "preemptible"},
        {"processes_per_node": 8},
    ),
    "extra": (GPU, {"min_nodes": 1, "processes_per_node": 8, "extra": {"pool": ["l40s", "a100-spot"], "nodes": 3}}),
    "extra-kueue": (
        {**GPU, "queue": {"name": "research", "priority_class": "high", "extra_priority_class": "spare"}},
        {"min_nodes": 2, "max_nodes": 4, "processes_per_node": 8},
    ),
    "kai": (
        {**GPU, "scheduler_name": "kai-scheduler", "labels": {"kai.scheduler/queue": "research"}},
        {"max_nodes": 2, "processes_per_node": 8},
    ),
    "private": (
        {
            **CPU, "image_pull_secrets": ["registry"], "service_account": "trainer",
            "env_from_secrets": ["s3", "mlflow"], "env": {"NCCL_DEBUG": "WARN"},
            "labels": {"team": "faces"}, "annotations": {"cost-centre": "42"},
        },
        {},
    ),
    "near": (
        {
            **GPU, "one_zone": True, "cache": {"size": "500Gi", "storage_class": "nvme"}, "runtime_class": "nvidia",
            "deadline_seconds": 86_400, "grace_seconds": 300, "dead_node_seconds": 10,
        },
        {"max_nodes": 2, "processes_per_node": 8, "compile": False, "cells_a_pass": 8, "teacher_cache_gib": 100},
    ),
}  # fmt: skip


def app_and_pool(fields: dict[str, Any], placed: dict[str, Any]) -> tuple[AppDef, Pool, int]:
    """An attempt, its pool, and how many workers a node of it has."""
    request = request_for("a100-spot", pool := Pool(**fields), placed)
    return app_for(request), pool, request.placement.processes_per_node


def request_for(name: str, pool: Pool, placed: dict[str, Any]) -> LaunchRequest:
    return LaunchRequest(
        name="r0123456789ab-2", attempt=2, spec_uri="s3://mcf/runs/r0123456789ab/spec.json",
        run_uri="s3://mcf/runs/r0123456789ab", placement=Placement(pool=name, **placed),
        tracking_uri="http://mlflow:5000", tracking_run_id="abc", python=pool.python, threads=pool.threads,
        agent="trainer.elastic.agent",
    )  # fmt: skip


def manifest(case: str) -> dict[str, Any]:
    app, pool, processes = app_and_pool(*CASES[case])
    return jobset_for(app, pool, processes=processes, namespace="mcf")


def as_yaml(manifest: dict[str, Any]) -> str:
    return yaml.dump(json.loads(json.dumps(manifest)), sort_keys=False, width=120)


def as_text(case: str) -> str:
    return as_yaml(manifest(case))


@pytest.mark.parametrize("case", CASES)
def test_a_manifest_is_its_golden_file(case: str) -> None:
    assert as_text(case) == (GOLDEN / f"{case}.yaml").read_text(), "python -m tests.unit.k8s.test_manifests"


def pods(case: str) -> list[dict[str, Any]]:
    return [job["template"]["spec"]["template"]["spec"] for job in manifest(case)["spec"]["replicatedJobs"]]


@pytest.mark.parametrize("case", CASES)
def test_every_pod_has_its_resources_for_itself_and_may_do_nothing_else(case: str) -> None:
    for pod in pods(case):
        [container] = pod["containers"]
        requests, limits = container["resources"]["requests"], container["resources"]["limits"]
        # Guaranteed; only the store's pod may start as fast as it can.
        more = {"cpu"} if "trainer.elastic.rendezvous" in container["command"] else set()
        assert limits == {name: much for name, much in requests.items() if name not in more}
        assert {"cpu", "memory"} <= requests.keys()
        assert container["securityContext"]["readOnlyRootFilesystem"]
        assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
        assert pod["securityContext"]["runAsNonRoot"]
        waited = {each["key"]: each.get("tolerationSeconds") for each in pod["tolerations"]}
        seconds = (5,) if more else (10, 20)
        assert waited["node.kubernetes.io/unreachable"] == waited["node.kubernetes.io/not-ready"] in seconds
        assert all(volume["emptyDir"]["sizeLimit"] for volume in pod["volumes"] if volume["name"] == "shm")


def test_secrets_are_named_and_never_shown() -> None:
    for pod in pods("private"):
        assert pod["containers"][0]["envFrom"] == [{"secretRef": {"name": "s3"}}, {"secretRef": {"name": "mlflow"}}]
    assert "AWS_SECRET" not in as_text("private")


def test_runs_of_a_node_share_a_folder_of_it_if_the_pool_says_so() -> None:
    app, pool, processes = app_and_pool({**CPU, "cache": {"host_path": "/var/mcf"}}, {})
    made = jobset_for(app, pool, processes=processes, namespace="mcf")
    worker = made["spec"]["replicatedJobs"][-1]["template"]["spec"]["template"]["spec"]
    [volume] = [volume for volume in worker["volumes"] if volume["name"] == "cache"]
    assert volume == {"name": "cache", "hostPath": {"path": "/var/mcf", "type": "Directory"}}
    assert {"name": "cache", "mountPath": "/cache"} in worker["containers"][0]["volumeMounts"]
    for wrong in {"host_path": "mcf"}, {"host_path": "/var/mcf", "storage_class": "ssd"}:
        with pytest.raises(ValueError, match="host_path"):
            Pool(image="trainer", cache=wrong)


def test_a_queue_holds_the_attempt_back_until_it_is_let_go() -> None:
    assert manifest("kueue")["spec"]["suspend"]
    assert not manifest("elastic")["spec"]["suspend"]


def test_a_file_of_pools_is_refused_with_everything_that_is_wrong_in_it(tmp_path: Path) -> None:
    path = tmp_path / "pools.yaml"
    path.write_text("a100: {image: x, gpu: 8}\ncpu: {image: x, memory: lots}\n")
    with pytest.raises(PoolsError, match=r"a100.gpu: Extra inputs.*; cpu.memory: String should match") as caught:
        read_pools(path)
    assert str(path) in str(caught.value)
    with pytest.raises(PoolsError, match="cannot be read"):
        read_pools(tmp_path / "none.yaml")
    path.write_text("a100: {image: x, gpus: 8}\n")
    assert read_pools(path)["a100"].gpus == 8


def test_the_page_about_pools_names_every_field() -> None:
    page = (Path(__file__).parents[3] / "docs/pools.md").read_text()
    assert [name for name in Pool.model_fields if f"`{name}`" not in page] == []


if __name__ == "__main__":
    GOLDEN.mkdir(exist_ok=True)
    for each in CASES:
        (GOLDEN / f"{each}.yaml").write_text(as_text(each))
