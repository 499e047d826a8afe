"""The chart as a release in the test cluster (../shared/cluster, see scripts/test-cluster): values, install, look.

    with installed("e2e-1", service={"replicas": 1}) as release:
        client = Client(release.url, token=release.token)

Images are only named here (MCF_TEST_IMAGE_*); whoever starts the cluster builds them.
"""

import contextlib
import json
import os
import shutil
import subprocess
import tempfile
from base64 import b64decode
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import boto3
import yaml

ROOT = Path(__file__).resolve().parents[2]
CHART = ROOT / "charts" / "mcf"
S3 = {
    "endpoint": "http://10.77.0.1:9000",
    "access_key": os.environ.get("AWS_ACCESS_KEY_ID", "mcf"),
    "secret_key": os.environ.get("AWS_SECRET_ACCESS_KEY", "mcf-secret"),
    "region": "us-east-1",
}
IMAGES = {
    name: os.environ.get(f"MCF_TEST_IMAGE_{name.upper()}", f"localhost/mcf-{name}:dev")
    for name in ("service", "mlflow", "postgres", "trainer")
}
JOBSET_CONFIG = "controller_manager_config.yaml"
# Longer than an API server is away in these tests; with the 10 s of old the leader ends each time.
PATIENT_LEADER = {"leaseDuration": "90s", "renewDeadline": "80s", "retryPeriod": "5s"}
# The chart's pods and those of runs are admitted as Kubernetes' strictest profile wants them.
RESTRICTED = {"pod-security.kubernetes.io/enforce": "restricted"}

Values = dict[str, Any]


def find_helm() -> str | None:
    """The helm binary; None where there is none."""
    beside = Path.home() / ".cache/mcf-cluster/bin/helm"
    return shutil.which("helm") or (str(beside) if beside.exists() else None)


def cluster_is_up() -> bool:
    """Whether a kubeconfig is named and its API server answers."""
    if not os.environ.get("KUBECONFIG") or not shutil.which("kubectl"):
        return False
    asked = subprocess.run(["kubectl", "get", "--raw", "/readyz", "--request-timeout=5s"], capture_output=True)
    return asked.returncode == 0


def cluster_values(namespace: str, **values: Any) -> Values:
    """Values for the test cluster: its S3 server, its two nodes as pools, small requests; `values` go on top."""
    on = {node: {"node_selector": {"mcf.dev/pool": node}} for node in ("on-demand", "spot")}
    # Two cores are shared by everything here.
    pod: Values = {"cpu": "500m", "memory": "2Gi", "shm": "256Mi", "grace_seconds": 20}
    pod["rendezvous"] = {"cpu": "50m", "memory": "512Mi"}
    small = {"requests": {"cpu": "20m", "memory": "128Mi"}}
    ours: Values = {
        "service": {"image": _image("service"), "resources": small, "settings": {"tickSeconds": 0.5}},
        # Tests ask it at its pod's address, which no client in the cluster does.
        "mlflow": {"image": _image("mlflow"), "resources": small, "allowedHosts": ["10.78.*"]},
        "postgresql": {"image": _image("postgres"), "resources": small},
        "trainer": {"image": _image("trainer")},
        "store": {
            "uri": f"s3://{namespace}/store", "endpoint": S3["endpoint"], "region": S3["region"],
            "existingSecret": "s3",
        },
        "pools": {"local": None, "cpu": pod, **{name: {**pod, **where} for name, where in on.items()}},
    }  # fmt: skip
    return merged(ours, values)


