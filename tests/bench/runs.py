"""Real runs of the tiny preset under torchrun: start-up, world sizes, accumulation, and losing a worker.

python -m tests.bench.runs
"""

import json
import os
import signal
import tempfile
import time
from pathlib import Path

import psutil
import torch

from k8s.appdef import LaunchRequest, app_for
from tests.conftest import draw_faces
from tests.integration.torchruns import small, torchrun, wait_until
from trainer.contract import Placement, RunSpec
from trainer.contract.records import Session
from trainer.store.objects import DirectoryStore
from trainer.store.rundir import read_sessions

# A step of 8 cells, and runs long enough to be looked at and stopped.
GRID = {"slice": 32, "contrastive_group": 128, "global_batch": 256}
CADENCE = {"checkpoint_steps": 100_000, "log_steps": 1, "picture_steps": 100_000}
SECONDS = 12.0


def measure() -> dict[str, float]:
    with tempfile.TemporaryDirectory() as scratch:
        faces = Path(scratch, "faces")
        faces.mkdir()
        draw_faces(faces, 400)
        alone, start = _rate(_run(faces, GRID), Path(scratch, "1"), workers=1)
        found = {"start_up_seconds": start, "images_a_second_1_worker": alone}
        most = torch.cuda.device_count() or os.cpu_count() or 1
        for workers in range(2, most + 1):
            rate, _ = _rate(_run(faces, GRID), Path(scratch, f"{workers}"), workers=workers)
            found[f"speedup_{workers}_workers"] = rate / alone
        for times in 4, 8:
            batch = {**GRID, "global_batch": times * GRID["global_batch"]}
            rate, _ = _rate(_run(faces, batch), Path(scratch, f"a{times}"), workers=1)
            found[f"images_a_second_at_{times}x_accumulation"] = rate / alone
        found["side_by_side"] = _side_by_side(_run(faces, GRID), Path(scratch, "beside"))
        return found | ({"reform_seconds": _reform(_run(faces, GRID), Path(scratch, "lost"))} if most > 1 else {})


def _run(faces: Path, batch: dict[str, int]) -> RunSpec:
    schedule = {"unit": "steps", "length": 1_000_000, "warmup": 4}
    return small(faces, input_size=64, batch=batch, schedule=schedule, cadence=CADENCE)


def _rate(run: RunSpec, folder: Path, workers: int, **env: str) -> tuple[float, float]:
    """Images a second once it trains, and seconds from the start of the worker to its first step."""
    with torchrun(run, folder, workers=workers, **env) as agent:
        wait_until(lambda: _step(folder) > 0, agent, folder / "log")
        first = _session(folder)
        time.sleep(SECONDS)
        last = _session(folder)
    assert last.images_per_second, f"no step in {SECONDS} s"
    trained = first.step * run.batch.global_batch / last.images_per_second
    return last.images_per_second, (first.seen_at - first.started_at).total_seconds() - trained


def _side_by_side(run: RunSpec, folder: Path) -> float:
    """Images a second of two runs at once, in all, over those of one alone; each with the threads it would be given."""
    asked = LaunchRequest("bench", 1, "", "", Placement(), threads=os.cpu_count() or 1)
    threads = {name: value for name, value in app_for(asked).roles[0].env.items() if name.startswith("OMP_")}
    alone, _ = _rate(run, folder, workers=1, **threads)
    beside = Path(f"{folder}-other")
    with torchrun(run, beside, workers=1, **threads) as other:
        wait_until(lambda: _step(beside) > 0, other, beside / "log")
        together, _ = _rate(run, Path(f"{folder}-one"), workers=1, **threads)
        last = _session(beside)
    assert last.images_per_second
    return (together + last.images_per_second) / alone


def _reform(run: RunSpec, folder: Path) -> float:
    """Seconds from the death of one of two workers until both have taken a step again."""
    with torchrun(run, folder, workers=2) as agent:
        wait_until(lambda: _step(folder) > 0, agent, folder / "log")
        time.sleep(4)
        os.kill(psutil.Process(agent.pid).children()[-1].pid, signal.SIGKILL)
        killed = time.monotonic()
        wait_until(lambda: len(read_sessions(DirectoryStore(str(folder)))) == 2, agent, folder / "log")
        started_at = _step(folder)
        wait_until(lambda: _step(folder) > started_at, agent, folder / "log")
        return time.monotonic() - killed


def _session(folder: Path) -> Session:
    return read_sessions(DirectoryStore(str(folder)))[-1]


def _step(folder: Path) -> int:
    sessions = read_sessions(DirectoryStore(str(folder)))
    return sessions[-1].step if sessions else -1


if __name__ == "__main__":
    print(json.dumps(measure(), indent=1))  # noqa: T201
