"""The log against a real MLflow server that is killed, restarted, and has its answers swallowed."""

import io
import math
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from mlflow.tracking import MlflowClient

from service.reconciler.outside import Outside
from service.reconciler.repository import RunLease
from service.settings import Settings
from service.states import RunState
from service.tables import Arm, Experiment, Run
from service.tracking import Tracker, TrackingAway
from tests.conftest import free_port, running_mlflow
from tests.forks import forks
from tests.integration.torchruns import ENV, small, wait_for_checkpoint
from trainer.store.objects import open_store
from trainer.store.rundir import read_sessions
from trainer.tracking import log as log_module
from trainer.tracking.journal import Journal
from trainer.tracking.log import RunLog
from trainer.tracking.report import RankZero
from trainer.tracking.speed import Loading, Speedometer

LAST = 40


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log_module, "SEND_SECONDS", 0.2)
    monkeypatch.setattr(log_module, "LONGEST_PAUSE_SECONDS", 0.5)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "5")


def new_run(url: str) -> str:
    client = MlflowClient(url)
    run_id: str = client.create_run(client.create_experiment(uuid.uuid4().hex)).info.run_id
    return run_id


def steps(url: str, run_id: str, metric: str = "loss/total") -> list[int]:
    return sorted(entry.step for entry in MlflowClient(url).get_metric_history(run_id, metric))


def row(step: int) -> dict[str, float]:
    return {"loss/total": 1 / step, "lr": 1e-3}


def wait_for(condition: Callable[[], bool], seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.1)


def kill_group(port: int) -> None:
    """SIGKILL to the server that listens on the port and to its children."""
    found = psutil.net_connections("tcp4")
    pid = next(c.pid for c in found if c.status == psutil.CONN_LISTEN and c.laddr.port == port)
    os.killpg(os.getpgid(pid), signal.SIGKILL)


def test_rows_pictures_and_final_metrics_arrive(mlflow_server: str) -> None:
    run_id = new_run(mlflow_server)
    log = RunLog(mlflow_server, run_id, attempt=2)
    for step in range(1, 1 + LAST):
        log.metrics(step, row(step))
    log.metrics(LAST, {"probe/landmark_nme": 13.5, "floor/pixels": 13.0})
    log.picture(30, b"png")
    log.artifact("export/README.md", b"card")
    assert log.close(30) == 0
    client = MlflowClient(mlflow_server)
    run = client.get_run(run_id)
    assert steps(mlflow_server, run_id) == list(range(1, 1 + LAST))
    assert run.data.metrics["probe/landmark_nme"] == 13.5
    assert run.data.metrics["log_rows_dropped"] == 0
    assert run.data.tags["mcf.attempt"] == "2"
    assert [file.path for file in client.list_artifacts(run_id, "pictures")] == ["pictures/step-000030.png"]
    assert [file.path for file in client.list_artifacts(run_id, "export")] == ["export/README.md"]


def test_a_server_killed_and_started_again_loses_no_step_and_training_never_waits(tmp_path: Path) -> None:
    port = free_port()
    slowest = 0.0
    with running_mlflow(tmp_path, port) as url:
        run_id = new_run(url)
        log = RunLog(url, run_id, attempt=1)
        for step in range(1, 11):
            log.metrics(step, row(step))
        wait_for(lambda: not log.state_dict()["rows"])
        kill_group(port)
        for step in range(11, 1 + LAST):
            started = time.monotonic()
            log.metrics(step, row(step))
            log.picture(step, b"png")
            slowest = max(slowest, time.monotonic() - started)
            time.sleep(0.02)
        assert len(log.state_dict()["rows"]) == LAST - 10
    with running_mlflow(tmp_path, port) as url:
        assert log.close(60) == 0
        assert steps(url, run_id) == list(range(1, 1 + LAST))
        assert steps(url, run_id, "lr") == list(range(1, 1 + LAST))
        assert len(MlflowClient(url).list_artifacts(run_id, "pictures")) == LAST - 10
    assert slowest < 0.2


