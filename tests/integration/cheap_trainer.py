"""Stands in for torchrun and the trainer where the control plane is tested: leaves the same records, in no time.

Standard library only. The spec decides what happens: `contrastive.temperature` 0.5 = fails by its own error,
0.7 = is killed without a word at the first two attempts. A step takes
`ema.momentum` seconds. With `evaluation.every` it is read. Two of it at work on one run leave a file DOUBLE.
"""

import fcntl
import json
import os
import signal
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

from records import result, session

FOLDER = Path(os.environ["MCF_RUN_URI"])
ATTEMPT = int(os.environ["MCF_ATTEMPT"])


def write(name: str, content: object) -> None:
    path = FOLDER / name
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".aside-{os.getpid()}")
    aside.write_text(json.dumps(content))
    aside.replace(path)


def say(text: str) -> None:
    os.write(1, f"{text}\n".encode())


def now() -> str:
    return datetime.now(UTC).isoformat()


def main() -> int:
    spec = json.loads(Path(sys.argv[sys.argv.index("--spec") + 1]).read_text())
    FOLDER.mkdir(parents=True, exist_ok=True)
    lock = (FOLDER / "lock").open("w")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        (FOLDER / "DOUBLE").touch()
        return 1
    with (FOLDER / "starts").open("a") as starts:
        starts.write(f"{ATTEMPT}\n")
    if (FOLDER / "outcome.json").exists():
        return 0
    return train(spec)


def train(spec: dict) -> int:
    temperature, pause = spec["contrastive"]["temperature"], spec["ema"]["momentum"]
    total = int(spec["schedule"]["length"])
    stopping = []
    signal.signal(signal.SIGTERM, lambda *_: stopping.append(1))
    state = FOLDER / "state.json"
    step = first = json.loads(state.read_text()) if state.exists() else 0
    number = len(list((FOLDER / "sessions").glob("*.json"))) + 1
    started = now()
    say(f"attempt {ATTEMPT} from step {step}")
    if temperature == 0.7 and ATTEMPT < 3:
        say("about to die without a word")
        os.kill(os.getpid(), signal.SIGKILL)
    while step < total and not stopping:
        time.sleep(pause)
        step += 1
        write("state.json", step)
        newest = session(number, ATTEMPT, first, step, total, started, now())
        if every := spec["evaluation"].get("every"):
            read = [result(spec, at, 1 - at / 100) for at in range(0, step + 1, every["steps"])]
            kept = ("images_seen", "probe", "sanity")
            made = [{"step": r["steps"], "seconds": 0.1, **{name: r[name] for name in kept}} for r in read]
            write("readings.json", {"readings": made})
            newest |= {"last_reading": made[-1]["step"]}
            newest |= {"trouble": "it has stalled: nothing is learnt"} if temperature == 0.9 else {}
        write(f"sessions/{number:04d}.json", newest)
        if temperature == 0.5:
            failed = {"verdict": "failed", "step": step, "reason": "the loss is not finite", "kind": "NonFiniteLoss"}
            write("outcome.json", {**failed, "ended_at": now()})
            return 1
    if stopping:
        return 143
    write("result.json", result(spec, step, export=f"{FOLDER}/export"))
    write("outcome.json", {"verdict": "succeeded", "step": step, "ended_at": now()})
    return 0


if __name__ == "__main__":
    sys.exit(main())
