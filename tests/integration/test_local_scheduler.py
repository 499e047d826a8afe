"""The local scheduler with real processes: what it promises a service that may die at any moment."""

import os
import signal
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from torchx.runner import Runner
from torchx.specs import AppState
from torchx.specs.api import NONE

from k8s.appdef import LaunchRequest, app_for
from k8s.local import KILLED, LocalScheduler, stop_all
from k8s.supervisor import GRACE_SECONDS
from trainer.contract import Placement

SLEEP = "import time; print('started', flush=True); time.sleep(60)"


def request(name: str, program: str, nodes: int = 1) -> LaunchRequest:
    placement = Placement(min_nodes=1, max_nodes=nodes)
    return LaunchRequest(
        name=name, attempt=1, spec_uri="/spec.json", run_uri="/run", placement=placement,
        entrypoint=(sys.executable, "-c", program),
    )  # fmt: skip


def scheduler_at(root: Path) -> tuple[Runner, LocalScheduler]:
    scheduler = LocalScheduler("mcf", root)
    return Runner("mcf", {"local": lambda session, **_: scheduler}), scheduler


def state(scheduler: LocalScheduler, name: str) -> AppState:
    described = scheduler.describe(name)
    assert described
    return described.state


def cause(scheduler: LocalScheduler, name: str) -> str:
    described = scheduler.describe(name)
    assert described
    return described.structured_error_msg


def wait_for(condition: Callable[[], bool], seconds: float = 15) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def is_running(pid: int) -> bool:
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().split(")")[1].split()[0]
    except FileNotFoundError:
        return False


def test_an_attempt_is_started_once_however_often_it_is_submitted(tmp_path: Path) -> None:
    count = f"open({str(tmp_path / 'starts')!r}, 'a').write('x')"
    for _ in range(3):
        runner, scheduler = scheduler_at(tmp_path / "attempts")
        runner.run(app_for(request("r1-1", count)), "local")
    wait_for(lambda: state(scheduler, "r1-1") == AppState.SUCCEEDED)
    assert (tmp_path / "starts").read_text() == "x"


def test_an_attempt_outlives_the_process_that_submitted_it_and_is_found_again(tmp_path: Path) -> None:
    submit = textwrap.dedent(f"""
        import os, sys
        from pathlib import Path
        sys.path[:0] = {[str(Path(__file__).parent), *sys.path]!r}
        from test_local_scheduler import *
        runner, _ = scheduler_at(Path({str(tmp_path)!r}))
        runner.run(app_for(request("r1-1", SLEEP)), "local")
        os.kill(os.getpid(), 9)
    """)
    assert subprocess.run([sys.executable, "-c", submit]).returncode == -signal.SIGKILL
    runner, scheduler = scheduler_at(tmp_path)
    assert state(scheduler, "r1-1") == AppState.RUNNING
    runner.cancel("local://mcf/r1-1")
    wait_for(lambda: state(scheduler, "r1-1") == AppState.CANCELLED)


def test_temporary_files_of_an_attempt_go_with_it_and_those_of_a_killed_one_with_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    temporary = Path(tempfile.mkdtemp(prefix="t"))
    monkeypatch.setenv("TMPDIR", str(temporary))
    # A socket's path is short enough for the kernel, and nobody removes the file.
    program = f"""if True:
        import multiprocessing.connection, os, tempfile, time
        listener = multiprocessing.connection.Listener(family="AF_UNIX")
        open({str(tmp_path / "at")!r}, "w").write(tempfile.mkdtemp())
        time.sleep({{seconds}})
        os._exit(0)"""
    runner, scheduler = scheduler_at(tmp_path / "attempts")
    runner.run(app_for(request("r1-1", program.format(seconds=60))), "local")
    wait_for(lambda: (tmp_path / "at").exists() and len((tmp_path / "at").read_text()) > 0)
    os.kill(int((tmp_path / "attempts/r1-1/pid").read_text()), signal.SIGKILL)
    wait_for(lambda: state(scheduler, "r1-1") == AppState.FAILED)
    [left] = temporary.iterdir()
    assert left in Path((tmp_path / "at").read_text()).parents
    os.utime(left, (0, 0))

    runner.run(app_for(request("r1-2", program.format(seconds=0))), "local")
    wait_for(lambda: state(scheduler, "r1-2") == AppState.SUCCEEDED)
    assert list(temporary.iterdir()) == []
    temporary.rmdir()


def test_killing_the_supervisor_leaves_no_node_and_a_lost_attempt(tmp_path: Path) -> None:
    runner, scheduler = scheduler_at(tmp_path)
    program = "import os, time; print(os.getpid(), flush=True); time.sleep(60)"
    runner.run(app_for(request("r1-1", program, nodes=2)), "local")
    logs = [tmp_path / "r1-1" / "node" / str(k) / "combined.log" for k in range(2)]
    wait_for(lambda: all(log.exists() and log.read_text().endswith("\n") for log in logs))
    nodes = [int(log.read_text()) for log in logs]
    os.kill(int((tmp_path / "r1-1" / "pid").read_text()), signal.SIGKILL)
    wait_for(lambda: state(scheduler, "r1-1") == AppState.FAILED)
    wait_for(lambda: not any(map(is_running, nodes)))
    assert cause(scheduler, "r1-1") == KILLED