def test_a_batch_whose_answer_was_lost_is_not_logged_twice(mlflow_server: str) -> None:
    run_id = new_run(mlflow_server)
    with proxy(mlflow_server) as (url, swallow):
        log = RunLog(url, run_id, attempt=1)
        log.metrics(1, row(1))
        wait_for(lambda: not log.state_dict()["rows"])
        swallow.set()
        log.metrics(2, row(2))
        log.metrics(3, row(3))
        log.metrics(3, {"probe/landmark_nme": 13.5})
        wait_for(lambda: steps(mlflow_server, run_id, "probe/landmark_nme") == [3])
        assert len(log.state_dict()["rows"]) == 3
        # As if an attempt ended here and the next one repeated step 3, at another time of day.
        resumed = RunLog(mlflow_server, run_id, attempt=2)
        resumed.load_state_dict(log.state_dict())
        resumed.metrics(3, row(3))
        resumed.metrics(4, row(4))
        assert resumed.close(30) == 0
        swallow.clear()
        assert log.close(30) == 0
    for metric, expected in ("loss/total", [1, 2, 3, 4]), ("lr", [1, 2, 3, 4]), ("probe/landmark_nme", [3]):
        assert steps(mlflow_server, run_id, metric) == expected


@pytest.mark.parametrize("kind", ["experiment", "run"])
def test_a_log_whose_mlflow_run_is_deleted_says_so_loses_nothing_and_goes_on_when_it_is_restored(
    mlflow_server: str, kind: str
) -> None:
    run_id, client = new_run(mlflow_server), MlflowClient(mlflow_server)
    tracking_id = client.get_run(run_id).info.experiment_id
    log = RunLog(mlflow_server, run_id, attempt=1)
    log.metrics(1, row(1))
    wait_for(lambda: steps(mlflow_server, run_id) == [1])
    if kind == "run":
        client.delete_run(run_id)
    else:
        client.delete_experiment(tracking_id)
    log.metrics(2, row(2))
    options = {
        "experiment": f"experiments restore --experiment-id {tracking_id}",
        "run": f"runs restore --run-id {run_id}",
    }
    wait_for(lambda: f"`mlflow {options[kind]}`" in log.trouble)
    log.metrics(3, row(3))
    if kind == "run":
        client.restore_run(run_id)
    else:
        client.restore_experiment(tracking_id)
    assert log.close(30) == 0
    assert (steps(mlflow_server, run_id), log.dropped, log.trouble) == ([1, 2, 3], 0, "")


def test_what_a_killed_process_could_not_send_travels_in_its_checkpoint(mlflow_server: str) -> None:
    run_id = new_run(mlflow_server)
    dead = RunLog("http://127.0.0.1:1", run_id, attempt=1)
    for step in range(1, 6):
        dead.metrics(step, row(step))
    dead.picture(5, b"\x89PNG")
    file = io.BytesIO()
    torch.save({"log": dead.state_dict()}, file)
    assert dead.close(0.1) == 6
    file.seek(0)
    resumed = RunLog(mlflow_server, run_id, attempt=2)
    resumed.load_state_dict(torch.load(file, weights_only=True)["log"])
    resumed.metrics(6, row(6))
    assert resumed.close(30) == 0
    assert steps(mlflow_server, run_id) == [1, 2, 3, 4, 5, 6]
    assert len(MlflowClient(mlflow_server).list_artifacts(run_id, "pictures")) == 1


