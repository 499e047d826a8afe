"""What a GPU makes of a step, in one table: python -m tests.bench.gpu [--out FOLDER] [--short] [--check]

Needs a machine with one GPU that does nothing else, and under eight minutes. What is most worth knowing comes first;
each section is a process of its own, so that one that fails, hangs or leaves the GPU in a bad state costs no other:
its row then says why, its log is in the folder, and the exit code is 1. `--short` takes every section on a CPU, with
tiny networks: figures that mean nothing, and code that cannot fail for a silly reason when there is a GPU at last.
"""

import argparse
import importlib.util
import json
import os
import platform
import re
import sys
import time
import tomllib
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
LIMIT_SECONDS = 8 * 60 - 20.0
# Of a section whose time is over, for whoever has to be ended and for the table.
LEAST_SECONDS = 10.0
# Modules that are imported -> names of their packages, where the two differ.
PACKAGES = {
    "torch": "torch", "torchvision": "torchvision", "numpy": "numpy", "PIL": "pillow", "pydantic": "pydantic",
    "psutil": "psutil", "safetensors": "safetensors", "boto3": "boto3", "lmdb": "lmdb", "yaml": "pyyaml",
    "pynvml": "nvidia-ml-py", "scipy": "scipy",
}  # fmt: skip


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="tests.bench.gpu", description="Measure on one GPU.")
    parser.add_argument(
        "--out", type=Path, default=Path(os.environ.get("OUT", "gpu-bench")), help="folder of the table"
    )
    parser.add_argument("--short", action="store_true", help="everything with tiny networks on a CPU")
    parser.add_argument("--check", action="store_true", help="only say what is missing on this machine")
    asked = parser.parse_args(argv)
    if lacking := missing():
        print(f"missing: pip install {' '.join(lacking)}", file=sys.stderr)  # noqa: T201
        return 1
    if asked.check:
        print("nothing is missing")  # noqa: T201
        return 0
    # As a run's workers are started: threads that wait leave their cores to others.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    # Only now: it needs what was looked for.
    from tests.bench.sections import SECTIONS, Scale

    table = Table(asked.out, Scale.of(asked.short).machine())
    deadline = time.monotonic() + LIMIT_SECONDS
    for section in SECTIONS:
        left = deadline - time.monotonic()
        if left < LEAST_SECONDS:
            table.add(Row(section.name, "", {}, "no time left"))
            continue
        seconds = left if asked.short else min(left, section.seconds)
        for row in run(section, Scale.of(asked.short), seconds, asked.out):
            table.add(row)
        if table.failed and section is SECTIONS[0]:
            break  # nothing to measure on
    return int(table.failed)


