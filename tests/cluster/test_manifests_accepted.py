"""A real API server with the real CRDs takes what is sent. Nothing of Volcano runs there: it validates, no more."""

import copy
from pathlib import Path
from typing import Any

import pytest
import yaml
from kubernetes import client
from kubernetes.client.exceptions import ApiException

from k8s.pools import Pool
from service.launching.cluster import ClusterLauncher
from service.launching.port import JobState, Launch
from service.settings import Settings
from tests.cluster.conftest import soon
from tests.unit.k8s.test_manifests import CPU, GOLDEN
from trainer.contract import Placement

PLURALS = {"JobSet": "jobsets", "Job": "jobs"}
KUBERNETES_OWN = "batch/v1"
FILES = sorted(GOLDEN.glob("*.yaml"))


@pytest.fixture(scope="module")
def api(core: Any) -> client.ApiClient:
    found: client.ApiClient = core.api_client
    return found


def dry_run(api: client.ApiClient, namespace: str, manifest: dict[str, Any]) -> dict[str, Any]:
    """As `kubectl apply --dry-run=server --validate=strict` sends it."""
    group, _, version = manifest["apiVersion"].partition("/")
    objects: Any = client.CustomObjectsApi(api)
    found: dict[str, Any] = objects.create_namespaced_custom_object(
        group, version, namespace, PLURALS[manifest["kind"]], manifest, dry_run="All", field_validation="Strict"
    )
    return found


def golden(path: Path, namespace: str) -> dict[str, Any]:
    manifest: dict[str, Any] = yaml.safe_load(path.read_text())
    manifest["metadata"]["namespace"] = namespace
    return manifest


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_manifest_is_accepted_whole(api: client.ApiClient, namespace: str, path: Path) -> None:
    manifest = golden(path, namespace)
    accepted = dry_run(api, namespace, copy.deepcopy(manifest))
    # The server drops what it does not know; of a vcjob, whose webhook is not there, nothing may have changed.
    if manifest["kind"] == "Job" and manifest["apiVersion"] != KUBERNETES_OWN:
        assert accepted["spec"] == manifest["spec"]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_its_pods_are_valid_pods(api: client.ApiClient, namespace: str, path: Path) -> None:
    core: Any = client.CoreV1Api(api)
    for template in templates(golden(path, namespace)):
        pod = {"metadata": {"name": "template"}, "template": template}
        core.create_namespaced_pod_template(namespace, pod, dry_run="All", field_validation="Strict")


def templates(manifest: dict[str, Any]) -> list[dict[str, Any]]:
    if manifest["apiVersion"] == KUBERNETES_OWN:
        return [manifest["spec"]["template"]]
    if manifest["kind"] == "Job":
        return [task["template"] for task in manifest["spec"]["tasks"]]
    return [job["template"]["spec"]["template"] for job in manifest["spec"]["replicatedJobs"]]


def test_a_slip_of_the_pen_is_refused(api: client.ApiClient, namespace: str) -> None:
    manifest = golden(GOLDEN / "volcano-elastic.yaml", namespace)
    manifest["spec"]["minAvailabel"] = manifest["spec"].pop("minAvailable")
    with pytest.raises(ApiException, match=r"unknown field .*spec.minAvailabel"):
        dry_run(api, namespace, manifest)
    manifest = golden(GOLDEN / "volcano-elastic.yaml", namespace)
    manifest["spec"]["tasks"][0]["policies"][0]["event"] = "PodLost"
    with pytest.raises(ApiException, match=r"policies.*Unsupported value"):
        dry_run(api, namespace, manifest)


@pytest.fixture
def launcher(namespace: str, tmp_path: Path) -> ClusterLauncher:
    settings = Settings(
        scheduler="volcano", pools=tmp_path / "pools.yaml", store="s3://mcf", namespace=namespace, work_dir=tmp_path
    )
    return ClusterLauncher(settings, {"cpu": Pool(**CPU)})


def test_volcano_need_not_wait_for_a_pod_on_a_dead_node(core: Any, namespace: str, launcher: ClusterLauncher) -> None:
    """Of such a node no kubelet says that the pod has ended, and Volcano gives its successor the same name."""
    launch = Launch("stranded", 1, Placement(pool="cpu"))
    pod = templates(golden(GOLDEN / "volcano-plain.yaml", namespace))[1]
    pod["metadata"] |= {"name": "mcf-stranded-1-worker-0"}
    pod["metadata"]["labels"]["mcf.dev/attempt"] = launch.name
    pod["spec"]["nodeName"] = "gone"
    launcher.start(lambda name: None)
    try:
        launcher.submit(launch)
        core.create_namespaced_pod(namespace, pod)
        evicted = {"type": "DisruptionTarget", "status": "True", "reason": "DeletionByTaintManager"}
        core.patch_namespaced_pod_status(pod["metadata"]["name"], namespace, {"status": {"conditions": [evicted]}})
        core.delete_namespaced_pod(pod["metadata"]["name"], namespace)
        soon(lambda: launcher.look(launch) and not pods(core, namespace, launch.name), 10)
    finally:
        launcher.cancel(launch.name)
        launcher.close()


def pods(core: Any, namespace: str, attempt: str) -> list[Any]:
    found: list[Any] = core.list_namespaced_pod(namespace, label_selector=f"mcf.dev/attempt={attempt}").items
    return found


def test_the_service_sends_finds_and_stops_a_vcjob(
    api: client.ApiClient, namespace: str, launcher: ClusterLauncher
) -> None:
    """What Volcano would say of it is written into its status by hand."""
    launch = Launch("r0", 1, Placement(pool="cpu", min_nodes=1, max_nodes=2))
    objects: Any = client.CustomObjectsApi(api)
    vcjob = "batch.volcano.sh", "v1alpha1", namespace, "jobs", f"mcf-{launch.name}"

    def look() -> tuple[JobState, str]:
        job = launcher.look(launch)
        return job.state, job.message

    launcher.start(lambda name: None)
    try:
        assert look() == (JobState.ABSENT, "")
        launcher.submit(launch)
        launcher.submit(launch)
        assert look() == (JobState.PENDING, "waits in the queue default until 2 pods fit at once")
        assert launcher.live() == [launch.name]
        for phase, state in [
            ("Running", JobState.PENDING),
            ("Aborted", JobState.CANCELLED),
            ("Completed", JobState.SUCCEEDED),
        ]:
            objects.patch_namespaced_custom_object_status(*vcjob, {"status": {"state": {"phase": phase}}})
            soon(lambda state=state: look()[0] is state, 10, look)
        assert launcher.live() == []
        launcher.cancel(launch.name)
        soon(lambda: look() == (JobState.ABSENT, ""), 30, look)
    finally:
        launcher.close()
