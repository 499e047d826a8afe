"""An ablation on the test cluster, disturbed in every way there is, and the same one left alone.

    eval "$(bash ../shared/cluster/cluster up 2)"; scripts/test-cluster --collect-only     # images
    python -m tests.cluster.storm [--rounds 10] [--steps 400] [--seed 0] [--calm-seeds 2] [--only KIND ...] [--big]
        [--whole]

From an empty namespace: the chart, faces in S3, four arms x two seeds on a node and an extra one (`--whole`: one to two
nodes of one object). What has to hold: every
run succeeds, nothing is lost or double in MLflow, the loss curves are the undisturbed ones' (float64), and each run
that was hit goes on soon. Run it alone: pauses are in seconds, and this machine is shared by everything.
"""

import argparse
import base64
import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.chart.release import S3, Release, install, remove, run, s3
from tests.conftest import SHARED
from tests.integration.faults import Gateway
from tests.leftovers import outlives

CLUSTER = Path(os.environ.get("MCF_CLUSTER_SCRIPT", SHARED / "cluster" / "cluster"))
STATE = Path(os.environ.get("MCF_CLUSTER_STATE", "/var/lib/mcf-cluster")) / "run"
FACES = SHARED / "data" / "faces"
HOST = urllib.parse.urlsplit(S3["endpoint"]).hostname or "127.0.0.1"
AWAY_SECONDS, S3_AWAY_SECONDS, NODE_AWAY_SECONDS = 60, 30, 75
GRACE_SECONDS = 120
"""That pods of the chart's pools have to stop."""
# A disturbance is felt only after a while: so long after it has been done, new steps are timed.
FELT_SECONDS = {
    "worker pod": 20, "rank 0": 20, "rendezvous pod": 20, "S3 answering 503 for 30 s": 15,
    # All nodes seem dead when it is back, and some pods are put elsewhere.
    "extra node": 20, "API server for 60 s": 20, "all told to stop while S3 answers 503": 20,
}  # fmt: skip
FELT_AT_ONCE_SECONDS, NEWS_SECONDS = 8, 6
# After its pods were moved: what is measured then is not their move.
SETTLED_STEPS = 20
# The undisturbed twin may have more of the machine: the numbers are the same wherever a run trains.
WIDE: dict[str, Any] = {"cpu": "900m", "memory": "2Gi", "shm": "512Mi", "rendezvous": {"cpu": "50m", "memory": "512Mi"}}
PATIENCE_SECONDS = 300
# A state of 0.26 GB in float64, whose upload takes seconds in which things can go wrong; and four patches an image, so
# that a step takes little time.
BIG = {"encoder": {"width": 768, "depth": 1, "heads": 12, "patch": 16}}


def say(*what: object) -> None:
    print(time.strftime("%H:%M:%S"), *what, flush=True)  # noqa: T201