def missing() -> list[str]:
    """What pip would be told to install, quoted for a shell."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [*project["dependencies"], *project["optional-dependencies"]["trainer"]]
    asked = {re.split(r"[<>=\[]", each)[0]: each for each in wanted}
    return [f"'{asked[package]}'" for module, package in PACKAGES.items() if not importlib.util.find_spec(module)]


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    section: str
    what: str
    numbers: dict[str, float]
    trouble: str = ""
    """Why there are no numbers, or no more of them."""

    def shown(self) -> str:
        return ", ".join([*(said(name, value) for name, value in self.numbers.items()), *filter(None, [self.trouble])])


# Figures whose name does not say how they are read.
SHOWN = {
    "images_per_second": "{:,.0f} images/s", "share_of_bf16_peak": "{:.2f} of the bf16 peak",
    "share_of_float32_peak": "{:.2f} of the float32 peak", "step_over_product": "{:.2f} of a matrix product",
    "product_share_of_bf16_peak": "matrix product {:.2f} of the bf16 peak", "kernels": "{:,.0f} kernels",
    "busy": "busy {:.0%}", "peak_memory_gib": "{:.1f} GiB", "compile_seconds": "compiled in {:.0f} s",
    "stall_seconds": "stall {:.4f} s", "stall_share": "stall {:.2%} of a step of 4096 images",
    "slowdown": "a pass beside a write {:+.0%}", "state_gib": "state {:.2f} GiB", "speedup": "{:.2f} x",
    "weights_apart": "weights {:.1e} apart", "losses_apart": "losses {:.1e} apart",
    "gradient_apart": "gradient {:.1e} apart", "resumed_at": "resumed at step {:.0f}",
    "product_flop_rate": "{:.3g} FLOP/s", "largest_difference": "at most {:.0f} levels from the CPU's pixels",
    "mean_difference": "{:.3f} levels on average",
}  # fmt: skip


def said(name: str, value: float) -> str:
    return SHOWN.get(name, name.replace("_", " ") + " {:.4g}").format(value)


class Table:
    """On the screen, as it grows, and in the folder as Markdown and JSON."""

    def __init__(self, folder: Path, machine: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.title = f"{machine}, {datetime.now(UTC):%Y-%m-%d %H:%M} UTC, python {platform.python_version()}"
        self.rows: list[Row] = []
        self._say(self.title, "", "| section | case | figures |", "| --- | --- | --- |")

    @property
    def failed(self) -> bool:
        return any(row.trouble.startswith(("failed", "stopped")) for row in self.rows)

    def add(self, row: Row) -> None:
        self.rows.append(row)
        self._say(self._line(row))
        lines = [self.title, "", "| section | case | figures |", "| --- | --- | --- |", *map(self._line, self.rows)]
        (self.folder / "table.md").write_text("\n".join(lines) + "\n")
        kept = {"machine": self.title, "rows": [vars(each) for each in self.rows]}
        (self.folder / "table.json").write_text(json.dumps(kept, indent=1) + "\n")

    def _line(self, row: Row) -> str:
        return f"| {row.section} | {row.what} | {row.shown()} |"

    def _say(self, *lines: str) -> None:
        print(*lines, sep="\n", flush=True)  # noqa: T201


def run(section: Any, scale: Any, seconds: float, folder: Path) -> Iterator[Row]:
    """The section's rows as they come, in a fork of this process, which must not have touched the GPU."""
    log, said_so_far = folder / f"{section.file}.log", folder / f"{section.file}.jsonl"
    for left in log, said_so_far:
        left.unlink(missing_ok=True)
    began = time.monotonic()
    if (child := os.fork()) == 0:
        work(section, scale, log, said_so_far)
    status: int | None = None
    told = 0
    while status is None and time.monotonic() - began < seconds:
        time.sleep(0.05)
        ended, how = os.waitpid(child, os.WNOHANG)
        status = how if ended else None
        lines = said_so_far.read_text().splitlines(keepends=True) if said_so_far.exists() else []
        whole = [line for line in lines if line.endswith("\n")]
        yield from (Row(section.name, **json.loads(line)) for line in whole[told:])
        told = len(whole)
    if status is None:
        end(child)
        what = "no time left for more" if told else f"stopped after {seconds:.0f} s"
        yield Row(section.name, "", {}, f"{what}, see {log.name}")
    elif os.WIFSIGNALED(status):
        yield Row(section.name, "", {}, f"failed: ended by signal {os.WTERMSIG(status)}, see {log.name}")


def work(section: Any, scale: Any, log: Path, rows: Path) -> None:
    """Be the process of a section."""
    with log.open("a") as output, rows.open("a") as file:
        os.dup2(output.fileno(), 1)
        os.dup2(output.fileno(), 2)

        def tell(**row: object) -> None:
            file.write(json.dumps(row) + "\n")
            file.flush()

        try:
            for what, numbers in section.rows(scale):
                tell(what=what, numbers=numbers)
        except BaseException as error:
            traceback.print_exc(file=output)
            output.flush()
            why = " ".join(f"{type(error).__name__}: {error}".replace("|", "/").split())[:300]
            tell(what="", numbers={}, trouble=f"failed: {why} (see {log.name})")
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(0)


def end(child: int) -> None:
    """A section and whatever it has started."""
    import psutil

    try:
        process = psutil.Process(child)
        for each in [*process.children(recursive=True), process]:
            try:
                each.kill()
            except psutil.NoSuchProcess:
                continue
    finally:
        os.waitpid(child, 0)


if __name__ == "__main__":
    sys.exit(main())
