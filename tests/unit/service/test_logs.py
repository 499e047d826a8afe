"""The end of a log is read from its end, and a whole one is sent in pieces."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from k8s import local
from k8s.local import _last_lines
from service.runs import logs
from tests.unit.service.bench import Bench


@pytest.mark.parametrize("size", [1, 7, 64, 1 << 16])
@pytest.mark.parametrize("count", [1, 3, 40, 1000])
@pytest.mark.parametrize("end", ["", "\n", "\r\n", "half a line"])
def test_the_last_lines_of_a_file_are_those(
    tmp_path: Path, size: int, count: int, end: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local, "TAIL_BYTES", size)
    log = tmp_path / "combined.log"
    log.write_bytes(("".join(f"step {number} ä\n" for number in range(50)) + end).encode())
    lines = log.read_bytes().decode().removesuffix("\n").split("\n")
    assert _last_lines(log, count) == [f"{line}\n" for line in lines][-count:]
    assert _last_lines(tmp_path / "none", count) == []


def test_of_a_long_log_only_the_end_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = tmp_path / "combined.log"
    with log.open("wb") as file:
        file.truncate(1 << 30)  # nothing but holes: to read it all takes a gibibyte
        file.seek(0, 2)
        file.write(b"".join(b"\nstep %d" % number for number in range(300)))
    assert _last_lines(log, 200)[-1] == "step 299\n"


def test_the_last_lines_of_a_run_are_those_of_its_newest_attempts(
    bench: Bench, spec: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.submit(spec | {"factors": {}, "seeds": 1})
    bench.go(3)
    bench.cluster.end(bench.cluster.live()[0])
    bench.go(6)
    [run], asked = bench.runs(), list[str]()

    def tail(name: str, num_nodes: int, count: int) -> list[str]:
        asked.append(name)
        return [f"{name} {number}\n" for number in range(30)][-count:]

    monkeypatch.setattr(bench.cluster, "tail", tail)
    assert logs.tail(bench.db, bench.cluster, run.id, None, 2) == f"{run.id}-2 28\n{run.id}-2 29\n"
    assert asked == [f"{run.id}-2"]
    found = logs.tail(bench.db, bench.cluster, run.id, None, 40)
    assert found.startswith(f"{run.id}-1 21\n")
    assert found.endswith(f"{run.id}-2 29\n")
    assert len(found.splitlines()) == 40
    assert logs.tail(bench.db, bench.cluster, run.id, 1, 1) == f"{run.id}-1 29\n"


def test_a_whole_log_comes_in_pieces(bench: Bench, spec: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    bench.submit(spec | {"factors": {}, "seeds": 1})
    bench.go(3)
    told = 0

    def lines(name: str, num_nodes: int, *, follow: bool = False) -> Iterator[str]:
        nonlocal told
        for told in range(1, 10**7):
            yield f"{told}\n"

    monkeypatch.setattr(bench.cluster, "lines", lines)
    pieces = logs.text(bench.db, bench.cluster, bench.runs()[0].id, None)
    assert next(pieces).startswith("--- attempt")
    assert next(pieces).splitlines()[-1] == str(told)
    assert told < 3 * logs.LINES_A_PIECE
