"""A real API server with the real CRDs takes what is sent to it. Nothing of Volcano runs there: it validates, no more.

KUBECONFIG names the cluster; without it, that of shared/cluster. Only one namespace of it is written to.
"""

import copy
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import urllib3
import yaml
from kubernetes import client, config
from kubernetes.client.exceptions import ApiException
from torchx.specs import AppState

from k8s.pools import Pool
from k8s.volcano_scheduler import VolcanoScheduler
from service.launcher import Launch, TorchxLauncher
from service.reconciler.transitions import JobState
from service.settings import Settings
from tests.unit.k8s.test_manifests import CPU, GOLDEN
from trainer.spec import Placement

NAMESPACE = "volcano-test"
CLUSTER = os.environ.get("KUBECONFIG") or "/var/lib/mcf-cluster/admin.kubeconfig"
PLURALS = {"JobSet": "jobsets", "Job": "jobs"}
FILES = sorted(GOLDEN.glob("*.yaml"))


@pytest.fixture(scope="module")
def api() -> Iterator[client.ApiClient]:
    try:
        found = config.new_client_from_config(CLUSTER)
        client.VersionApi(found).get_code(_request_timeout=10)
    except (config.ConfigException, urllib3.exceptions.HTTPError, OSError) as error:
        pytest.skip(f"needs a cluster, and none answers at {CLUSTER} (start one: shared/cluster/cluster up 2): {error}")
    core: Any = client.CoreV1Api(found)
    try:
        core.create_namespace({"metadata": {"name": NAMESPACE}})
    except ApiException as error:
        if error.status != 409:
            raise
    yield found
    found.close()


def dry_run(api: client.ApiClient, manifest: dict[str, Any]) -> dict[str, Any]:
    """As `kubectl apply --dry-run=server --validate=strict` sends it."""
    group, _, version = manifest["apiVersion"].partition("/")
    objects: Any = client.CustomObjectsApi(api)
    found: dict[str, Any] = objects.create_namespaced_custom_object(
        group, version, NAMESPACE, PLURALS[manifest["kind"]], manifest, dry_run="All", field_validation="Strict"
    )
    return found


def golden(path: Path) -> dict[str, Any]:
    manifest: dict[str, Any] = yaml.safe_load(path.read_text())
    manifest["metadata"]["namespace"] = NAMESPACE
    return manifest


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_manifest_is_accepted_whole(api: client.ApiClient, path: Path) -> None:
    manifest = golden(path)
    accepted = dry_run(api, copy.deepcopy(manifest))
    # The server drops what it does not know; of a vcjob, whose webhook is not there, nothing may have changed.
    if manifest["kind"] == "Job":
        assert accepted["spec"] == manifest["spec"]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_its_pods_are_valid_pods(api: client.ApiClient, path: Path) -> None:
    core: Any = client.CoreV1Api(api)
    for template in templates(golden(path)):
        pod = {"metadata": {"name": "template"}, "template": template}
        core.create_namespaced_pod_template(NAMESPACE, pod, dry_run="All", field_validation="Strict")


def templates(manifest: dict[str, Any]) -> list[dict[str, Any]]:
    if manifest["kind"] == "Job":
        return [task["template"] for task in manifest["spec"]["tasks"]]
    return [job["template"]["spec"]["template"] for job in manifest["spec"]["replicatedJobs"]]


def test_a_slip_of_the_pen_is_refused(api: client.ApiClient) -> None:
    manifest = golden(GOLDEN / "volcano-elastic.yaml")
    manifest["spec"]["minAvailabel"] = manifest["spec"].pop("minAvailable")
    with pytest.raises(ApiException, match=r"unknown field .*spec.minAvailabel"):
        dry_run(api, manifest)
    manifest = golden(GOLDEN / "volcano-elastic.yaml")
    manifest["spec"]["tasks"][0]["policies"][0]["event"] = "PodLost"
    with pytest.raises(ApiException, match=r"policies.*Unsupported value"):
        dry_run(api, manifest)


def test_the_service_sends_finds_and_stops_a_vcjob(
    api: client.ApiClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What Volcano would say of it is written into its status by hand."""
    monkeypatch.setattr(config.kube_config, "KUBE_CONFIG_DEFAULT_LOCATION", CLUSTER)
    settings = Settings(
        scheduler="volcano", pools=tmp_path / "pools.yaml", store="s3://mcf", namespace=NAMESPACE, work_dir=tmp_path
    )
    launcher = TorchxLauncher(settings, {"cpu": Pool(**CPU)})
    launch = Launch(f"r{os.getpid()}", 1, Placement(pool="cpu", min_nodes=1, max_nodes=2))
    objects: Any = client.CustomObjectsApi(api)
    vcjob = "batch.volcano.sh", "v1alpha1", NAMESPACE, "jobs", f"mcf-{launch.name}"
    assert launcher.look(launch.name) == (JobState.ABSENT, "")
    launcher.submit(launch)
    launcher.submit(launch)
    try:
        assert launcher.look(launch.name) == (
            JobState.PENDING, "waits in the queue default until 2 pods fit at once"
        )  # fmt: skip
        assert launch.name in launcher.live()
        for phase, state in [
            ("Running", JobState.PENDING),
            ("Aborted", JobState.CANCELLED),
            ("Completed", JobState.SUCCEEDED),
        ]:
            objects.patch_namespaced_custom_object_status(*vcjob, {"status": {"state": {"phase": phase}}})
            assert launcher.look(launch.name)[0] is state
        assert launch.name not in launcher.live()
        objects.patch_namespaced_custom_object_status(*vcjob, {"status": {"state": {"phase": "Running"}}})
        launcher.cancel(launch.name)
        wait_until(lambda: launcher.look(launch.name) == (JobState.ABSENT, ""))
    finally:
        scheduler = VolcanoScheduler("mcf", {}, NAMESPACE, api)
        if (left := scheduler.describe(launch.name)) and left.state is not AppState.UNKNOWN:
            scheduler.cancel(launch.name)


def wait_until(true: Callable[[], bool], seconds: float = 30) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.2)
