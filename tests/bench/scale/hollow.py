"""Nodes without a machine: the API server, scheduler and controllers are real, and the pods only sleep.

A Node object for each, kept alive by its lease; a pod that is put there is running at once, prints a line a second
(its log is served as a kubelet serves it, through the API server), and, where it is a worker, leaves the same records
in the store as a trainer. With `run_seconds` it ends after so long with a result.
"""

import json
import random
import ssl
import subprocess
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from kubernetes import client, watch
from kubernetes.client.exceptions import ApiException

from k8s.pods import ATTEMPT, ROLE, WORKER
from tests.integration.records import result, session
from trainer.contract.records import OUTCOME, RESULT, SPEC
from trainer.store.objects import Store, open_store

PODS_A_NODE = 1000
LEASES = "kube-node-lease"
BEAT_SECONDS, RECORD_SECONDS = 5.0, 10.0
"""A trainer writes its session every 2 s while it is quick and every 12 s at the latest."""
POOL = {"mcf.dev/pool": "hollow"}


def now() -> str:
    return datetime.now(UTC).isoformat().replace("+00:00", "Z")


@dataclass
class Sleeper:
    """A worker pod that runs."""

    pod: str
    store: Store
    spec: Mapping[str, Any]
    attempt: int
    ends: float
    """By time.monotonic()."""
    started: str = field(default_factory=now)
    step: int = 0


