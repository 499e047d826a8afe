"""The chart in a real cluster, from the previous version of it to its end: one release, and the tests in this order."""

import base64
import json
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.chart.release import IMAGES, Release, cluster_values, merged, prepare, remove, run, s3
from tests.cluster.conftest import soon

NAMESPACE = "chart-installed"
PREVIOUS = Path(__file__).with_name("mcf-0.1.0.tgz")
# That version wanted a user that PostgreSQL's image knows: the first one that Debian makes.
VALUES = cluster_values(NAMESPACE, postgresql={"uid": 100})
ATTEMPT = "of-a-run-1"

Object = dict[str, Any]


@dataclass
class World:
    release: Release
    secrets: dict[str, dict[str, str]] = field(default_factory=dict)
    pod: str = ""
    """Of the attempt that runs all the while."""

    def attempt_pod(self) -> Object | None:
        """The attempt's pod that runs now."""
        pods = self.release.get("pods", f"--selector=mcf.dev/attempt={ATTEMPT}")["items"]
        alive = [each for each in pods if "deletionTimestamp" not in each["metadata"]]
        return next((each for each in alive if each["status"]["phase"] == "Running"), None)

    def mlflow(self, path: str, body: Object | None = None, *, secret: str = "mcf-mlflow") -> Any:
        """What MLflow answers to who has that login."""
        login = self.release.secret(secret)
        pair = f"{login['MLFLOW_TRACKING_USERNAME']}:{login['MLFLOW_TRACKING_PASSWORD']}"
        request = urllib.request.Request(
            f"{self.release.mlflow_url}/api/2.0/mlflow/{path}",
            data=None if body is None else json.dumps(body).encode(),
            headers={
                "Authorization": f"Basic {base64.b64encode(pair.encode()).decode()}",
                "Content-Type": "application/json",
            },
        )
        with urllib.request.urlopen(request, timeout=30) as answer:
            return json.loads(answer.read() or "{}")

    def ask(self, path: str) -> Any:
        headers = {"Authorization": f"Bearer {self.release.token}"}
        with urllib.request.urlopen(urllib.request.Request(self.release.url + path, headers=headers)) as answer:
            return json.load(answer)


@pytest.fixture(scope="module")
def world(cluster: None) -> Iterator[World]:
    """The previous version with data in it and an attempt in flight, upgraded to this one."""
    prepare(NAMESPACE)
    world = World(Release(NAMESPACE))
    try:
        world.release.install(VALUES, chart=PREVIOUS)
        world.mlflow("experiments/create", {"name": "of-before"})
        world.release.kubectl("apply", "--filename=-", text=yaml.safe_dump(_jobset()))
        world.pod = soon(world.attempt_pod, 60)["metadata"]["uid"]
        made = [each for each in world.release.get("secrets")["items"] if each["type"] == "Opaque"]
        world.secrets = {each["metadata"]["name"]: each["data"] for each in made}
        world.release.install(VALUES)
        yield world
    finally:
        remove(NAMESPACE)


def test_an_upgrade_keeps_passwords_data_and_what_runs(world: World) -> None:
    assert {"mcf-service", "mcf-mlflow", "mcf-mlflow-server", "mcf-postgresql"} <= set(world.secrets)
    for name, data in world.secrets.items():
        assert world.release.get("secret", name)["data"] == data, f"{name} has changed"
    found = world.mlflow("experiments/search", {"max_results": 10})["experiments"]
    assert "of-before" in [each["name"] for each in found]
    assert world.ask("/v1/experiments")
    pod = world.attempt_pod()
    assert pod
    assert pod["metadata"]["uid"] == world.pod
    assert pod["status"]["containerStatuses"][0]["restartCount"] == 0
    assert len(_pods(world.release, "service")) == 2


def test_helm_test(world: World) -> None:
    told = world.release.helm("test", "mcf", "--logs", "--timeout=2m")
    for line in "a wrong token: 401", "mlflow, as a run: 200", "'database': 'ok'":
        assert line in told
    assert "helm test mcf" in world.release.helm("get", "notes", "mcf")


