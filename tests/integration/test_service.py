"""The service as a process, with real attempts: killed, restarted, cancelled, retried."""

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from fastapi.testclient import TestClient
from mlflow import MlflowClient

from service.__main__ import main
from service.app import create_app
from service.launching.local import LocalLauncher
from service.settings import Settings
from tests.conftest import free_port, wait_until_up
from tests.integration.cheap_service import CHEAP_TRAINER

ROOT = Path(__file__).parents[2]


def request(faces: Path, *, steps: int = 5, pause: float = 0.02, **changes: Any) -> dict[str, Any]:
    base = {
        "preset": "tiny", "data": {"uri": str(faces)}, "teacher": "none", "ema": {"momentum": pause},
        "schedule": {"unit": "steps", "length": steps, "warmup": 1},
    }  # fmt: skip
    spec = {"name": "cheap", "base": base, "factors": {"mask_ratio": [0.75, 0.5]}, "seeds": 3, "concurrency": 9}
    return spec | changes


def wait_for(condition: Callable[[], Any], seconds: float = 60) -> Any:
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    return found


class Service:
    """`python cheap_service.py` in a folder, which can be killed and started again there."""

    def __init__(self, folder: Path, **variables: str) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self._log = folder / "service.log"
        mine = {"MCF_PORT": str(self.port), "MCF_WORK_DIR": str(folder), "PYTHONPATH": str(ROOT), **variables}
        self._env = {**os.environ, **mine, "MCF_LEASE_SECONDS": "3", "MCF_MAX_CONCURRENT_RUNS": "3"}
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with self._log.open("ab") as output:
            command = [sys.executable, str(ROOT / "tests/integration/cheap_service.py")]
            self._process = subprocess.Popen(command, env=self._env, stdout=output, stderr=output)

    def wait_until_up(self) -> None:
        assert self._process
        wait_until_up(self._process, f"{self.url}/healthz", self._log, 60)

    def tell(self, number: signal.Signals) -> None:
        assert self._process
        self._process.send_signal(number)

    def kill(self, number: signal.Signals = signal.SIGKILL) -> int:
        self.tell(number)
        assert self._process
        return self._process.wait()


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    from k8s.local import stop_all

    yield tmp_path
    stop_all(tmp_path / "attempts", grace_seconds=2)


def starts(folder: Path) -> dict[str, list[str]]:
    return {path.parent.name: path.read_text().split() for path in folder.glob("store/runs/*/starts")}


def test_kill_9_at_random_moments_loses_no_run_and_starts_none_twice(
    folder: Path, tiny_faces: Path, mlflow_server: str
) -> None:
    rng = random.Random(4)
    service = Service(folder, MCF_TRACKING_URI=mlflow_server)
    service.start()
    service.wait_until_up()
    spec = request(tiny_faces, steps=12, pause=0.15, name="killed")
    experiment = httpx2.post(f"{service.url}/v1/experiments", json=spec, timeout=30).json()["id"]
    for _ in range(5):
        time.sleep(rng.uniform(0.0, 1.5))
        service.kill()
        service.start()
        if rng.random() < 0.8:
            service.wait_until_up()
        else:
            time.sleep(rng.uniform(0, 3))  # killed while it starts

    service.wait_until_up()
    address = f"{service.url}/v1/experiments/{experiment}"
    wait_for(lambda: httpx2.get(address, timeout=30).json()["counts"] == {"succeeded": 6})
    assert not list(folder.glob("store/runs/*/DOUBLE"))
    assert list(starts(folder).values()) == [["1"]] * 6  # attempts outlive the service: none is started again

    client = MlflowClient(mlflow_server)
    [tracked] = [item for item in client.search_experiments() if item.name == "killed"]
    runs = wait_for(
        lambda: (
            (found := client.search_runs([tracked.experiment_id]))
            and all(run.info.status == "FINISHED" for run in found)
            and found
        )
    )
    assert len(runs) == 7
    table = httpx2.get(f"{address}/comparison", timeout=30).json()
    assert table["complete"]
    # Asked to end, it does so at once and in order.
    began = time.monotonic()
    assert service.kill(signal.SIGTERM) in (0, -signal.SIGTERM)
    assert time.monotonic() - began < 30


@pytest.fixture
def http(folder: Path) -> Iterator[TestClient]:
    settings = Settings(work_dir=folder, max_concurrent_runs=9, tick_seconds=0.1, observe_seconds=0.2)
    with TestClient(create_app(settings, LocalLauncher(settings, CHEAP_TRAINER)), "http://localhost") as client:
        yield client


