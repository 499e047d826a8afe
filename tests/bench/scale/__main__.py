"""The service with 200 runs that sleep, 1,000 that wait and 9,000 that have ended, on a real API server.

    eval "$(bash ../shared/cluster/cluster up 1)"
    python -m tests.bench.scale [--running 200] [--waiting 1000] [--ended 9000] [--minutes 0] [--postgres] [--json FILE]

Prints what docs/scale.md shows. Real are the service, its database, the control plane with JobSet's controller, the S3
server and MLflow; the nodes are hollow (hollow.py). All of it shares this machine, so times are too long rather than
too short. With --minutes so long runs end and others take their places while people read: memory has to stay flat.
"""

import argparse
import contextlib
import json
import os
import statistics
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx2
import psutil
import yaml
from kubernetes import client, config, watch

from tests.bench.scale.filled import fill
from tests.bench.scale.hollow import HollowNodes
from tests.bench.scale.people import people
from tests.chart.release import S3, s3
from tests.conftest import draw_faces, free_port, running, running_mlflow
from tests.postgres import running_postgres

STEADY_SECONDS, PEOPLE_SECONDS = 120, 60
READERS, FOLLOWERS = 50, 20
ALONE = 20
"""Each page is asked for so often with nobody else there."""


def say(*what: object, sep: str = " ") -> None:
    print(time.strftime("%H:%M:%S"), *what, flush=True, sep=sep)  # noqa: T201


class Stand:
    """All parts, while they run."""

    def __init__(self, folder: Path, postgres: bool) -> None:
        self.folder, self.namespace = folder, f"scale-{uuid.uuid4().hex[:6]}"
        self.stack = contextlib.ExitStack()
        self.core = client.CoreV1Api()
        self.core.create_namespace({"metadata": {"name": self.namespace}})
        self.stack.callback(self.core.delete_namespace, self.namespace)
        s3().create_bucket(Bucket=self.namespace)
        faces = folder / "faces"
        faces.mkdir()
        draw_faces(faces, 40)
        for path in faces.iterdir():
            s3().upload_file(str(path), self.namespace, f"faces/{path.name}")
        self.mlflow = self.stack.enter_context(running_mlflow(folder, free_port()))
        self.database = self.stack.enter_context(running_postgres()) if postgres else f"sqlite:///{folder}/mcf.db"
        self.counts, self.log = folder / "counts.json", folder / "service.log"
        self.url = f"http://127.0.0.1:{free_port()}"
        os.environ.update(self._environment())
        host = urlsplit(S3["endpoint"]).hostname or ""
        self.nodes = HollowNodes(self.namespace, host, free_port(), folder)
        self.servers = {
            "API server": urlsplit(client.Configuration.get_default_copy().host).netloc,
            "S3": urlsplit(S3["endpoint"]).netloc,
            "MLflow": urlsplit(self.mlflow).netloc,
        }

    def _environment(self) -> dict[str, str]:
        pools = self.folder / "pools.yaml"
        pool = {
            "image": "hollow", "cpu": "1", "memory": "1Gi", "node_selector": {"mcf.dev/pool": "hollow"},
            "rendezvous": {"node_selector": {"mcf.dev/pool": "hollow"}}, "grace_seconds": 5,
            # What it remembers of ended runs is as much after this as it is with the default after a day.
            "ttl_seconds": 900,
        }  # fmt: skip
        pools.write_text(yaml.safe_dump({"hollow": pool}))
        return {
            "MCF_PORT": self.url.rpartition(":")[2], "MCF_WORK_DIR": str(self.folder), "MCF_SCHEDULER": "jobset",
            "MCF_DATABASE_URL": self.database, "MCF_STORE": f"s3://{self.namespace}/mcf", "MCF_POOLS": str(pools),
            "MCF_NAMESPACE": self.namespace, "MCF_TRACKING_URI": self.mlflow, "MCF_MAX_CONCURRENT_RUNS": "1000",
            "AWS_ENDPOINT_URL": S3["endpoint"], "AWS_ACCESS_KEY_ID": S3["access_key"],
            "AWS_SECRET_ACCESS_KEY": S3["secret_key"], "AWS_DEFAULT_REGION": S3["region"],
        }  # fmt: skip

    def spec(self, name: str, arms: int, seeds: int, concurrency: int) -> dict[str, Any]:
        return {
            "name": name, "seeds": seeds, "concurrency": concurrency, "share": False,
            "base": {
                "preset": "tiny", "teacher": "none", "data": {"uri": f"s3://{self.namespace}/faces"},
                "schedule": {"unit": "steps", "length": 100_000, "warmup": 5},
            },
            "factors": {"mask_ratio": [round(0.3 + 0.05 * n, 2) for n in range(arms)]},
            "placement": {"pool": "hollow", "min_nodes": 1, "max_nodes": 1},
        }  # fmt: skip

    def start(self) -> psutil.Process:
        command = [sys.executable, "-m", "tests.bench.scale.counted", str(self.counts)]
        process = self.stack.enter_context(running(command, self.log, f"{self.url}/healthz", seconds=60))
        service = psutil.Process(process.pid)
        # The rest is its stand, and would be elsewhere: it goes first, as if the machine were its own.
        service.nice(-10)
        return service

    def asked(self) -> dict[str, int]:
        """Requests so far, by server."""
        made = json.loads(self.counts.read_text())
        return {name: made.get(address, 0) for name, address in self.servers.items()}