def merged(below: Values, above: Values) -> Values:
    """Both, as Helm merges values: mappings key by key, everything else replaced."""
    both = dict(below)
    for name, value in above.items():
        old = both.get(name)
        both[name] = merged(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return both


@dataclass(frozen=True)
class Release:
    """A release of the chart, by the names that it gives its parts."""

    namespace: str
    name: str = "mcf"

    @property
    def token(self) -> str:
        return self.secret(f"{self.name}-service")["token"]

    @property
    def url(self) -> str:
        """Address of a pod of the service that is ready now; asked anew each time, for pods come and go."""
        return f"http://{self._address('service')}:8000"

    @property
    def mlflow_url(self) -> str:
        return f"http://{self._address('mlflow')}:5000"

    def secret(self, name: str) -> dict[str, str]:
        data = self.get("secret", name)["data"]
        return {key: b64decode(value).decode() for key, value in data.items()}

    def get(self, *what: str) -> Any:
        """Objects of the namespace, as kubectl names them."""
        return json.loads(self.kubectl("get", *what, "--output=json"))

    def kubectl(self, *arguments: str, text: str | None = None) -> str:
        return run("kubectl", "--namespace", self.namespace, *arguments, text=text)

    def helm(self, *arguments: str) -> str:
        return run(find_helm() or "helm", "--namespace", self.namespace, *arguments)

    def install(self, values: Values, *, chart: Path = CHART, wait: str = "4m") -> None:
        """Install or upgrade, and wait until everything is ready. Raises with what the pods say."""
        with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
            yaml.safe_dump(values, file)
            file.flush()
            try:
                self.helm(
                    "upgrade", "--install", self.name, str(chart), "--values", file.name, "--wait", f"--timeout={wait}"
                )
            except RuntimeError as error:
                raise RuntimeError(f"{error}\n{self.why_not()}") from None

    def uninstall(self) -> None:
        self.helm("uninstall", self.name, "--wait", "--timeout=3m")

    def why_not(self) -> str:
        """What a person would look at when pods do not become ready."""
        looks = [("get", "pods", "--output=wide"), ("get", "events", "--sort-by=.lastTimestamp")]
        for pod in self.get("pods", f"--selector=app.kubernetes.io/instance={self.name}")["items"]:
            looks.append(("logs", "--all-containers", "--prefix", "--tail=20", pod["metadata"]["name"]))
        told = []
        for look in looks:
            with contextlib.suppress(RuntimeError):
                told.append(self.kubectl(*look))
        return "\n".join(told)

    def _address(self, component: str) -> str:
        pods = self.get(
            "pods", f"--selector=app.kubernetes.io/instance={self.name},app.kubernetes.io/component={component}"
        )
        for pod in pods["items"]:
            held = {each["type"]: each["status"] for each in pod["status"].get("conditions", [])}
            if held.get("Ready") == "True" and "deletionTimestamp" not in pod["metadata"]:
                return str(pod["status"]["podIP"])
        raise RuntimeError(f"no pod of {component} is ready in {self.namespace}")


def install(namespace: str, *, name: str = "mcf", **values: Any) -> Release:
    """A release that is ready, in a namespace of its own with the S3 Secret, and its bucket."""
    prepare(namespace)
    release = Release(namespace, name)
    release.install(cluster_values(namespace, **values))
    return release


@contextlib.contextmanager
def installed(namespace: str, *, name: str = "mcf", **values: Any) -> Iterator[Release]:
    """install(), and remove() afterwards."""
    try:
        yield install(namespace, name=name, **values)
    finally:
        remove(namespace)


def prepare(namespace: str, labels: dict[str, str] = RESTRICTED) -> None:
    """What has to be there before the chart: JobSet, the namespace, the Secret of the object store, the bucket."""
    steady_jobset()
    keys = {"AWS_ACCESS_KEY_ID": S3["access_key"], "AWS_SECRET_ACCESS_KEY": S3["secret_key"]}
    objects = [
        {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace, "labels": labels}},
        {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "s3", "namespace": namespace}, "stringData": keys},
    ]
    run("kubectl", "apply", "--filename=-", text=yaml.safe_dump_all(objects))
    with contextlib.suppress(s3().exceptions.BucketAlreadyOwnedByYou, s3().exceptions.BucketAlreadyExists):
        s3().create_bucket(Bucket=namespace)


