"""`mcf up` as a person runs it: everything comes up, comes back when killed, and leaves no process behind."""

import contextlib
import json
import os
import signal
import stat
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from service.client import Client, Refused

ROOT = Path(__file__).parents[2]
Process = subprocess.Popen[bytes]


class Folder:
    """The folder of one `mcf up`, and the `mcf up` that runs in it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.output = path / "output.log"
        self.process: Process | None = None

    def up(self) -> Process:
        with self.output.open("ab") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "service.cli.main", "up", "--dir", str(self.path)],
                env={**os.environ, "PYTHONPATH": str(ROOT)}, cwd=self.path, stdout=output, stderr=output,
            )  # fmt: skip
        return self.process

    @property
    def state(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.path / "up.json").read_text())
        return found

    def wait_for(self, condition: Callable[[], Any], seconds: float, what: str) -> Any:
        deadline = time.monotonic() + seconds
        while not (found := condition()):
            assert time.monotonic() < deadline, f"{what}\n{self.output.read_text()}"
            time.sleep(0.2)
        return found

    def wait_until_serving(self) -> None:
        assert self.process
        pid = self.process.pid
        self.wait_for(lambda: (self.path / "up.json").exists() and self.state["pid"] == pid, 30, "no up.json")
        self.wait_for(lambda: answers(f"{self.state['url']}/healthz"), 60, "the service does not answer")

    def processes(self) -> dict[int, str]:
        """Every living process that has the folder in its command or its environment, or is in it: pid -> command."""
        mark, found = str(self.path).encode(), {}
        for folder in Path("/proc").iterdir():
            if not folder.name.isdecimal() or int(folder.name) == os.getpid():
                continue
            with contextlib.suppress(OSError):  # it has ended meanwhile
                command = (folder / "cmdline").read_bytes()
                place = os.readlink(folder / "cwd").encode()
                if command and mark in command + (folder / "environ").read_bytes() + place:
                    found[int(folder.name)] = command.replace(b"\0", b" ").decode()
        return found

    def pids_of(self, end: str) -> set[int]:
        """Programs by the end of their command; not the guards, whose commands end in the same way."""
        found = self.processes().items()
        return {pid for pid, command in found if command.strip().endswith(end) and "guard" not in command}


def answers(url: str) -> bool:
    try:
        urllib.request.urlopen(url, timeout=2).close()
    except urllib.error.HTTPError:
        return True
    except OSError:
        return False
    return True


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Folder]:
    made = Folder(tmp_path)
    yield made
    for pid in made.processes():
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    if made.process:
        made.process.wait()


def test_everything_comes_up_comes_back_and_goes_with_ctrl_c(folder: Folder, tiny_faces: Path) -> None:
    process = folder.up()
    folder.wait_until_serving()
    state = folder.state
    assert stat.S_IMODE((folder.path / "up.json").stat().st_mode) == 0o600
    assert answers(state["aws"]["AWS_ENDPOINT_URL"])
    secret = state["aws"]["AWS_SECRET_ACCESS_KEY"]
    assert not [command for command in folder.processes().values() if secret in command]

    second = subprocess.run(
        [sys.executable, "-m", "service.cli.main", "up", "--dir", str(folder.path)],
        env={**os.environ, "PYTHONPATH": str(ROOT)}, cwd=ROOT, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert second.returncode == 1
    assert state["url"] in second.stderr

    # An experiment with an attempt under way, whose processes nobody started from here.
    spec = {
        "name": "long", "seeds": 1, "placement": {"max_nodes": 2},
        "base": {
            "preset": "tiny", "data": {"uri": str(tiny_faces)}, "teacher": "none",
            "schedule": {"unit": "steps", "length": 100_000, "warmup": 1},
        },
    }  # fmt: skip
    client = Client(state["url"])
    experiment = client.submit(spec)
    folder.wait_for(lambda: experiment.refresh().counts.get("running"), 120, "the run does not start")

    # The program itself, not its guard: the killed ones come back at the same addresses.
    programs = {"-m service": f"{state['url']}/healthz", "fastapi_app:app": f"{state['tracking_uri']}/health"}
    before = {end: folder.pids_of(end) for end in programs}
    for end in programs:
        [pid] = before[end]
        os.kill(pid, signal.SIGKILL)
    for end, url in programs.items():
        folder.wait_for(lambda end=end: folder.pids_of(end) - before[end], 60, f"{end} stays away")
        folder.wait_for(lambda url=url: answers(url), 120, f"{url} does not answer again")
    assert folder.wait_for(lambda: experiment.refresh().counts, 30, "gone") == {"running": 1}

    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=90) == 0
    assert folder.processes() == {}

    # The next one goes on: the same addresses, the same experiment, and the checkpoint that the stop has written.
    process = folder.up()
    folder.wait_until_serving()
    assert {**folder.state, "pid": 0} == {**state, "pid": 0}
    [run] = client.experiment(experiment.id).runs()
    assert not run.state.is_final
    assert client.checkpoints(run.id).checkpoints[-1].step > 0

    # Killed without warning, it takes its children along.
    process.kill()
    process.wait()
    folder.wait_for(lambda: not folder.processes(), 30, "processes are left")


def test_the_encoder_of_a_run_is_the_teacher_of_the_next(folder: Folder, tiny_faces: Path) -> None:
    folder.up()
    folder.wait_until_serving()
    client = Client(folder.state["url"])
    spec: dict[str, Any] = {
        "name": "first", "seeds": 1,
        "base": {
            "preset": "tiny", "data": {"uri": str(tiny_faces)}, "teacher": "none", "evaluation": {"held_out": 8},
            "schedule": {"unit": "steps", "length": 3, "warmup": 1},
        },
    }  # fmt: skip
    first = client.submit(spec)
    with pytest.raises(Refused, match=r"teacher\.source.* possible: a run that has succeeded"):
        client.submit({**spec, "name": "early", "base": {**spec["base"], "teacher": f"run:{first.runs()[0].id}"}})
    [run] = first.wait().runs()

    teacher = {"source": f"run:{run.id[:12]}", "taps": [1, 3]}
    second = client.submit({**spec, "name": "second", "base": {**spec["base"], "teacher": teacher}})
    [taught] = second.wait().runs()
    assert taught.state == "succeeded", client.logs(taught.id)
    found = client.run(taught.id).spec["teacher"]
    assert found["source"].endswith(f"{run.id}/export/model.safetensors")
    assert found["arch"] == "vit-96x4x3-p8"
    assert len(found["sha256"]) == 64