def test_the_service_may_do_what_it_does_and_nothing_else(world: World) -> None:
    def may(verb: str, kind: str, *more: str) -> bool:
        # A subresource has an option of its own: `get pods/log` would ask for a pod called log.
        kind, _, part = kind.partition("/")
        words = [verb, kind, *([f"--subresource={part}"] if part else []), *more]
        account = f"--as=system:serviceaccount:{NAMESPACE}:mcf-service"
        try:
            return world.release.kubectl("auth", "can-i", *words, account).strip() == "yes"
        except RuntimeError:
            return False

    jobsets = "jobsets.jobset.x-k8s.io"
    for verb in "create", "get", "list", "watch", "delete":
        assert may(verb, jobsets), verb
        assert not may(verb, jobsets, "--namespace=default"), verb
    for verb, kind in [
        ("list", "pods"), ("watch", "pods"), ("list", "events"), ("watch", "events"), ("get", "pods/log"),
        ("list", "nodes"), ("watch", "nodes"), 
        *((verb, "jobs.batch") for verb in ("create", "list", "watch", "delete")),
    ]:  # fmt: skip
        assert may(verb, kind), f"{verb} {kind}"
    assert may("list", "pods", "--all-namespaces")
    for verb, kind in [
        ("get", "secrets"), ("list", "secrets"), ("create", "pods"), ("delete", "pods"), ("create", "pods/exec"),
        ("update", jobsets), ("patch", jobsets), ("get", "configmaps"), ("update", "jobs.batch"), ("delete", "nodes"),
        ("patch", "nodes"), ("create", "serviceaccounts/token"), ("*", "*"),
    ]:  # fmt: skip
        assert not may(verb, kind), f"{verb} {kind}"
    assert not may("watch", "pods", "--all-namespaces")


def test_with_these_rights_the_service_sees_pools_and_nodes(world: World) -> None:
    pools = {each["name"]: each for each in world.ask("/v1/pools")["pools"]}
    assert {name: pool["nodes"] for name, pool in pools.items()} == {"cpu": 2, "on-demand": 1, "spot": 1}


def test_a_run_may_write_to_mlflow_and_delete_nothing(world: World) -> None:
    experiment = world.mlflow("experiments/create", {"name": "of-the-service"})["experiment_id"]
    made = world.mlflow("runs/create", {"experiment_id": experiment})["run"]["info"]
    run_id, artifacts = made["run_id"], made["artifact_uri"].removeprefix("mlflow-artifacts:/")

    def as_a_run(path: str, body: Object) -> int:
        try:
            world.mlflow(path, body, secret="mcf-mlflow-runs")
        except urllib.error.HTTPError as error:
            return error.code
        return 200

    metric = {"key": "loss", "value": 1.0, "timestamp": 1, "step": 1}
    allowed = [
        ("runs/log-batch", {"run_id": run_id, "metrics": [metric], "tags": [{"key": "attempt", "value": "1"}]}),
        ("runs/update", {"run_id": run_id, "status": "FINISHED"}),
        ("logged-models", {"experiment_id": experiment, "source_run_id": run_id, "name": "encoder"}),
    ]
    assert [as_a_run(*each) for each in allowed] == [200, 200, 200]
    denied: list[tuple[str, Object]] = [
        ("runs/delete", {"run_id": run_id}),
        ("experiments/delete", {"experiment_id": experiment}),
        ("users/create", {"username": "another", "password": "a-long-password"}),
        (
            "experiments/permissions/create",
            {"experiment_id": experiment, "username": "mcf-runs", "permission": "MANAGE"},
        ),
    ]
    assert [as_a_run(*each) for each in denied] == [403] * len(denied)

    login = world.release.secret("mcf-mlflow-runs")
    pair = base64.b64encode(f"mcf-runs:{login['MLFLOW_TRACKING_PASSWORD']}".encode()).decode()
    url = f"{world.release.mlflow_url}/api/2.0/mlflow-artifacts/artifacts/{artifacts}/note.txt"
    for method, code in ("PUT", 200), ("DELETE", 403):
        request = urllib.request.Request(url, b"seen", {"Authorization": f"Basic {pair}"}, method=method)
        try:
            status = urllib.request.urlopen(request, timeout=30).status
        except urllib.error.HTTPError as error:
            status = error.code
        assert (method, status) == (method, code)


def test_the_same_values_again_restart_nothing(world: World) -> None:
    before = [_pods(world.release, part) for part in ("service", "mlflow", "postgresql")]
    world.release.install(VALUES)
    assert [_pods(world.release, part) for part in ("service", "mlflow", "postgresql")] == before


