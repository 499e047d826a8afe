"""Runs whose masks, losses and teachers are user code: they train, and what is wrong in a file ends them at once."""

import shutil
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from tests.integration.test_training import train_alone
from tests.integration.torchruns import small, torchrun
from trainer.contract import RunSpec
from trainer.contract.records import Verdict
from trainer.store.objects import DirectoryStore
from trainer.store.rundir import read_outcome, read_result, read_sessions

MASK = """
def mask(noise, side, num_visible, landmarks):
    hidden = noise.argsort()[:3]
    noise[hidden] += 1
    return noise
"""
LOSS = """
def feature_loss(predicted, wanted):
    difference = predicted - wanted
    return difference.abs().mean()
"""
TEACHER = """
from torch import nn
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 8, 8)
    def forward(self, images):
        features = self.conv(images)
        return [features.flatten(2).transpose(1, 2)]
def teacher():
    return Net()
"""
FILES = {"mask": MASK, "loss": LOSS, "teacher": TEACHER}


def with_code(faces: Path, folder: Path, **texts: str) -> RunSpec:
    """A run of six steps with these files."""
    code: dict[str, Any] = {}
    for name, text in {**FILES, **texts}.items():
        (folder / f"{name}.py").write_text(text)
        code[name] = {"uri": str(folder / f"{name}.py"), "sha256": sha256(text.encode()).hexdigest()}
    teacher = {"source": "random", "arch": "code", "code": code["teacher"], "taps": [0], "loss": code["loss"]}
    schedule = {"unit": "steps", "length": 6, "warmup": 1}
    return small(faces, mask={"kind": "code", "code": code["mask"]}, teacher=teacher, schedule=schedule)


def test_a_mask_a_loss_and_a_teacher_of_the_users_train_alone_and_on_two_workers(
    tiny_faces: Path, tmp_path: Path
) -> None:
    run = with_code(tiny_faces, tmp_path)
    done = train_alone(run, tmp_path / "alone")
    assert done.returncode == 0, done.stderr[-3000:]
    with torchrun(run, tmp_path / "two") as agent:
        assert agent.wait(120) == 0, (tmp_path / "two/log").read_text()[-3000:]
    alone, two = (losses_in(tmp_path / name) for name in ("alone", "two"))
    assert two == pytest.approx(alone, rel=1e-4)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("c++") is None, reason="torch.compile needs a C++ compiler on a CPU")
def test_user_code_trains_between_compiled_networks_and_its_errors_keep_their_line(
    tiny_faces: Path, tmp_path: Path
) -> None:
    run, compiled = with_code(tiny_faces, tmp_path), {"MCF_COMPILE": "1", "MCF_CELLS_A_PASS": "2"}
    for name, env in ("eager", {}), ("compiled", compiled):
        done = train_alone(run, tmp_path / name, **env)
        assert done.returncode == 0, done.stderr[-3000:]
        assert ("networks compiled" in done.stderr) == (name == "compiled")
    assert losses_in(tmp_path / "compiled") == pytest.approx(losses_in(tmp_path / "eager"), rel=1e-4)
    # Black images, on which networks are compiled, do not meet it.
    run = with_code(
        tiny_faces, tmp_path, loss=LOSS.replace("return", "if len(wanted.unique()) > 100: [][7]\n    return")
    )
    assert train_alone(run, tmp_path / "wrong", **compiled).returncode == 1
    outcome = read_outcome(DirectoryStore(str(tmp_path / "wrong")))
    assert outcome
    assert outcome.kind == "UserCodeError"
    assert outcome.reason == "loss.py, line 4, in feature_loss: IndexError: list index out of range"


def losses_in(folder: Path) -> dict[str, float]:
    result = read_result(DirectoryStore(str(folder)))
    assert result
    return result.losses


@pytest.mark.parametrize(
    ("name", "old", "new", "told"),
    [
        ("mask", "noise[hidden] += 1", "noise[hidden] += 1 / 0", "mask.py, line 4, in mask: ZeroDivisionError"),
        ("loss", "difference.abs()", "difference.apse()", "loss.py, line 4, in feature_loss: AttributeError"),
        ("teacher", "self.conv(images)", "self.cnov(images)", "teacher.py, line 8, in forward: AttributeError"),
    ],
)  # fmt: skip
def test_an_error_in_a_file_ends_the_run_at_its_first_attempt_with_the_line(
    tiny_faces: Path, tmp_path: Path, name: str, old: str, new: str, told: str
) -> None:
    run = with_code(tiny_faces, tmp_path, **{name: FILES[name].replace(old, new)})
    assert train_alone(run, tmp_path / "run").returncode == 1
    outcome = read_outcome(DirectoryStore(str(tmp_path / "run")))
    assert outcome
    assert (outcome.verdict, outcome.kind, outcome.step) == (Verdict.FAILED, "UserCodeError", 0)
    assert outcome.reason.startswith(told)
    assert "\n" not in outcome.reason


@pytest.mark.parametrize("name", FILES)
def test_code_that_has_changed_since_submission_is_not_executed(tiny_faces: Path, tmp_path: Path, name: str) -> None:
    run = with_code(tiny_faces, tmp_path)
    (tmp_path / f"{name}.py").write_text(f"open({str(tmp_path / 'executed')!r}, 'w')\n{FILES[name]}")
    assert train_alone(run, tmp_path / "run").returncode == 1
    outcome = read_outcome(DirectoryStore(str(tmp_path / "run")))
    assert outcome
    assert (outcome.verdict, outcome.kind) == (Verdict.FAILED, "UserCodeError")
    assert "has changed since the run was submitted" in outcome.reason
    assert read_sessions(DirectoryStore(str(tmp_path / "run"))) == []
    assert not (tmp_path / "executed").exists()