def ended(http: TestClient, experiment: str) -> dict[str, Any]:
    def look() -> Any:
        found = http.get(f"/v1/experiments/{experiment}").json()
        done = all(state in ("succeeded", "failed", "cancelled") for state in found["counts"])
        return found if done else None

    return wait_for(look)


def test_from_a_request_to_the_comparison(http: TestClient, tiny_faces: Path) -> None:
    experiment = http.post("/v1/experiments", json=request(tiny_faces)).json()["id"]
    run = http.get(f"/v1/experiments/{experiment}").json()["arms"][0]["trials"][0]["run_id"]
    followed = http.get(f"/v1/runs/{run}/logs?follow=true").text
    assert "attempt 1 from step 0" in followed
    assert followed.endswith('event: end\ndata: "succeeded"\n\n')
    assert ended(http, experiment)["state"] == "succeeded"
    table = http.get(f"/v1/experiments/{experiment}/comparison").json()
    assert [arm["probe"]["n"] for arm in table["arms"]] == [3, 3]
    assert "attempt 1 from step 0" in http.get(f"/v1/runs/{run}/logs?tail=1").text


def test_runs_fail_alone_and_retry_goes_on_from_where_they_were(
    http: TestClient, tiny_faces: Path, folder: Path
) -> None:
    # The second arm dies by its own error at step 1, the third is killed in its first two attempts.
    spec = request(tiny_faces, factors={"contrastive.temperature": [0.2, 0.5, 0.7]}, seeds=1)
    experiment = http.post("/v1/experiments", json=spec).json()["id"]
    found = ended(http, experiment)
    assert found["counts"] == {"succeeded": 2, "failed": 1}
    good, bad, unlucky = (arm["trials"][0] for arm in found["arms"])
    assert (good["state"], bad["state"], bad["reason"]) == ("succeeded", "failed", "the loss is not finite")
    assert starts(folder)[unlucky["run_id"]] == ["1", "2", "3"]
    attempts = http.get(f"/v1/runs/{unlucky['run_id']}").json()["attempts"]
    assert [attempt["state"] for attempt in attempts] == ["lost", "lost", "succeeded"]
    assert "about to die without a word" in attempts[0]["reason"]

    assert http.post(f"/v1/experiments/{experiment}/retry").status_code == 200
    ended(http, experiment)
    assert "attempt 2 from step 1" in http.get(f"/v1/runs/{bad['run_id']}/logs").text
    assert starts(folder)[good["run_id"]] == ["1"]


def test_cancelling_stops_the_processes_and_a_later_request_goes_on(
    http: TestClient, tiny_faces: Path, folder: Path
) -> None:
    spec = request(tiny_faces, steps=60, pause=0.05, factors={}, seeds=1)
    experiment = http.post("/v1/experiments", json=spec).json()["id"]
    wait_for(lambda: http.get(f"/v1/experiments/{experiment}").json()["arms"][0]["trials"][0]["step"] > 2)
    assert http.post(f"/v1/experiments/{experiment}/cancel").json()["state"] == "cancelled"
    assert ended(http, experiment)["counts"] == {"cancelled": 1}
    [run] = starts(folder)
    assert http.get(f"/v1/runs/{run}").json()["reason"] == "cancelled by request"

    again = http.post("/v1/experiments", json=spec | {"name": "again"}).json()["id"]
    assert ended(http, again)["state"] == "succeeded"
    logs = http.get(f"/v1/runs/{run}/logs").text
    assert "attempt 2 from step" in logs
    assert "attempt 2 from step 0" not in logs


def test_it_says_what_is_wrong_with_its_settings(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MCF_HOST", "0.0.0.0")
    assert main() == 2
    assert "set MCF_TOKEN" in capsys.readouterr().err
    monkeypatch.setenv("MCF_PORT", "http")
    assert main() == 2
    assert capsys.readouterr().err.startswith("MCF_PORT: ")


def test_it_says_in_a_line_that_its_pools_or_its_cluster_are_not_there(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    pools = tmp_path / "pools.yaml"
    cluster = {"MCF_SCHEDULER": "jobset", "MCF_POOLS": str(pools), "MCF_STORE": "s3://bucket/mcf"}
    for name, value in (cluster | {"KUBECONFIG": str(tmp_path / "none"), "MCF_WORK_DIR": str(tmp_path)}).items():
        monkeypatch.setenv(name, value)
    assert main() == 2
    assert capsys.readouterr().err.startswith(f"{pools} cannot be read: ")
    pools.write_text("cpu: {image: registry.example/mcf, cpu: '1', memory: 1Gi}")
    assert main() == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith("there is no cluster: ")
