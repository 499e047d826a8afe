"""Kill things at random while an experiment runs, then compare with the same experiment left alone.

    python -m tests.chaos --data FOLDER [--kills 20] [--seed 0]

Everything is real: `mcf up` with its service, MLflow and object store, torchrun agents and workers. What has to
hold: every run succeeds, MLflow has every logged step once, and the final numbers are those of the undisturbed
experiment (in float64, so that another number of workers changes nothing that can be seen).
"""

import argparse
import contextlib
import json
import math
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from service.client import Client, McfError
from trainer.contract.records import Result

STEPS, LOG_STEPS = 120, 4
KINDS = ("service", "worker", "agent", "mlflow")


def request(data: Path, *, steps: int = STEPS, ratios: Sequence[float] = (0.75, 0.5), seeds: int = 2) -> dict[str, Any]:
    return {
        "name": "chaos",
        "base": {
            "preset": "tiny",
            "input_size": 32,
            "data": {"uri": str(data)},
            "teacher": "none",
            "precision": "float64",
            "schedule": {"length": steps, "warmup": 5},
            "cadence": {"checkpoint_steps": 10, "log_steps": LOG_STEPS, "picture_steps": 40},
        },
        "factors": {"mask_ratio": list(ratios)},
        "seeds": seeds,
        "placement": {"min_nodes": 1, "max_nodes": 2},
    }


@contextlib.contextmanager
def mcf_up(folder: Path) -> Iterator[Client]:
    """A running `mcf up`; stopped as Ctrl-C does it."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "up.log").open("ab") as log:
        up = subprocess.Popen(
            [sys.executable, "-m", "service.cli.main", "up", "--dir", str(folder)], stdout=log, stderr=log
        )
    try:
        deadline = time.monotonic() + 90
        while True:
            try:
                client = Client(json.loads((folder / "up.json").read_text())["url"])
                client.ping()
                break
            except (McfError, FileNotFoundError):
                if time.monotonic() > deadline or up.poll() is not None:
                    raise RuntimeError((folder / "up.log").read_text()) from None
                time.sleep(0.3)
        yield client
    finally:
        up.send_signal(signal.SIGINT)
        try:
            up.wait(120)
        except subprocess.TimeoutExpired:
            up.kill()
            raise


def victims(folder: Path) -> dict[str, list[psutil.Process]]:
    """What runs below this folder's `mcf up`, by kind."""
    found: dict[str, list[psutil.Process]] = {kind: [] for kind in KINDS}
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            words = process.cmdline()
            if "supervisor.py" in " ".join(words) and str(folder) in " ".join(words):
                agents = [agent for agent in process.children() if agent.status() != psutil.STATUS_ZOMBIE]
                found["agent"] += agents
                # Forked from a fork of the agent, which has its command line.
                loaded = [child for agent in agents for child in agent.children() if child.cmdline() == agent.cmdline()]
                found["worker"] += [worker for process in loaded for worker in process.children()]
            elif "service.cli.guard" not in words and process.environ().get("MCF_WORK_DIR", "").startswith(str(folder)):
                if words[1:3] == ["-m", "service"]:
                    found["service"].append(process)
            elif "service.cli.guard" not in words and "sqlite:///mlflow.db" in words and process.cwd() == str(folder):
                found["mlflow"].append(process)
    return found


@dataclass
class Disturber:
    """Kills one thing after another, at random moments, each kind in turn so that none is left out."""

    folder: Path
    kills: int
    rng: random.Random
    done: Counter[str]
    next_at: float

    def tick(self) -> None:
        if self.done.total() >= self.kills or time.monotonic() < self.next_at:
            return
        kind = KINDS[self.done.total() % len(KINDS)]
        if not (processes := victims(self.folder)[kind]):
            return
        process = self.rng.choice(processes)
        print(f"kill -9 {kind} {process.pid}", flush=True)  # noqa: T201
        with contextlib.suppress(psutil.NoSuchProcess):
            os.kill(process.pid, signal.SIGKILL)
        self.done[kind] += 1
        self.next_at = time.monotonic() + self.rng.uniform(1, 8)


