"""python -m tests.fuzz [--requests 100000] [--seed 0] [--sqlite]

Half of the requests come from the OpenAPI (schemathesis), half are specs made wrong (mutations.py). The service is a
process of its own with PostgreSQL, bound to loopback, and trains what it accepts with tests/integration/cheap_trainer.
Exit code 1 where an answer is a 5xx, takes more than 2 s, tells a line of a foreign file, where the service's memory
grows by more than a quarter, or where an experiment is half there.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from collections import Counter
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx2
import psutil
import schemathesis
from hypothesis import HealthCheck, Phase, given, seed, settings

from k8s.local import stop_all
from tests.conftest import free_port, running
from tests.fuzz.mutations import SECRET, Mutations, lay_out
from tests.postgres import running_postgres

ROOT = Path(__file__).parents[2]
SLOW_SECONDS = 2.0
GROWTH = 1.25
# Its caches have filled by then.
ROUND = 1000
WARM_REQUESTS = 2000
# A connection that has waited for the next round may be closed just when it is used again.
NO_KEEPALIVE = httpx2.Limits(max_keepalive_connections=0)
PATHS = "^/(v1|healthz|readyz|metrics|experiments|runs|queue)"


class Verdict:
    """Counts answers, and keeps the first of each kind that should not be."""

    def __init__(self, slow_seconds: float) -> None:
        self._slow_seconds = slow_seconds
        self.answers: Counter[int] = Counter()
        self.wrong: dict[str, str] = {}
        self.slowest = 0.0

    def of(self, what: str, status: int, seconds: float, text: str) -> None:
        self.answers[status] += 1
        self.slowest = max(self.slowest, seconds)
        where = what.split("?")[0][:60]
        if status >= 500 and status != 503:
            self.wrong.setdefault(f"{status} at {where}", f"{what}\n{text[:500]}")
        if seconds > self._slow_seconds:
            self.wrong.setdefault(f"slow at {where}", f"{what}\n{seconds:.1f} s")
        if SECRET in text:
            self.wrong.setdefault(f"a foreign file at {where}", f"{what}\n{text[:500]}")


def fuzz(
    requests: int, number: int, database: str, folder: Path, slow_seconds: float = SLOW_SECONDS
) -> Verdict:  # fmt: skip
    """Send them to a service on this database. Raises nothing for what it finds."""
    port, verdict = free_port(), Verdict(slow_seconds)
    url = f"http://127.0.0.1:{port}"
    env = {
        **os.environ, "MCF_PORT": str(port), "MCF_WORK_DIR": str(folder / "work"), "MCF_DATABASE_URL": database,
        "PYTHONPATH": str(ROOT), "MCF_MAX_CONCURRENT_RUNS": "1", "MCF_SECRET_OF_THE_SERVICE": SECRET,
    }  # fmt: skip
    mutations = Mutations(number, lay_out(folder), folder)
    command = [sys.executable, str(ROOT / "tests/integration/cheap_service.py")]
    with ExitStack() as stack:
        stack.callback(stop_all, folder / "work/attempts", grace_seconds=2)
        process = stack.enter_context(
            running(command, folder / "service.log", f"{url}/healthz", seconds=60, env=env)
        )  # fmt: skip
        client = stack.enter_context(httpx2.Client(base_url=url, timeout=60, limits=NO_KEEPALIVE))
        service = psutil.Process(process.pid)
        warm, share = 0, min(ROUND, requests)
        # A round may have fewer than its share: of some addresses there is not much to ask.
        for round in range(2 * -(-requests // share)):
            _mutated(client, mutations, share // 2, verdict)
            _generated(url, share - share // 2, number + round, verdict)
            if process.poll() is not None:
                verdict.wrong["the service has ended"] = (folder / "service.log").read_text()[-2000:]
                return verdict
            sent = sum(verdict.answers.values())
            if not warm and sent >= min(WARM_REQUESTS, requests // 2):
                warm = service.memory_info().rss
            if sent >= requests:
                break
        grown = service.memory_info().rss / warm
        if grown > GROWTH:
            verdict.wrong["memory"] = (
                f"{warm >> 20} MiB after {WARM_REQUESTS} requests, {grown:.2f} times that at the end"
            )
        _complete(client, verdict)
    return verdict


def _mutated(client: Any, mutations: Mutations, count: int, verdict: Verdict) -> None:
    rng = mutations.rng
    known = client.get("/v1/experiments").json()["experiments"]
    ids = [each["id"] for each in known[:5]] or ["e0"]
    for _ in range(count):
        experiment = rng.choice(ids)
        what = rng.choice(["submit"] * 2 + ["dry run"] * 6 + ["extend", "form", "token", "look"])
        if what in ("submit", "dry run"):
            body, kind = mutations.body()
            path = "/v1/experiments" + ("?dry_run=true" if what == "dry run" else "")
            _send(client, verdict, "POST", path, content=body, headers={"Content-Type": kind})
        elif what == "extend":
            more = {rng.choice(["seeds", "factors", "evaluation", "gpu_hours", "x"]): mutations.value()}
            again = {"seeds": mutations.value()} if rng.random() < 0.2 else {}
            _send(client, verdict, "POST", f"/v1/experiments/{experiment}/extend", **_as_json(more, again))
        elif what == "form":
            field = rng.choice(["seeds", "evaluation", "other"])
            data = {field: str(mutations.value()).encode("utf-8", "surrogatepass")[:5000].hex()}
            _send(client, verdict, "POST", f"/experiments/{experiment}/extend", data=data)
        elif what == "token":
            asked = {"name": mutations.value(), "scope": rng.choice(["read", mutations.value()])}
            _send(client, verdict, "POST", "/v1/tokens", **_as_json(asked))
        else:
            name = rng.choice([experiment, "%00", "..%2f..", "e" * 500, "r0", "%ff"])
            _send(
                client, verdict, "GET", rng.choice(["/v1/experiments/", "/v1/runs/", "/experiments/", "/runs/"]) + name
            )


def _as_json(asked: dict[str, Any], again: dict[str, Any] | None = None) -> dict[str, Any]:
    """With what the client's own encoder refuses to send, and keys of `again` that may come a second time."""
    text = json.dumps(asked) if not again else f"{json.dumps(asked)[:-1]}, {json.dumps(again)[1:]}"
    return {"content": text.encode(), "headers": {"Content-Type": "application/json"}}