def test_what_mlflow_did_not_take_at_the_end_the_service_sends_once_it_is_back(
    mlflow_server: str, tmp_path: Path
) -> None:
    settings = Settings(work_dir=tmp_path)
    run = Run(id="r0123456789ab", state=RunState.SUCCEEDED, reason="", tracking_run_id=new_run(mlflow_server))
    store = open_store(settings.run_uri(run.id))
    log = RunLog(f"http://127.0.0.1:{free_port()}", run.tracking_run_id, attempt=1)
    for step in range(1, LAST + 1):
        log.metrics(step, row(step))
    log.metrics(LAST, {"probe/nme": 5.0, "broken": math.inf})
    log.picture(LAST, b"a picture")
    log.artifact("export/export.json", b"{}")
    began = time.monotonic()
    speed = Speedometer(1, Loading(0, 1), torch.device("cpu"))
    journal = Journal(store, 1, 1, "cpu", LAST)
    report = RankZero(None, log, journal, world_size=1, steps=range(LAST), draw=None, speed=speed)  # type: ignore[arg-type]
    report.leave_unsent(10)
    assert log.close(60) == 0
    assert time.monotonic() - began < 15, "all ranks hold their GPUs meanwhile"

    lease = RunLease("token", run, None, Experiment(), Arm(), 0, datetime.now(UTC))
    away = Outside(settings, None, Tracker(f"http://127.0.0.1:{free_port()}", 1))  # type: ignore[arg-type]
    with pytest.raises(TrackingAway):
        away.settle(lease)
    back = Outside(settings, None, Tracker(mlflow_server, 20))  # type: ignore[arg-type]
    back._send_unsent(store, back.tracker, run.tracking_run_id)  # type: ignore[arg-type]
    assert not list(store.list("unsent"))
    back.settle(lease)
    client = MlflowClient(mlflow_server)
    assert steps(mlflow_server, run.tracking_run_id or "") == list(range(1, LAST + 1))
    assert client.get_run(run.tracking_run_id).data.metrics["probe/nme"] == 5.0
    assert client.get_run(run.tracking_run_id).info.status == "FINISHED"
    found = [
        item.path for folder in ("pictures", "export") for item in client.list_artifacts(run.tracking_run_id, folder)
    ]
    assert found == [f"pictures/step-{LAST:06d}.png", "export/export.json"]


ENDS = {
    # Its own error, twice: noted the first time.
    "failed": (0, RunState.FAILED, "FAILED"),
    # Cancelled, or stopped at the cap of GPU-hours: for the trainer the same request to end.
    "cancelled": (signal.SIGTERM, RunState.CANCELLED, "KILLED"),
}


@pytest.mark.parametrize("end", ENDS)
def test_however_a_run_ends_while_mlflow_is_away_it_has_every_row_once_when_it_is_back(
    tiny_faces: Path, mlflow_server: str, tmp_path: Path, end: str
) -> None:
    asked, state, status = ENDS[end]
    settings = Settings(work_dir=tmp_path)
    run = Run(id="r0123456789ab", state=state, reason="", tracking_run_id=new_run(mlflow_server))
    folder = Path(settings.run_uri(run.id))
    folder.mkdir(parents=True)
    # More steps than anybody waits for, unless it comes to an error.
    length = 10_000 if asked else 9
    changes: dict[str, Any] = {} if asked else {"optimizer": {"base_lr": 1e38}}
    spec = small(
        tiny_faces, schedule={"unit": "steps", "length": length, "warmup": 4},
        cadence={"checkpoint_steps": 3, "log_steps": 1, "picture_steps": 100}, **changes,
    )  # fmt: skip
    (folder / "given.json").write_text(spec.model_dump_json())
    away = f"http://127.0.0.1:{free_port()}"
    env = {"MCF_RUN_URI": str(folder), "MLFLOW_TRACKING_URI": away, "MLFLOW_RUN_ID": run.tracking_run_id or ""}
    with (folder / "log").open("ab") as output:
        process = forks.start(
            "trainer.main", "--spec", str(folder / "given.json"), output=output, env={**os.environ, **ENV, **env}
        )
        try:
            if asked:
                wait_for_checkpoint(folder, 3, process)
                process.send_signal(asked)
            assert process.wait(120) == (143 if asked else 1), (folder / "log").read_text()[-3000:]
        finally:
            process.kill()
            process.wait()
    store = open_store(settings.run_uri(run.id))
    last = max(session.step for session in read_sessions(store))
    assert last >= 2
    outside = Outside(settings, None, Tracker(mlflow_server, 20))  # type: ignore[arg-type]
    lease = RunLease("token", run, None, Experiment(), Arm(), 0, datetime.now(UTC))
    # MLflow has the first row already, from an attempt that trained the step at another time.
    MlflowClient(mlflow_server).log_metric(run.tracking_run_id or "", "loss/total", 1.0, timestamp=1, step=1)
    outside.settle(lease)
    assert steps(mlflow_server, run.tracking_run_id or "") == list(range(1, last + 1))
    assert MlflowClient(mlflow_server).get_run(run.tracking_run_id or "").info.status == status
    assert not list(store.list("unsent"))