def steady_jobset() -> None:
    """JobSet's controller as docs/install.md says, from now on: two, on different nodes. Returns when they answer.

    Every JobSet and each of its pods passes their webhook. The only one would die with its node; and the leader would
    end whenever the API server is away for 10 s, after which kubelet lets it wait longer each time, up to minutes.
    """
    settings = ["--namespace", "jobset-system", "configmap/jobset-controller-config"]
    config = yaml.safe_load(json.loads(run("kubectl", "get", *settings, "--output=json"))["data"][JOBSET_CONFIG])
    config["leaderElection"] |= PATIENT_LEADER
    patch: dict[str, Any] = {"data": {JOBSET_CONFIG: yaml.safe_dump(config)}}
    run("kubectl", "patch", *settings, "--type=merge", f"--patch={json.dumps(patch)}")
    deployment = ["--namespace", "jobset-system", "deployment/jobset-controller"]
    labels = json.loads(run("kubectl", "get", *deployment, "--output=json"))["spec"]["selector"]["matchLabels"]
    apart = {"labelSelector": {"matchLabels": labels}, "topologyKey": "kubernetes.io/hostname"}
    wanted = {"podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [apart]}}
    # It reads its settings when it starts.
    template = {
        "metadata": {"annotations": {"leader-election": json.dumps(PATIENT_LEADER)}},
        "spec": {"affinity": wanted},
    }
    patch = {"spec": {"replicas": 2, "template": template, "strategy": {
        "type": "RollingUpdate", "rollingUpdate": {"maxSurge": 0, "maxUnavailable": 1},
    }}}  # fmt: skip
    run("kubectl", "patch", *deployment, "--type=merge", f"--patch={json.dumps(patch)}")
    # Two webhooks a pod, and each waits for a controller on a dead node once: 20 s with Kubernetes' own 10 s.
    for kind in "mutating", "validating":
        name = f"{kind}webhookconfiguration/jobset-{kind}-webhook-configuration"
        hooks = json.loads(run("kubectl", "get", name, "--output=json"))["webhooks"]
        shorter = {"webhooks": [hook | {"timeoutSeconds": 3} for hook in hooks]}
        run("kubectl", "patch", name, "--type=merge", f"--patch={json.dumps(shorter)}")
    run("kubectl", "rollout", "status", *deployment, "--timeout=240s")


def remove(namespace: str, name: str = "mcf") -> None:
    """Everything of a release, whatever state it is in; its volume is given back for others to claim."""
    release = Release(namespace, name)
    with contextlib.suppress(RuntimeError):
        release.helm("uninstall", name, "--no-hooks", "--ignore-not-found")
    volumes = [
        each["metadata"]["name"]
        for each in json.loads(run("kubectl", "get", "pv", "--output=json"))["items"]
        if each["spec"].get("claimRef", {}).get("namespace") == namespace
    ]
    run("kubectl", "delete", "namespace", namespace, "--ignore-not-found", "--wait=true", "--timeout=120s")
    for volume in volumes:
        # The cluster's volumes are folders that nobody empties: the next database would find this one.
        path = json.loads(run("kubectl", "get", "pv", volume, "--output=json"))["spec"]["hostPath"]["path"]
        for left in Path(path).iterdir():
            shutil.rmtree(left, ignore_errors=True)
        run("kubectl", "patch", "pv", volume, "--type=json", '--patch=[{"op": "remove", "path": "/spec/claimRef"}]')


def s3() -> Any:
    """A client of the cluster's S3 server, from outside it."""
    return boto3.client(
        "s3", endpoint_url=S3["endpoint"], region_name=S3["region"],
        aws_access_key_id=S3["access_key"], aws_secret_access_key=S3["secret_key"],
    )  # fmt: skip


def run(*command: str, text: str | None = None) -> str:
    """What a command prints. Raises with its own words when it fails."""
    done = subprocess.run(command, input=text, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr.strip() or done.stdout.strip()}")
    return done.stdout


def _image(name: str) -> Values:
    repository, _, tag = IMAGES[name].rpartition(":")
    return {"repository": repository, "tag": tag, "pullPolicy": "Never"}