def _send(client: Any, verdict: Verdict, method: str, path: str, **what: Any) -> None:
    started = time.monotonic()
    sent = next(iter(what.values()), b"")
    try:
        answer = client.request(method, path, **what)
    except httpx2.HTTPError as error:
        verdict.wrong.setdefault(f"no answer at {method} {path}"[:80], f"{sent!r}"[:1000] + f"\n{error!r}")
        return
    verdict.of(f"{method} {path} {sent!r}"[:2000], answer.status_code, time.monotonic() - started, answer.text)


def _generated(url: str, count: int, number: int, verdict: Verdict) -> None:
    schema = schemathesis.openapi.from_url(f"{url}/openapi.json").include(path_regex=PATHS)
    operations = [made.ok() for made in schema.get_all_operations()]
    for operation in operations:

        @seed(number)
        @settings(
            max_examples=max(1, count // len(operations)), deadline=None, database=None, phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )  # fmt: skip
        @given(case=operation.as_strategy())
        def one(case: Any) -> None:
            started = time.monotonic()
            answer = case.call()
            verdict.of(f"{case.method} {case.path}", answer.status_code, time.monotonic() - started, answer.text)

        one()


def _complete(client: Any, verdict: Verdict) -> None:
    """Every experiment that was accepted has all its arms and seeds."""
    cursor: str | None = ""
    while cursor is not None:
        page = client.get("/v1/experiments", params={"limit": 100, **({"cursor": cursor} if cursor else {})}).json()
        for each in page["experiments"]:
            detail = client.get(f"/v1/experiments/{each['id']}").json()
            counts = {len(arm["trials"]) for arm in detail["arms"]}
            if len(detail["arms"]) != detail["num_arms"] or len(counts) != 1 or detail["num_runs"] == 0:
                verdict.wrong[f"half of {each['id']} is there"] = str(detail)[:500]
        cursor = page["next_cursor"]


def say(what: str) -> None:
    sys.stdout.write(f"{what}\n")


def main() -> int:
    parser = argparse.ArgumentParser(prog="tests.fuzz", description="Requests that nobody should send.")
    parser.add_argument("--requests", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--sqlite", action="store_true", help="SQLite in place of PostgreSQL")
    asked = parser.parse_args()
    started = time.monotonic()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="mcf-fuzz-")))
        database = "" if asked.sqlite else stack.enter_context(running_postgres())
        verdict = fuzz(asked.requests, asked.seed, database, folder)
    answers = ", ".join(f"{count} x {status}" for status, count in sorted(verdict.answers.items()))
    say(f"seed {asked.seed}: {sum(verdict.answers.values())} requests in {time.monotonic() - started:.0f} s")
    say(f"{answers}; the slowest answer took {verdict.slowest:.2f} s")
    for kind, example in verdict.wrong.items():
        say(f"\n{kind}: {example}")
    return 1 if verdict.wrong else 0


if __name__ == "__main__":
    sys.exit(main())