def numbers(client: Client, experiment_id: str) -> dict[str, dict[str, float]]:
    """Final numbers by arm and seed."""
    found = {}
    for arm in client.experiment(experiment_id).detail.arms:
        for trial in arm.trials:
            result = client.run(trial.run_id).result
            assert result, f"{trial.run_id} has no result"
            found[f"{arm.name} seed={trial.seed}"] = flat(result)
    return found


def flat(result: Result) -> dict[str, float]:
    metrics = {metric.name: metric.value for metric in [*result.sanity, *filter(None, [result.probe])]}
    return {**result.losses, **metrics, "steps": result.steps, "images_seen": result.images_seen}


def logged_steps(folder: Path, client: Client, experiment_id: str) -> dict[str, list[int]]:
    """Steps that MLflow itself holds of every run's total loss, repeats included; asserts that no run is RUNNING."""
    from mlflow.tracking import MlflowClient

    tracking = MlflowClient(json.loads((folder / "up.json").read_text())["tracking_uri"])
    found = {}
    for run in client.experiment(experiment_id).runs():
        tracking_id = client.run(run.id).tracking_run_id
        assert tracking.get_run(tracking_id).info.status == "FINISHED"
        found[run.id] = sorted(entry.step for entry in tracking.get_metric_history(tracking_id, "loss/total"))
    return found


def run_once(folder: Path, spec: dict[str, Any], kills: int, seed: int, seconds: float) -> dict[str, dict[str, float]]:
    """Final numbers of the experiment with that many kills on the way; asserts what has to hold of each run."""
    with mcf_up(folder) as client:
        experiment = client.submit(spec)
        disturber = Disturber(folder, kills, random.Random(seed), Counter(), time.monotonic())
        deadline = time.monotonic() + seconds
        while True:
            with contextlib.suppress(McfError):  # killed a moment ago
                if experiment.refresh().state.is_final:
                    break
            assert time.monotonic() < deadline, f"not over after {seconds} s: {experiment!r}"
            if experiment.detail.progress > 0:
                disturber.tick()
            time.sleep(0.3)
        assert experiment.detail.state == "succeeded", [run.reason for run in experiment.runs()]
        assert disturber.done.total() == kills, f"over after {disturber.done}; give it more steps"
        wait_until_settled(folder, client, experiment.id)
        expected = list(range(LOG_STEPS, spec["base"]["schedule"]["length"] + 1, LOG_STEPS))
        for run_id, steps in logged_steps(folder, client, experiment.id).items():
            assert steps == expected, f"{run_id}: {Counter(steps) - Counter(expected)} too many, {steps}"
        for run in experiment.runs():
            print(f"{run.id}: {run.restarts} restarts, world sizes {run.world_sizes}", flush=True)  # noqa: T201
        return numbers(client, experiment.id)


def wait_until_settled(folder: Path, client: Client, experiment_id: str) -> None:
    """MLflow may have been killed last: what is buffered gets there when it is back."""
    deadline = time.monotonic() + 120
    while True:
        try:
            logged_steps(folder, client, experiment_id)
            return
        except Exception:
            if time.monotonic() > deadline:
                raise
            time.sleep(1)


def compare(undisturbed: dict[str, dict[str, float]], disturbed: dict[str, dict[str, float]]) -> None:
    assert undisturbed.keys() == disturbed.keys()
    for trial, wanted in undisturbed.items():
        assert wanted.keys() == disturbed[trial].keys(), trial
        for name, value in wanted.items():
            got = disturbed[trial][name]
            assert math.isclose(got, value, rel_tol=1e-5, abs_tol=1e-8), f"{trial}: {name} {got} instead of {value}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=STEPS)
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="mcf-chaos-"))
    spec = request(options.data.resolve(), steps=options.steps)
    undisturbed = run_once(folder / "calm", spec, 0, options.seed, 600)
    started = time.monotonic()
    disturbed = run_once(folder / "storm", spec, options.kills, options.seed, 1500)
    compare(undisturbed, disturbed)
    print(f"{options.kills} kills in {time.monotonic() - started:.0f} s; all numbers as without")  # noqa: T201
    shutil.rmtree(folder)


if __name__ == "__main__":
    main()
