"""`mcf up` as a person runs it: everything comes up, comes back when killed, and leaves no process behind."""

import contextlib
import json
import os
import re
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
import torch

from service.client import Client, Refused
from tests.forks import forks
from tests.unit.trainer.evaluation.readers.test_readers import hrnet_line, hrnet_list, picture
from trainer.evaluation.readers.hrnet_csv import WFLW_SUBSETS
from trainer.weights.published import read_published, spec_of_published

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


SPEC: dict[str, Any] = {
    "name": "first", "seeds": 1,
    "base": {
        "preset": "tiny", "teacher": "none", "evaluation": {"held_out": 8},
        "schedule": {"unit": "steps", "length": 3, "warmup": 1},
    },
}  # fmt: skip


def test_a_run_s_encoder_is_the_next_one_s_teacher_and_is_used_from_any_folder_as_the_pages_say(
    folder: Folder, tiny_faces: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder.up()
    folder.wait_until_serving()
    client = Client(folder.state["url"])
    spec = {**SPEC, "base": {**SPEC["base"], "data": {"uri": str(tiny_faces)}}}
    first = client.submit(spec)
    with pytest.raises(Refused, match=r"teacher\.source.* possible: a run that has succeeded"):
        client.submit({**spec, "name": "early", "base": {**spec["base"], "teacher": f"run:{first.runs()[0].id}"}})
    [run] = first.wait().runs()

    teacher = {"source": f"run:{run.id[:12]}", "taps": [1, 3]}
    second = client.submit({**spec, "name": "second", "base": {**spec["base"], "teacher": teacher}})

    # Neither the address of the service nor the keys of its store are said to any of these.
    monkeypatch.chdir(tmp_path_factory.mktemp("elsewhere"))
    for name in [name for name in os.environ if name.startswith("AWS_") or name == "MCF_URL"]:
        monkeypatch.delenv(name)

    def mcf(*words: str) -> str:
        done = forks.run("service.cli.main:app", *words, cwd=Path.cwd())
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert "config.json, model.safetensors" in mcf("export", run.id[:8])
    loaded: dict[str, Any] = {}
    exec(python_of("encoder.md"), loaded)
    assert loaded["encoder"].forward_features(torch.zeros(1, 3, 64, 64)).shape == (1, 65, 96)
    mcf("export", run.id, "--published", "checkpoint.pth")
    assert (
        spec_of_published(read_published("checkpoint.pth"), encoder_heads=3, decoder_heads=4)["encoder"]["depth"] == 4
    )
    mcf("data", "shard", str(tiny_faces), "s3://mcf/faces")
    assert "s3://mcf/faces (shards): 48 images" in mcf("data", "show", "s3://mcf/faces")
    landmarks = {path.name: {"points68": [[i % 40, i % 37] for i in range(68)]} for path in tiny_faces.iterdir()}
    Path("landmarks.json").write_text(json.dumps(landmarks))
    small = ("epochs=1", "batch=2", "slice=2", "input_size=32", "crop_size=32", "channels=8", "fraction=0.1")
    assert "alignment/last/nme_diag" in mcf(
        "evaluate", run.id, "--benchmark=faces68", "--data=s3://mcf/faces", "--landmarks=landmarks.json",
        "--held-out=8", "--frozen", *(f"--set={field}" for field in small),
    )  # fmt: skip
    wflw_in(Path.cwd())
    code = (
        python_of("evaluation.md")
        .replace('"/data/WFLW"', '"."')
        .replace("device=device", "device=device, input_size=64, channels=8")
    )
    exec(code.replace('{"epochs": 30}', '{"epochs": 1, "batch": 2, "slice": 2, "fraction": 0.5}'), loaded)
    assert "last/nme_inter_ocular" in loaded["fitted"].logged

    [taught] = second.wait().runs()
    assert taught.state == "succeeded", client.logs(taught.id)
    found = client.run(taught.id).spec["teacher"]
    assert found["source"].endswith(f"{run.id}/export/model.safetensors")
    assert found["arch"] == "vit-96x4x3-p8"
    assert len(found["sha256"]) == 64


def python_of(page: str) -> str:
    [code] = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / page).read_text(), re.S)
    return str(code)


def wflw_in(folder: Path) -> None:
    """A benchmark of four faces to train on, and four to test on that are in each of its subsets."""
    for split in "train", "test":
        lines = [hrnet_line(f"{split}{number}.jpg", 10 + number, 98) for number in range(4)]
        for name in (split, *(f"test_{subset}" for subset in WFLW_SUBSETS if split == "test")):
            hrnet_list(folder / f"face_landmarks_wflw_{name}.csv", lines, 98)
        for number in range(4):
            picture(folder / "WFLW_images" / f"{split}{number}.jpg")