def test_a_full_buffer_drops_its_oldest_rows_and_counts_them(mlflow_server: str) -> None:
    run_id = new_run(mlflow_server)
    dead = RunLog("http://127.0.0.1:1", run_id, attempt=1, max_rows=10)
    for step in range(1, 1 + LAST):
        dead.metrics(step, row(step))
    resumed = RunLog(mlflow_server, run_id, attempt=2)
    resumed.load_state_dict(dead.state_dict())
    resumed.metrics(LAST + 1, row(LAST + 1))
    assert resumed.close(30) == 0
    dead.close(0)
    assert steps(mlflow_server, run_id) == list(range(LAST - 9, LAST + 2))
    assert MlflowClient(mlflow_server).get_run(run_id).data.metrics["log_rows_dropped"] == LAST - 10


def test_rows_that_mlflow_refuses_do_not_hold_up_the_others(mlflow_server: str) -> None:
    run_id = new_run(mlflow_server)
    log = RunLog(mlflow_server, run_id, attempt=1)
    log.metrics(1, {"a name with a ? in it": 1.0})
    wait_for(lambda: not log.state_dict()["rows"])
    log.metrics(2, row(2))
    assert log.close(30) == 0
    assert log.dropped == 1
    assert steps(mlflow_server, run_id) == [2]


def test_training_starts_before_mlflow_is_imported() -> None:
    code = (
        "import sys, time; from trainer.tracking.log import RunLog; assert 'mlflow' not in sys.modules;"
        "started = time.monotonic(); RunLog('http://127.0.0.1:1', 'x', attempt=1).metrics(1, {'loss/total': 1.0});"
        "assert time.monotonic() - started < 0.2"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@contextmanager
def proxy(url: str) -> Iterator[tuple[str, threading.Event]]:
    """A TCP proxy in front of `url`; while the event is set, batches go through and their answers do not come back."""
    swallow = threading.Event()
    target = ("127.0.0.1", int(url.rpartition(":")[2]))
    listener = socket.create_server(("127.0.0.1", 0))

    def serve(client: socket.socket) -> None:
        server = socket.create_connection(target)
        batch_sent = threading.Event()
        threading.Thread(target=answer, args=(server, client, batch_sent), daemon=True).start()
        while data := _receive(client):
            if data.startswith((b"GET", b"POST")):  # connections are kept for many requests
                batch_sent.set() if b"/runs/log-batch" in data else batch_sent.clear()
            server.sendall(data)
        _hang_up(client, server)

    def answer(server: socket.socket, client: socket.socket, batch_sent: threading.Event) -> None:
        while data := _receive(server):
            if swallow.is_set() and batch_sent.is_set():
                break
            client.sendall(data)
        _hang_up(client, server)

    def accept() -> None:
        with suppress(OSError):
            while True:
                threading.Thread(target=serve, args=(listener.accept()[0],), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}", swallow
    finally:
        _hang_up(listener)


def _hang_up(*sockets: socket.socket) -> None:
    for one in sockets:
        with suppress(OSError):
            one.shutdown(socket.SHUT_RDWR)
        one.close()


def _receive(source: socket.socket) -> bytes:
    try:
        return source.recv(65536)
    except OSError:
        return b""
