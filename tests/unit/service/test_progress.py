"""A slow operation tells what it is at: in place on a terminal, now and then elsewhere, and never among the data."""

import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from pathlib import Path

ROOT = Path(__file__).parents[3]
PROGRAM = """
import sys, time
from service.cli import progress
progress.MOMENT_SECONDS, progress.EVERY_SECONDS, progress.UPDATE_SECONDS = {moment}, 0.3, 0.05
with progress.progress("starting") as line:
    for done in range(20):
        line(f"step {{done}} of 20, and more of it than a narrow terminal has room for")
        if done == 10:
            print("found: something", flush=True)
        time.sleep({pause})
"""


def in_terminal(program: str, columns: int, output: int | None = None) -> str:
    """What a terminal of so many columns gets; `output`: where standard output goes instead."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    env = {name: value for name, value in os.environ.items() if name != "COLUMNS"} | {"TERM": "xterm"}
    process = subprocess.Popen(
        [sys.executable, "-c", program], cwd=ROOT, env=env, stderr=theirs, stdout=output or theirs
    )  # fmt: skip
    os.close(theirs)
    told = b""
    try:
        while data := os.read(ours, 4096):
            told += data
    except OSError:  # how Linux says that nobody writes any more
        pass
    os.close(ours)
    assert process.wait() == 0
    return told.decode()


def screen(told: str) -> list[str]:
    """The lines that are left to see: each was written over, or kept."""
    kept = re.sub(r"\x1b\[\?25[lh]", "", told).replace("\r\n", "\n").split("\n")
    return [re.split(r"\r(?:\x1b\[2K)?", line)[-1] for line in kept if line]


def test_on_a_terminal_one_line_updates_in_place_and_stays_and_is_never_wider() -> None:
    told = in_terminal(PROGRAM.format(moment=0.1, pause=0.05), columns=30)
    found, last = screen(told)
    assert found == "found: something"
    assert last.startswith("step 19 of 20, and more")
    lines = re.findall(r"step \d+[^\r\n\x1b]*", told)
    assert len(lines) > 5
    assert max(map(len, lines)) <= 30


def test_standard_output_stays_clean_where_only_errors_go_to_a_terminal(tmp_path: Path) -> None:
    with (tmp_path / "out").open("wb") as file:
        told = in_terminal(PROGRAM.format(moment=0.1, pause=0.05), columns=80, output=file.fileno())
    assert (tmp_path / "out").read_text() == "found: something\n"
    assert "found" not in told
    assert "step 19" in told


def test_elsewhere_a_line_comes_now_and_then_and_one_at_the_end_without_control_characters() -> None:
    env = os.environ | {"FORCE_COLOR": "1", "TERM": "xterm"}
    command = [sys.executable, "-c", PROGRAM.format(moment=0.1, pause=0.05)]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=True)
    assert done.stdout == "found: something\n"
    lines = done.stderr.splitlines()
    assert 2 <= len(lines) < 20, "a line at each step"
    assert lines[-1].startswith("step 19 of 20")
    assert not re.search(r"[\r\x1b]", done.stderr)


def test_what_takes_but_a_moment_says_nothing() -> None:
    program = PROGRAM.format(moment=30, pause=0.001)
    assert screen(in_terminal(program, columns=80)) == ["found: something"]
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stderr == ""