def main() -> int:
    parser = argparse.ArgumentParser()
    for name, default in ("running", 200), ("waiting", 1000), ("ended", 9000), ("minutes", 0):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--postgres", action="store_true")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    config.load_kube_config()
    with tempfile.TemporaryDirectory(prefix="mcf-scale-") as scratch, contextlib.ExitStack() as stack:
        stand = Stand(Path(scratch), arguments.postgres)
        stack.enter_context(stand.stack)
        found = measure(stand, arguments)
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=2))
    say("", *(f"| {name} | {_short(value)} |" for name, value in found.items()), sep="\n")
    return 0


def _short(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def measure(stand: Stand, arguments: argparse.Namespace) -> dict[str, Any]:
    found: dict[str, Any] = {"database": stand.database.partition(":")[0]}
    fill(stand.spec, arguments.ended)
    say("filled")
    stand.nodes.start(3)
    stand.stack.callback(stand.nodes.stop)
    service = stand.start()
    web = stand.stack.enter_context(httpx2.Client(base_url=stand.url, timeout=60))
    try:
        found |= begin(stand, web, arguments)
        found |= steady(stand, service)
        found |= alone(web)
        found |= with_people(stand, service)
        if arguments.minutes:
            found |= hour(stand, service, arguments.minutes)
    except BaseException:
        wrong = [line for line in stand.log.read_text().splitlines() if '"level": "info"' not in line]
        say("the service said", *(line[:1000] for line in wrong[:5]), sep="\n")
        raise
    finally:
        for item in web.get("/v1/experiments", params={"state": ["running", "queued"]}).json()["experiments"]:
            web.post(f"/v1/experiments/{item['id']}/cancel")
        stand.stack.callback(stand.log.unlink)
    return found


def begin(stand: Stand, web: httpx2.Client, arguments: argparse.Namespace) -> dict[str, Any]:
    """From the request of all runs to the first job, and to the last that has a place."""
    first = threading.Event()

    def look() -> None:
        custom = client.CustomObjectsApi()
        jobs = ("jobset.x-k8s.io", "v1alpha2", stand.namespace, "jobsets")
        for _ in watch.Watch().stream(custom.list_namespaced_custom_object, *jobs, timeout_seconds=120):
            first.set()
            return

    threading.Thread(target=look, daemon=True).start()
    seeds = (arguments.running + arguments.waiting) // 10
    begun = time.monotonic()
    web.post("/v1/experiments", json=stand.spec("going", 10, seeds, arguments.running)).raise_for_status()
    posted = time.monotonic() - begun
    if not first.wait(120):
        raise RuntimeError("no job within 120 s")
    to_first = time.monotonic() - begun
    say(f"POST {posted:.1f} s, first job {to_first:.1f} s")
    while stand.nodes.running < arguments.running:
        time.sleep(0.5)
        if time.monotonic() - begun > 900:
            raise RuntimeError(f"only {stand.nodes.running} run")
    to_last = time.monotonic() - begun
    say(f"all places taken {to_last:.0f} s")
    return {"post_seconds": posted, "first_job_seconds": to_first, "all_places_seconds": to_last}


def steady(stand: Stand, service: psutil.Process, seconds: float = STEADY_SECONDS) -> dict[str, Any]:
    """What the service asks of others, and takes, while nothing happens but that runs train."""
    time.sleep(30)
    with stretch(stand, service) as of:
        time.sleep(seconds)
    say("steady", of)
    return {f"steady {name}": value for name, value in of.items()}


@contextlib.contextmanager
def stretch(stand: Stand, service: psutil.Process) -> Iterator[dict[str, float]]:
    before, cpu, begun = stand.asked(), sum(service.cpu_times()[:2]), time.monotonic()
    of: dict[str, float] = {}
    yield of
    seconds = time.monotonic() - begun
    of |= {f"{name} requests/s": (n - before[name]) / seconds for name, n in stand.asked().items()}
    of["cores"] = (sum(service.cpu_times()[:2]) - cpu) / seconds
    of["MiB"] = service.memory_info().rss / 2**20
    of["load of the machine"] = os.getloadavg()[0]


def alone(web: httpx2.Client) -> dict[str, float]:
    """Seconds of each page and answer, one after the other: the median and the worst."""
    going = web.get("/v1/experiments", params={"limit": 100}).json()["experiments"]
    ended = next(item for item in going if item["state"] == "succeeded")
    live = next(item for item in going if item["state"] == "running")
    found = {}
    for name, path in {
        "list": "/", "queue": "/queue", "experiment of 1,000 ended": f"/experiments/{ended['id']}",
        "comparison of 1,000 ended": f"/v1/experiments/{ended['id']}/comparison",
        "experiment that runs": f"/experiments/{live['id']}",
        "comparison that runs": f"/v1/experiments/{live['id']}/comparison",
        "GET /v1/runs": "/v1/runs", "GET /v1/pools": "/v1/pools",
    }.items():  # fmt: skip
        took = []
        for number in range(ALONE):
            begun = time.monotonic()
            # Of another address each time, so that none is the answer that was kept from before.
            web.get(path, params={"asked": number}).raise_for_status()
            took.append(time.monotonic() - begun)
        found |= {f"{name} median s": statistics.median(took), f"{name} worst s": max(took)}
        say(name, f"{statistics.median(took):.3f} {max(took):.3f}")
    return found


def with_people(stand: Stand, service: psutil.Process) -> dict[str, Any]:
    with stretch(stand, service) as of:
        seen = people(stand.url, READERS, FOLLOWERS, PEOPLE_SECONDS)
    found = {f"people {name}": value for name, value in {**of, **seen}.items()}
    say(found)
    return found


def hour(stand: Stand, service: psutil.Process, minutes: int) -> dict[str, Any]:
    """Runs end after ten minutes and others take their places; a tenth of the people read."""
    stand.nodes.run_seconds = 600.0
    stand.nodes.wake_some()
    sizes = []
    end = time.monotonic() + minutes * 60
    while time.monotonic() < end:
        with stretch(stand, service) as of:
            seen = people(stand.url, READERS // 10, FOLLOWERS // 10, min(300.0, max(30.0, end - time.monotonic())))
        sizes.append(of["MiB"])
        say(of, seen)
    return {"hour MiB": sizes}


if __name__ == "__main__":
    sys.exit(main())