def test_uninstalling_leaves_runs_and_data_alone(world: World) -> None:
    release = world.release
    release.uninstall()
    assert not _pods(release, "service")
    pod = world.attempt_pod()
    assert pod
    assert pod["metadata"]["uid"] == world.pod
    # A pod that is lost now is replaced as before: what it needs to start is still there.
    release.kubectl("delete", "pod", pod["metadata"]["name"], "--grace-period=0", "--force")
    soon(lambda: (now := world.attempt_pod()) and now["metadata"]["uid"] != world.pod, 60)
    [claim] = release.get("persistentvolumeclaims")["items"]
    assert claim["status"]["phase"] == "Bound"
    left = {each["metadata"]["name"] for each in release.get("secrets")["items"]}
    assert left == {"s3", "mcf-postgresql", "mcf-mlflow-runs"}
    kept = s3().list_objects_v2(Bucket=NAMESPACE, Prefix="store/mlflow/")["Contents"]
    assert any(each["Key"].endswith("note.txt") for each in kept)


def test_installed_again_it_finds_its_data(world: World) -> None:
    again: Object = {
        "service": {"replicas": 1}, "mlflow": {"enabled": False}, "uninstall": {"deleteRuns": True},
    }  # fmt: skip
    world.release.install(merged(VALUES, again))
    assert world.release.get("secret", "mcf-postgresql")["data"] == world.secrets["mcf-postgresql"]
    asked = (
        "PGPASSWORD=$(cat /etc/postgresql-password/password) PATH=$PATH:$(echo /usr/lib/postgresql/*/bin); "
        "export PGPASSWORD; psql -h 127.0.0.1 -U mcf -d mlflow -tAc 'select name from experiments'"
    )
    names = world.release.kubectl("exec", "mcf-postgresql-0", "--", "sh", "-c", asked)
    assert {"of-before", "of-the-service"} <= set(names.split())


def test_uninstalling_deletes_runs_when_told(world: World) -> None:
    release = world.release
    assert world.attempt_pod()
    release.uninstall()
    assert not release.get("jobsets")["items"]
    assert not world.attempt_pod()
    # `helm test` leaves its pod, for its log.
    kinds = "all,roles,rolebindings,serviceaccounts,configmaps,networkpolicies,poddisruptionbudgets"

    def left() -> set[str]:
        return {name for name in release.kubectl("get", kinds, "--output=name").split() if "/mcf" in name}

    soon(lambda: left() <= {"pod/mcf-test"}, 60, left)
    everywhere = run("kubectl", "get", "clusterroles,clusterrolebindings", "--output=name")
    assert NAMESPACE not in everywhere


def _pods(release: Release, component: str) -> list[str]:
    pods = release.get("pods", f"--selector=app.kubernetes.io/component={component}")["items"]
    return sorted(each["metadata"]["name"] for each in pods if "deletionTimestamp" not in each["metadata"])


def _jobset() -> Object:
    """An attempt that does nothing for a long time, and starts with a Secret of the release."""
    security = {"allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]}}
    container = {
        "name": "main", "image": IMAGES["service"], "imagePullPolicy": "Never", "securityContext": security,
        "command": ["sleep", "10000"], "envFrom": [{"secretRef": {"name": "mcf-postgresql"}}],
        "resources": {"limits": {"cpu": "10m", "memory": "32Mi"}},
    }  # fmt: skip
    pod = {
        "restartPolicy": "Never", "terminationGracePeriodSeconds": 1, "automountServiceAccountToken": False,
        "securityContext": {"runAsNonRoot": True, "runAsUser": 10001, "seccompProfile": {"type": "RuntimeDefault"}},
        "containers": [container],
    }  # fmt: skip
    template = {"metadata": {"labels": {"mcf.dev/attempt": ATTEMPT}}, "spec": pod}
    job = {"parallelism": 1, "completions": 1, "backoffLimit": 20, "template": template}
    return {
        "apiVersion": "jobset.x-k8s.io/v1alpha2", "kind": "JobSet",
        "metadata": {"name": f"mcf-{ATTEMPT}", "labels": {"mcf.dev/attempt": ATTEMPT}},
        "spec": {"replicatedJobs": [{"name": "worker", "replicas": 1, "template": {"spec": job}}]},
    }  # fmt: skip