class Storm:
    def __init__(
        self, release: Release, gateway: Gateway, seed: int, base: Mapping[str, Any] | None = None, *,
        extra: bool = True,
    ) -> None:  # fmt: skip
        """`base`: what the runs have that is not the preset's; `extra`: their second node is one beyond the core."""
        self.extra = extra
        self.release, self.gateway, self.rng, self.base = release, gateway, random.Random(seed), base or {}
        self.token, self.url = release.token, release.url
        self._uris: dict[str, str] = {}

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
                if time.monotonic() > deadline:
                    raise
                time.sleep(1)
                with contextlib.suppress(RuntimeError):
                    self.url = self.release.url

    def submit(
        self, name: str, steps: int, *, arms: int = 4, seeds: int = 2, pool: str = "cpu", concurrency: int = 1
    ) -> str:
        """Two or four arms on one to two nodes; returns the experiment's id.

        One run at a time leaves two cores some time for what is started again after a disturbance.
        """
        bucket = self.release.namespace
        spec = {
            "name": name, "seeds": seeds, "share": False, "concurrency": concurrency,
            "base": {
                "preset": "tiny", "input_size": 32, "teacher": "none", "precision": "float64",
                "data": {"uri": f"s3://{bucket}/faces", "format": "shards"},
                "evaluation": {"landmarks": f"s3://{bucket}/landmarks.json", "held_out": 26},
                "schedule": {"length": steps, "warmup": 5},
                "cadence": {"checkpoint_steps": 20, "log_steps": 5, "picture_steps": 100}, **self.base,
            },
            "factors": {"mask_ratio": [0.5, 0.75], **({"data.subset_size": [64, 128]} if arms == 4 else {})},
            "placement": {"pool": pool, **({"extra": {"nodes": 1, "pool": pool}} if self.extra else {"max_nodes": 2})},
        }  # fmt: skip
        return str(self.ask("/v1/experiments", spec)["id"])

    def runs(self, experiment_id: str) -> dict[tuple[str, int], str]:
        """(arm, seed) -> id of the run."""
        detail = self.ask(f"/v1/experiments/{experiment_id}")
        return {(arm["name"], trial["seed"]): trial["run_id"] for arm in detail["arms"] for trial in arm["trials"]}

    def trained(self, run_id: str) -> int:
        """The last step that the run itself has written down, whoever else is away just now."""
        if run_id not in self._uris:
            self._uris[run_id] = self.ask(f"/v1/runs/{run_id}")["uri"]
        bucket, _, prefix = self._uris[run_id].removeprefix("s3://").partition("/")
        found = s3().list_objects_v2(Bucket=bucket, Prefix=f"{prefix}/sessions/").get("Contents", [])
        newest = max(found, key=lambda each: each["LastModified"])["Key"]
        return int(json.load(s3().get_object(Bucket=bucket, Key=newest)["Body"])["step"])

    def target(self, run_ids: list[str]) -> str | None:
        """Of the runs that train now the one with most to do; None when all have ended."""
        while True:
            found = [self.ask(f"/v1/runs/{run_id}") for run_id in run_ids]
            if all(each["ended_at"] for each in found):
                return None
            training = [each for each in found if each["state"] == "running" and 0 < each["step"] < each["total_steps"]]
            if training:
                return str(min(training, key=lambda each: each["progress"])["id"])
            time.sleep(1)

    def finish(self, experiment_id: str) -> dict[tuple[str, int], Any]:
        """Every run as it has ended, all of them well."""
        runs = self.runs(experiment_id)
        while not all((found := self.ask(f"/v1/runs/{run_id}"))["ended_at"] for run_id in runs.values()):
            time.sleep(3)
        ended = {trial: self.ask(f"/v1/runs/{run_id}") for trial, run_id in runs.items()}
        for trial, found in ended.items():
            assert found["state"] == "succeeded", (trial, found["reason"])
        return ended

    # ------------------------------------------------------------ what is done to it

    def disturbances(self) -> dict[str, Callable[[str], None]]:
        return {
            "worker pod": lambda run_id: self.delete(self.pods(run_id, "worker")[-1:]),
            "rank 0": lambda run_id: self.delete(self.pods(run_id, "worker")[:1]),
            # By force it goes as with its node, gently as by a drain: only then it has a say in how it ended.
            "rendezvous pod": lambda run_id: self.delete(
                self.pods(run_id, "rendezvous"), gently=self.rng.random() < 0.5
            ),
            "service pod": lambda run_id: self.delete(self.parts("service")),
            "MLflow pod": lambda run_id: self.delete(self.parts("mlflow")),
            "API server for 60 s": lambda run_id: self.freeze("kube-apiserver", AWAY_SECONDS),
            "S3 answering 503 for 30 s": lambda run_id: self.close_s3(),
            "node for 75 s": self.kill_node,
            "all told to stop while S3 answers 503": self.stop_without_s3,
            **({"extra node": self.lose_extra_node} if self.extra else {}),
        }

    def pods(self, run_id: str, role: str, machine: str = "") -> list[str]:
        """Of the run, those that run; `machine`: only those on it."""
        found = self.release.get("pods", f"--selector=mcf.dev/role={role}")["items"]
        alive = [
            each["metadata"]["name"]
            for each in found
            if each["metadata"]["labels"]["mcf.dev/attempt"].startswith(f"{run_id}-")
            and each["status"]["phase"] == "Running"
            and "deletionTimestamp" not in each["metadata"]
            and machine in ("", each["spec"]["nodeName"])
        ]
        return sorted(alive)

    def lose_extra_node(self, run_id: str) -> None:
        """As its machine is taken back: mostly with a word, sometimes without."""
        extra = [name for name in self.pods(run_id, "worker") if "-x" in name]
        self.delete(extra, gently=self.rng.random() < 0.7)

    def parts(self, component: str) -> list[str]:
        found = self.release.get("pods", f"--selector=app.kubernetes.io/component={component}")["items"]
        return [each["metadata"]["name"] for each in found]

    def delete(self, pods: list[str], *, gently: bool = False) -> None:
        for pod in pods:
            # Its Job lets go of it only when it comes to look for another one, which it puts off longer each time.
            how = [] if gently else ["--grace-period=0", "--force"]
            self.release.kubectl("delete", "pod", pod, "--wait=false", *how)

    def freeze(self, process: str, seconds: float) -> None:
        pid = int((STATE / f"{process}.pid").read_text())
        os.kill(pid, signal.SIGSTOP)
        try:
            time.sleep(seconds)
        finally:
            os.kill(pid, signal.SIGCONT)

    def close_s3(self) -> None:
        self.gateway.close()
        time.sleep(S3_AWAY_SECONDS)
        self.gateway.closed = False

    def stop_without_s3(self, run_id: str) -> None:
        """A drain of every node of the run, whose last states have nowhere to go until S3 is back."""
        self.gateway.close()
        self.delete(self.pods(run_id, "worker"), gently=True)
        # Back in time, or when the pods have been killed.
        time.sleep(self.rng.choice([S3_AWAY_SECONDS, GRACE_SECONDS + 20]))
        self.gateway.closed = False

    def kill_node(self, run_id: str) -> None:
        node = self.mortal()
        say(f"node{node} goes, with", ", ".join(self.all_pods(run_id, f"node{node}")) or "nothing of the run")
        subprocess.run(["bash", str(CLUSTER), "kill-node", node], check=True, capture_output=True)
        time.sleep(NODE_AWAY_SECONDS)
        subprocess.run(["bash", str(CLUSTER), "revive-node", node], check=True, capture_output=True, env=outlives())

    def mortal(self) -> str:
        """Of the two nodes the one without the databases, whose disks are folders of the other."""
        placed = self.release.get("pods", "--selector=app.kubernetes.io/component=postgresql")["items"][0]
        return "0" if placed["spec"]["nodeName"] == "node1" else "1"

    def all_pods(self, run_id: str, machine: str = "") -> list[str]:
        return [*self.pods(run_id, "rendezvous", machine), *self.pods(run_id, "worker", machine)]

    def bring_over(self, run_id: str) -> None:
        """Some pods of the run, or all, to the node that is going to be lost; then it trains on for a while.

        After a loss all of it is on the other node and stays there. A pod that is told to stop has its successor
        elsewhere.
        """
        pods, there = self.all_pods(run_id), self.all_pods(run_id, f"node{self.mortal()}")
        wanted = self.rng.sample(pods, self.rng.randint(1, len(pods))) if pods else []
        if moved := [pod for pod in wanted if pod not in there]:
            self.delete(moved, gently=True)
            time.sleep(FELT_SECONDS["worker pod"])
        deadline, step = time.monotonic() + PATIENCE_SECONDS, self.trained(run_id)
        while self.trained(run_id) < step + SETTLED_STEPS and not self.ask(f"/v1/runs/{run_id}")["ended_at"]:
            assert time.monotonic() < deadline, f"{run_id} does not train on after its pods were moved"
            time.sleep(1)

    # ------------------------------------------------------------ and what comes of it

    def blow(self, run_ids: list[str], rounds: int, only: Sequence[str] = ()) -> Iterator[tuple[str, float | None]]:
        """Each disturbance with the longest time without a new step of the run that was hit, in seconds.

        None where that run came to its end meanwhile, which has pauses of its own; it is then done again to another.
        """
        for _ in range(rounds):
            kinds = [(name, what) for name, what in self.disturbances().items() if not only or name in only]
            self.rng.shuffle(kinds)
            for name, disturb in kinds:
                felt, pause = FELT_SECONDS.get(name, FELT_AT_ONCE_SECONDS), None
                while pause is None:
                    time.sleep(self.rng.uniform(1, 8))
                    run_id = self.target(run_ids)
                    if run_id is None:
                        return
                    if name == "node for 75 s":
                        self.bring_over(run_id)
                    pause = self._pause(run_id, lambda disturb=disturb, run_id=run_id: disturb(run_id), felt)  # type: ignore[misc]
                    yield name, pause

    def _pause(self, run_id: str, disturb: Callable[[], None], felt: float) -> float | None:
        acting = threading.Thread(target=disturb)
        began = last = time.monotonic()
        total, step, pause, done = self.ask(f"/v1/runs/{run_id}")["total_steps"], self.trained(run_id), 0.0, None
        acting.start()
        while done is None or time.monotonic() - done < felt or time.monotonic() - last > NEWS_SECONDS:
            found = self.trained(run_id)
            now = time.monotonic()
            assert now - began < PATIENCE_SECONDS, (run_id, self.ask(f"/v1/runs/{run_id}")["waiting_reason"])
            if found == total:
                acting.join()
                self._ended(run_id)
                return None
            pause = max(pause, now - last)
            if found > step:
                step, last = found, now
            if done is None and not acting.is_alive():
                done = now
            time.sleep(0.5)
        return pause

    def _ended(self, run_id: str) -> None:
        """Return when the service knows that a run that has trained is over. Raises AssertionError when it is stuck."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not (found := self.ask(f"/v1/runs/{run_id}"))["ended_at"]:
            assert time.monotonic() < deadline, f"{run_id} has trained, and is {found['state']} at {found['step']}"
            time.sleep(1)

    def curve(self, run_id: str) -> dict[int, float]:
        """Step -> loss, as MLflow has it: every step once."""
        secret = self.release.secret(f"{self.release.name}-mlflow")
        name, password = secret["MLFLOW_TRACKING_USERNAME"], secret["MLFLOW_TRACKING_PASSWORD"]
        tracking_id = self.ask(f"/v1/runs/{run_id}")["tracking_run_id"]
        query = urllib.parse.urlencode({"run_id": tracking_id, "metric_key": "loss/total", "max_results": 25_000})
        request = urllib.request.Request(f"{self.release.mlflow_url}/api/2.0/mlflow/metrics/get-history?{query}")
        request.add_header("Authorization", "Basic " + base64.b64encode(f"{name}:{password}".encode()).decode())
        with urllib.request.urlopen(request, timeout=30) as answer:
            rows = [(int(each["step"]), each["value"]) for each in json.load(answer)["metrics"]]
        assert len({step for step, _ in rows}) == len(rows), f"{len(rows)} rows, steps more than once"
        return dict(rows)


def put_faces(bucket: str) -> None:
    environment = {
        **os.environ, "AWS_ENDPOINT_URL_S3": S3["endpoint"], "AWS_ACCESS_KEY_ID": S3["access_key"],
        "AWS_SECRET_ACCESS_KEY": S3["secret_key"], "AWS_DEFAULT_REGION": S3["region"],
    }  # fmt: skip
    command = [sys.executable, "-m", "service.cli.main", "data", "shard", str(FACES / "images"), f"s3://{bucket}/faces"]
    subprocess.run(command, check=True, env=environment, capture_output=True)
    s3().put_object(Bucket=bucket, Key="landmarks.json", Body=(FACES / "landmarks.json").read_bytes())


def judge(storm: Storm, asked: argparse.Namespace) -> None:
    """Print what came of it. `asked`: options of `main`.

    Raises AssertionError where something that has to hold does not.
    """
    disturbed = storm.submit("storm", asked.steps, arms=asked.arms, seeds=asked.seeds)
    say("submitted", disturbed)
    runs = storm.runs(disturbed)
    longest: dict[str, list[float]] = {}
    for name, pause in storm.blow(list(runs.values()), asked.rounds, asked.only):
        say(name, "the run came to its end" if pause is None else f"at most {pause:.0f} s without a new step")
        if pause is not None:
            longest.setdefault(name, []).append(round(pause))
    ended = storm.finish(disturbed)
    for name, pauses in longest.items():
        say(f"{name}: {len(pauses)} times, pauses {sorted(pauses)}")
    for trial, found in ended.items():
        attempts = [(each["number"], each["state"], each["reason"][:80]) for each in found["attempts"]]
        say(*trial, f"{found['restarts']} restarts, world sizes {found['world_sizes']}, attempts {attempts}")
    table = storm.ask(f"/v1/experiments/{disturbed}/comparison")
    assert table["complete"], table["words"]
    calm = storm.submit("calm", asked.steps, arms=asked.arms, seeds=asked.calm_seeds, pool="wide", concurrency=2)
    compare(storm, ended, storm.finish(calm))


def compare(storm: Storm, ended: dict[tuple[str, int], Any], calm: dict[tuple[str, int], Any]) -> None:
    """Raises AssertionError where a disturbed run's numbers are not those of its undisturbed twin."""
    for trial, found in calm.items():
        theirs, ours = storm.curve(found["id"]), storm.curve(ended[trial]["id"])
        assert ours.keys() == theirs.keys(), (trial, sorted(ours.keys() ^ theirs.keys()))
        off = max(abs(ours[step] - theirs[step]) / abs(theirs[step]) for step in theirs)
        probes = [each["result"]["probe"]["value"] for each in (found, ended[trial])]
        say(*trial, f"{len(theirs)} logged steps, largest relative difference {off:.2g}, probes {probes}")
        assert off < 1e-6
        assert abs(probes[0] - probes[1]) < 1e-6