class HollowNodes:
    def __init__(self, namespace: str, host: str, port: int, folder: Path) -> None:
        """`host`, `port`: where the API server is to ask for logs."""
        self.run_seconds: float | None = None
        """Mean; None = a pod sleeps until it is told to stop."""
        self._namespace, self._host, self._port, self._folder = namespace, host, port, folder
        self._core, self._coordination = client.CoreV1Api(), client.CoordinationV1Api()
        self._names: list[str] = []
        self._sleepers: dict[str, Sleeper] = {}
        self._seen: dict[str, str] = {}
        self._stopping = threading.Event()
        self._lock = threading.Lock()

    @property
    def running(self) -> int:
        return len(self._sleepers)

    def start(self, count: int) -> None:
        self._serve_logs()
        for number in range(count):
            self._names.append(name := f"hollow-{self._namespace}-{number}")
            labels = {**POOL, "kubernetes.io/hostname": name}
            self._core.create_node({"metadata": {"name": name, "labels": labels}})
            self._core.patch_node_status(name, {"status": self._status()})
            spec = {"holderIdentity": name, "leaseDurationSeconds": 40, "renewTime": _micro()}
            self._coordination.create_namespaced_lease(LEASES, {"metadata": {"name": name}, "spec": spec})
        for work in (self._beat, self._watch, self._sleep):
            threading.Thread(target=work, daemon=True).start()

    def wake_some(self) -> None:
        """From now on runs end, those that run already within the mean time."""
        with self._lock:
            for sleeper in self._sleepers.values():
                sleeper.ends = time.monotonic() + random.uniform(0.0, self.run_seconds or 1e9)

    def stop(self) -> None:
        self._stopping.set()
        for name in self._names:
            self._core.delete_node(name)
            self._coordination.delete_namespaced_lease(name, LEASES)

    # ------------------------------------------------------------ nodes

    def _status(self) -> dict[str, Any]:
        room = {"cpu": "4000", "memory": "8Ti", "pods": str(PODS_A_NODE), "nvidia.com/gpu": str(PODS_A_NODE)}
        ready = {"type": "Ready", "status": "True", "reason": "Hollow", "message": "it has no machine"}
        times = {"lastHeartbeatTime": now(), "lastTransitionTime": now()}
        return {
            "capacity": room, "allocatable": room, "conditions": [ready | times],
            "addresses": [{"type": "InternalIP", "address": self._host}],
            "daemonEndpoints": {"kubeletEndpoint": {"Port": self._port}},
        }  # fmt: skip

    def _beat(self) -> None:
        while not self._stopping.wait(BEAT_SECONDS):
            for name in self._names:
                self._coordination.patch_namespaced_lease(name, LEASES, {"spec": {"renewTime": _micro()}})

    # ------------------------------------------------------------ pods

    def _watch(self) -> None:
        while not self._stopping.is_set():
            found = watch.Watch().stream(
                self._core.list_namespaced_pod, self._namespace, label_selector=ATTEMPT, timeout_seconds=60
            )
            for event in found:
                self._pod_changed(event["type"], event["raw_object"])

    def _pod_changed(self, kind: str, pod: Mapping[str, Any]) -> None:
        meta = pod["metadata"]
        name, uid = meta["name"], meta["uid"]
        if pod["spec"].get("nodeName") not in self._names:
            return
        if kind == "DELETED":
            with self._lock:
                self._sleepers.pop(name, None)
        elif "deletionTimestamp" in meta:
            if pod["status"].get("phase") == "Running":
                self._say(name, "Failed", 143)
            self._delete(name)
        elif self._seen.get(name) != uid:
            self._seen[name] = uid
            self._say(name, "Running")
            if meta["labels"][ROLE] == WORKER:
                self._fall_asleep(name, pod)

    def _say(self, pod: str, phase: str, code: int | None = None) -> None:
        state = {"running": {"startedAt": now()}}
        if code is not None:
            state = {"terminated": {"exitCode": code, "finishedAt": now(), "startedAt": now()}}  # type: ignore[dict-item]
        ready = "True" if phase == "Running" else "False"
        status = {
            "phase": phase, "podIP": "127.0.0.1", "startTime": now(),
            "conditions": [
                {"type": kind, "status": ready, "lastTransitionTime": now()} for kind in ("Ready", "ContainersReady")
            ],
            "containerStatuses": [{
                "name": "main", "ready": phase == "Running", "restartCount": 0, "image": "hollow", "imageID": "hollow",
                "state": state, "started": phase == "Running",
            }],
        }  # fmt: skip
        try:
            self._core.patch_namespaced_pod_status(pod, self._namespace, {"status": status})
        except ApiException as error:
            if error.status != 404:
                raise

    def _delete(self, pod: str) -> None:
        try:
            self._core.delete_namespaced_pod(pod, self._namespace, grace_period_seconds=0)
        except ApiException as error:
            if error.status != 404:
                raise

    def _fall_asleep(self, name: str, pod: Mapping[str, Any]) -> None:
        env = {entry["name"]: entry.get("value", "") for entry in pod["spec"]["containers"][0]["env"]}
        store = open_store(env["MCF_RUN_URI"])
        seconds = 1e9 if self.run_seconds is None else random.uniform(0.5, 1.5) * self.run_seconds
        spec = json.loads(store.get(SPEC))
        sleeper = Sleeper(name, store, spec, int(env["MCF_ATTEMPT"]), time.monotonic() + seconds)
        self._record(sleeper)
        with self._lock:
            self._sleepers[name] = sleeper

    # ------------------------------------------------------------ what they leave

    def _sleep(self) -> None:
        """Records of all of them, spread over RECORD_SECONDS."""
        while not self._stopping.is_set():
            begun = time.monotonic()
            with self._lock:
                all_of_them = list(self._sleepers.values())
            for sleeper in all_of_them:
                if sleeper.ends < time.monotonic():
                    self._end(sleeper)
                else:
                    self._record(sleeper)
                time.sleep(0.9 * RECORD_SECONDS / len(all_of_them) / 2)
            self._stopping.wait(max(0.1, RECORD_SECONDS - (time.monotonic() - begun)))

    def _record(self, sleeper: Sleeper) -> None:
        sleeper.step += 1
        total = int(sleeper.spec["schedule"]["length"])
        made = session(sleeper.attempt, sleeper.attempt, 0, sleeper.step, total, sleeper.started, now())
        sleeper.store.put(f"sessions/{sleeper.attempt:04d}.json", json.dumps(made).encode())

    def _end(self, sleeper: Sleeper) -> None:
        step = int(sleeper.spec["schedule"]["length"])
        sleeper.store.put(RESULT, json.dumps(result(sleeper.spec, step)).encode())
        outcome = {"verdict": "succeeded", "step": step, "ended_at": now()}
        sleeper.store.put(OUTCOME, json.dumps(outcome).encode())
        with self._lock:
            self._sleepers.pop(sleeper.pod, None)
        self._say(sleeper.pod, "Succeeded", 0)

    # ------------------------------------------------------------ logs

    def _serve_logs(self) -> None:
        key, certificate = self._folder / "key.pem", self._folder / "certificate.pem"
        command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=hollow"]
        subprocess.run([*command, "-keyout", key, "-out", certificate], check=True, capture_output=True)
        tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        tls.load_cert_chain(certificate, key)
        server = ThreadingHTTPServer((self._host, self._port), _Logs)
        server.daemon_threads = True
        server.socket = tls.wrap_socket(server.socket, server_side=True)
        threading.Thread(target=server.serve_forever, daemon=True).start()


class _Logs(BaseHTTPRequestHandler):
    """GET /containerLogs/NAMESPACE/POD/CONTAINER: a line a second, which says when it was printed."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/plain")
        self.send_header("Connection", "close")
        self.end_headers()
        follows = "follow=true" in urlsplit(self.path).query
        try:
            while True:
                self.wfile.write(f"printed at {time.time():.3f}\n".encode())
                self.wfile.flush()
                if not follows:
                    break
                time.sleep(1)
        except OSError:
            pass  # who followed has gone
        self.close_connection = True

    def log_message(self, *_: object) -> None:
        pass


def _micro() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