@pytest.mark.parametrize(("end", "wanted"), [("os.kill(os.getpid(), 9)", KILLED), ("sys.exit(1)", NONE)])
def test_an_attempt_killed_from_outside_is_told_from_one_that_failed(tmp_path: Path, end: str, wanted: str) -> None:
    runner, scheduler = scheduler_at(tmp_path)
    runner.run(app_for(request("r1-1", f"import os, sys; {end}")), "local")
    wait_for(lambda: state(scheduler, "r1-1") == AppState.FAILED)
    assert cause(scheduler, "r1-1") == wanted


def test_a_killed_node_does_not_undo_what_the_others_finish(tmp_path: Path) -> None:
    program = "import os, signal; os.environ['MCF_NODE'] == '1' and os.kill(os.getpid(), signal.SIGKILL)"
    launch = app_for(request("r1-1", program, nodes=2))
    launch.roles[0].env["MCF_NODE"] = "${replica_id}"
    runner, scheduler = scheduler_at(tmp_path)
    runner.run(launch, "local")
    wait_for(lambda: state(scheduler, "r1-1") != AppState.RUNNING)
    assert state(scheduler, "r1-1") == AppState.SUCCEEDED


def test_a_program_that_cannot_be_started_fails_with_the_reason_in_the_log(tmp_path: Path) -> None:
    runner, scheduler = scheduler_at(tmp_path)
    launch = app_for(request("r1-1", SLEEP))
    launch.roles[0].entrypoint = "/no/such/program"
    runner.run(launch, "local")
    wait_for(lambda: state(scheduler, "r1-1") == AppState.FAILED)
    assert "/no/such/program" in "".join(runner.log_lines("local://mcf/r1-1", "node"))


def test_following_a_log_ends_with_the_attempt(tmp_path: Path) -> None:
    runner, scheduler = scheduler_at(tmp_path)
    program = "import time\nfor i in range(3): print(i, flush=True); time.sleep(0.3)"
    runner.run(app_for(request("r1-1", program)), "local")
    lines = [line for line in runner.log_lines("local://mcf/r1-1", "node", should_tail=True) if line]
    assert lines == ["0\n", "1\n", "2\n"]
    assert state(scheduler, "r1-1") == AppState.SUCCEEDED


def test_stop_all_asks_first_and_leaves_nothing_running(tmp_path: Path) -> None:
    runner, scheduler = scheduler_at(tmp_path)
    polite = (
        "import signal, sys, time; signal.signal(15, lambda *_: sys.exit(143)); print('up', flush=True); time.sleep(60)"
    )
    stubborn = "import signal, time; signal.signal(15, signal.SIG_IGN); print('up', flush=True); time.sleep(60)"
    for name, program in ("r1-1", polite), ("r2-1", stubborn):
        runner.run(app_for(request(name, program)), "local")
        wait_for(lambda name=name: "up\n" in scheduler.log_iter(name, "node"))  # type: ignore[misc]
    stop_all(tmp_path, grace_seconds=1)
    assert state(scheduler, "r1-1") == state(scheduler, "r2-1") == AppState.CANCELLED
    assert "143" in scheduler.describe("r1-1").msg  # type: ignore[union-attr]


def test_the_service_keeps_its_own_secrets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MCF_TOKEN", "secret-token")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret-key")
    runner, scheduler = scheduler_at(tmp_path)
    runner.run(app_for(request("r1-1", "import os; print(sorted(os.environ))")), "local")
    wait_for(lambda: state(scheduler, "r1-1") == AppState.SUCCEEDED)
    printed = "".join(scheduler.log_iter("r1-1", "node"))
    assert "MCF_TOKEN" not in printed
    assert "AWS_SECRET_ACCESS_KEY" in printed
    assert "secret-key" not in (tmp_path / "r1-1" / "job.json").read_text()


def test_an_agent_gives_its_workers_the_time_that_the_attempt_has_to_stop(tmp_path: Path) -> None:
    runner, scheduler = scheduler_at(tmp_path)
    program = "import os; print(os.environ['TORCH_ELASTIC_SHUTDOWN_TIMEOUT'])"
    runner.run(app_for(request("r1-1", program)), "local")
    wait_for(lambda: state(scheduler, "r1-1") == AppState.SUCCEEDED)
    assert float("".join(scheduler.log_iter("r1-1", "node"))) == GRACE_SECONDS


def test_what_lives_is_found_without_a_look_at_every_attempt_there_ever_was(tmp_path: Path) -> None:
    runner, scheduler = scheduler_at(tmp_path)
    runner.run(app_for(request("lives", SLEEP)), "local")
    for number in range(3):
        (tmp_path / f"ended-{number}").mkdir()
        (tmp_path / f"ended-{number}/alive").touch()
    assert scheduler.live() == ["lives"]
    # No longer looked at: without the file that is locked it could not be.
    (tmp_path / "ended-0/alive").unlink()
    assert scheduler.live() == ["lives"]
    (tmp_path / "ended-0/alive").touch()
    stop_all(tmp_path, grace_seconds=1)
    assert scheduler.live() == []