@contextlib.contextmanager
def stormy(
    namespace: str, seed: int, *, keep: bool = False, base: Mapping[str, Any] | None = None, extra: bool = True
) -> Iterator[Storm]:  # fmt: skip
    """A release of its own, with faces in its bucket."""
    gateway = Gateway(int(urllib.parse.urlsplit(S3["endpoint"]).port or 80), HOST)
    settings = {"tickSeconds": 0.5, "maxConcurrentRuns": 2}
    try:
        service = {"settings": settings}
        release = install(namespace, store={"endpoint": gateway.url}, service=service, pools={"wide": WIDE})
        put_faces(namespace)
        yield Storm(release, gateway, seed, base, extra=extra)
    finally:
        if not keep:
            remove(namespace)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--namespace", default="storm")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--steps", type=int, default=400, help="of every run")
    parser.add_argument("--seed", type=int, default=0, help="of order and moments")
    parser.add_argument("--arms", type=int, default=4, choices=[2, 4])
    parser.add_argument("--seeds", type=int, default=2, help="of every arm")
    parser.add_argument("--calm-seeds", type=int, default=2, help="seeds of every arm with an undisturbed twin")
    parser.add_argument("--only", nargs="+", default=[], metavar="KIND", help="such as: --only 'node for 75 s'")
    parser.add_argument("--big", action="store_true", help="a state of some hundred MB instead of 10")
    parser.add_argument("--whole", action="store_true", help="both nodes of a run in one object, and none beyond it")
    parser.add_argument("--keep", action="store_true", help="leave the release there afterwards")
    options = parser.parse_args()
    run("kubectl", "version", "--output=json")
    base = BIG if options.big else None
    with stormy(options.namespace, options.seed, keep=options.keep, base=base, extra=not options.whole) as storm:
        say("installed")
        judge(storm, options)


if __name__ == "__main__":
    main()
