"""The script that measures on a GPU: once there is one, it must not fail for a reason that a CPU could have shown."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.bench import gpu
from tests.bench.sections import SECTIONS, Scale, Section

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
@pytest.mark.timeout(600)  # a minute on two idle cores
def test_every_section_of_the_gpu_script_has_figures_in_its_short_form(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.bench.gpu", "--short", "--out", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=590)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = json.loads((tmp_path / "table.json").read_text())["rows"]
    assert [section.name for section in SECTIONS] == list(dict.fromkeys(row["section"] for row in rows))
    assert not [row for row in rows if row["trouble"]]
    assert (tmp_path / "table.md").read_text().count("\n| ") == len(rows) + 2


def test_a_section_that_fails_is_a_row_and_keeps_what_it_has_measured(tmp_path: Path) -> None:
    def rows(scale: Scale):  # type: ignore[no-untyped-def]
        yield "first", {"speedup": 2.0}
        raise ValueError("no | room")

    first, second = gpu.run(Section("a name", 20, rows), Scale.of(True), 20, tmp_path)
    assert (first.what, first.numbers, first.shown()) == ("first", {"speedup": 2.0}, "2.00 x")
    assert second.trouble == "failed: ValueError: no / room (see a-name.log)"
    assert "Traceback" in (tmp_path / "a-name.log").read_text()


def test_a_section_that_hangs_is_ended_and_keeps_what_it_has_measured(tmp_path: Path) -> None:
    def rows(scale: Scale):  # type: ignore[no-untyped-def]
        yield "first", {}
        subprocess.run(["sleep", "1000"])

    first, second = gpu.run(Section("slow", 1, rows), Scale.of(True), 1, tmp_path)
    assert first.what == "first"
    assert second.trouble == "no time left for more, see slow.log"


def test_a_section_that_dies_is_a_row(tmp_path: Path) -> None:
    def rows(scale: Scale):  # type: ignore[no-untyped-def]
        os.kill(os.getpid(), signal.SIGKILL)
        yield "never", {}

    [row] = gpu.run(Section("dies", 20, rows), Scale.of(True), 20, tmp_path)
    assert row.trouble == "failed: ended by signal 9, see dies.log"


def test_it_says_which_packages_are_missing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert gpu.main(["--check"]) == 0
    monkeypatch.setitem(gpu.PACKAGES, "no_such_module", "psutil")
    assert gpu.main(["--check"]) == 1
    assert "pip install 'psutil>=7'" in capsys.readouterr().err
