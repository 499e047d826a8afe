"""Disturb a run on the test cluster in every way there is, then compare it with the same run left alone.

    python -m tests.cluster.storm NAMESPACE [--rounds 1] [--steps 500] [--seed 0]

NAMESPACE holds a release of the chart (tests/chart/release.py), and its bucket shards of faces under `faces`. What
has to hold: the run succeeds in as many steps, its loss curve is the undisturbed one's (float64), and training goes on
soon.
"""

import argparse
import contextlib
import json
import os
import random
import signal
import subprocess
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tests.chart.release import Release, run
from tests.conftest import SHARED

CLUSTER = Path(os.environ.get("MCF_CLUSTER_SCRIPT", SHARED / "cluster" / "cluster"))
STATE = Path(os.environ.get("MCF_CLUSTER_STATE", "/var/lib/mcf-cluster")) / "run"
AWAY_SECONDS, S3_AWAY_SECONDS = 60, 30
# A disturbance is felt only after a while: so long after it has been done, new steps are timed.
FELT_SECONDS, NEWS_SECONDS = 40, 6
PATIENCE_SECONDS = 300


class Storm:
    def __init__(self, release: Release, seed: int) -> None:
        self.release, self.rng = release, random.Random(seed)
        self.url = release.url

    # ------------------------------------------------------------ the service

    def ask(self, path: str, body: Any = None) -> Any:
        """Patiently: its pod may be one of those that are killed."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while True:
            try:
                request = urllib.request.Request(
                    self.url + path, data=None if body is None else json.dumps(body).encode(),
                    headers={"Authorization": f"Bearer {self.token}", "Content-Type": "application/json"},
                )  # fmt: skip
                with urllib.request.urlopen(request, timeout=10) as answer:
                    return json.load(answer)
            except OSError:
                assert time.monotonic() < deadline
                time.sleep(1)
                with contextlib.suppress(RuntimeError):
                    self.url = self.release.url

    @property
    def token(self) -> str:
        if not hasattr(self, "_token"):
            self._token = self.release.token
        return self._token

    def submit(self, name: str, steps: int) -> str:
        """One run of its own on one to two nodes; returns its id."""
        bucket = self.release.namespace
        spec = {
            "name": name, "seeds": 1, "share": False,
            "base": {
                "preset": "tiny", "input_size": 32, "teacher": "none", "precision": "float64",
                "data": {"uri": f"s3://{bucket}/faces", "format": "shards"},
                "schedule": {"length": steps, "warmup": 5},
                "cadence": {"checkpoint_steps": 20, "log_steps": 5, "picture_steps": 100},
            },
            "placement": {"pool": "cpu", "min_nodes": 1, "max_nodes": 2},
        }  # fmt: skip
        detail = self.ask("/v1/experiments", spec)
        return str(detail["arms"][0]["trials"][0]["run_id"])

    def step(self, run_id: str) -> int:
        return int(self.ask(f"/v1/runs/{run_id}")["step"])

    def finish(self, run_id: str) -> Any:
        while not (found := self.ask(f"/v1/runs/{run_id}"))["ended_at"]:
            time.sleep(2)
        assert found["state"] == "succeeded", found["reason"]
        return found

    # ------------------------------------------------------------ what is done to it

    def disturbances(self, run_id: str) -> dict[str, Callable[[], None]]:
        return {
            "worker pod": lambda: self.delete(self.pods(run_id, "worker")[-1:]),
            "rank 0": lambda: self.delete(self.pods(run_id, "worker")[:1]),
            "rendezvous pod": lambda: self.delete(self.pods(run_id, "rendezvous")),
            "service pod": lambda: self.delete(self.parts("service")),
            "MLflow pod": lambda: self.delete(self.parts("mlflow")),
            "API server": lambda: self.freeze("kube-apiserver", AWAY_SECONDS),
            "S3 server": lambda: self.freeze("s3", S3_AWAY_SECONDS),
            # The service and the databases live on one of the two: the other one goes.
            "node": self.kill_node,
        }

    def pods(self, run_id: str, role: str) -> list[str]:
        found = self.release.get("pods", f"--selector=mcf.dev/role={role}")["items"]
        alive = [
            each["metadata"]["name"]
            for each in found
            if each["metadata"]["labels"]["mcf.dev/attempt"].startswith(f"{run_id}-")
            and each["status"]["phase"] == "Running"
            and "deletionTimestamp" not in each["metadata"]
        ]
        return sorted(alive)

    def parts(self, component: str) -> list[str]:
        found = self.release.get("pods", f"--selector=app.kubernetes.io/component={component}")["items"]
        return [each["metadata"]["name"] for each in found]

    def delete(self, pods: list[str]) -> None:
        for pod in pods:
            self.release.kubectl("delete", "pod", pod, "--grace-period=0", "--force")

    def freeze(self, process: str, seconds: float) -> None:
        pid = int((STATE / f"{process}.pid").read_text())
        os.kill(pid, signal.SIGSTOP)
        try:
            time.sleep(seconds)
        finally:
            os.kill(pid, signal.SIGCONT)

    def kill_node(self) -> None:
        placed = self.release.get("pods", "--selector=app.kubernetes.io/component=postgresql")["items"][0]
        other = "0" if placed["spec"]["nodeName"] == "node1" else "1"
        subprocess.run(["bash", str(CLUSTER), "kill-node", other], check=True, capture_output=True)
        time.sleep(75)
        subprocess.run(["bash", str(CLUSTER), "revive-node", other], check=True, capture_output=True)

    # ------------------------------------------------------------ and what comes of it

    def blow(self, run_id: str, rounds: int) -> Iterator[tuple[str, float]]:
        """Each disturbance with the longest time that passed without a new step, from its beginning on."""
        for _ in range(rounds):
            for name, disturb in self.disturbances(run_id).items():
                time.sleep(self.rng.uniform(3, 8))
                acting = threading.Thread(target=disturb)
                began = last = time.monotonic()
                step, pause, done = self.step(run_id), 0.0, None
                acting.start()
                while done is None or time.monotonic() - done < FELT_SECONDS or time.monotonic() - last > NEWS_SECONDS:
                    found = self.ask(f"/v1/runs/{run_id}")
                    now = time.monotonic()
                    assert now - began < PATIENCE_SECONDS, (name, found["waiting_reason"])
                    if found["ended_at"]:
                        acting.join()
                        return
                    pause = max(pause, now - last)
                    if found["step"] > step:
                        step, last = found["step"], now
                    if done is None and not acting.is_alive():
                        done = now
                    time.sleep(0.5)
                yield name, pause

    def curve(self, run_id: str) -> dict[int, float]:
        return dict(self.ask(f"/v1/runs/{run_id}/metrics?name=loss/total")["metrics"]["loss/total"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("namespace")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    run("kubectl", "version", "--output=json")
    storm = Storm(Release(options.namespace), options.seed)
    disturbed = storm.submit("storm", options.steps)
    while storm.step(disturbed) < 5:
        time.sleep(1)
    for name, seconds in storm.blow(disturbed, options.rounds):
        print(f"{name}: at most {seconds:.0f} s without a new step", flush=True)  # noqa: T201
    found = storm.finish(disturbed)
    attempts = [(each["number"], each["state"], each["reason"][:80]) for each in found["attempts"]]
    print(f"{found['restarts']} restarts, world sizes {found['world_sizes']}, attempts {attempts}", flush=True)  # noqa: T201
    calm = storm.submit("calm", options.steps)
    storm.finish(calm)
    time.sleep(5)
    theirs, ours = storm.curve(calm), storm.curve(disturbed)
    assert ours.keys() == theirs.keys(), sorted(ours.keys() ^ theirs.keys())
    off = max(abs(ours[step] - theirs[step]) / abs(theirs[step]) for step in theirs)
    print(f"{len(theirs)} logged steps, largest relative difference {off:.2g}")  # noqa: T201
    assert off < 1e-6


if __name__ == "__main__":
    main()
