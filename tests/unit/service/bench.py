"""A service without its web part, a clock that is set, and a scheduler that obeys the test."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any, cast

from sqlalchemy import Engine, event, select

from k8s.capacity import PoolState
from service import audit
from service.db import Database
from service.experiments import service as experiments
from service.launching.port import Job, JobState, Launch
from service.reconciler.loop import Reconciler
from service.reconciler.outside import Outside
from service.settings import Settings
from service.states import RunState
from service.tables import Attempt, Experiment, Run
from service.telemetry import Telemetry
from service.tracking import TrackedRun, Tracker
from trainer.contract import Placement, RunSpec, records
from trainer.contract.records import Floors, Metric, Outcome, Result, Session, Verdict
from trainer.resolve import check_and_resolve
from trainer.store.objects import open_store


@contextmanager
def counting_statements(engine: Engine) -> Iterator[list[str]]:
    statements: list[str] = []

    def note(conn: object, cursor: object, statement: str, *rest: object) -> None:
        statements.append(statement)

    event.listen(engine, "before_cursor_execute", note)
    yield statements
    event.remove(engine, "before_cursor_execute", note)


class Killed(BaseException):
    """The service is killed here."""


class Cluster:
    """A scheduler whose jobs do what the test says, and which counts what it is asked."""

    def __init__(self, settings: Settings, clock: "Clock") -> None:
        self._settings, self._clock = settings, clock
        self.jobs: dict[str, JobState] = {}
        self.says: dict[str, Job] = {}
        """More of an attempt than its state."""
        self.submissions: Counter[str] = Counter()
        self.looks = 0
        self.most_live = 0
        self.killed_before: str = ""
        self.killed_after: str = ""

    def request(self, launch: Launch) -> dict[str, Any]:
        return {"name": launch.name}

    def submit(self, launch: Launch) -> None:
        self._kill("submit", self.killed_before)
        if launch.name not in self.jobs:
            self.jobs[launch.name] = JobState.RUNNING
            self.submissions[launch.name] += 1
        self.most_live = max(self.most_live, len(self.live()))
        self._kill("submit", self.killed_after)

    def start(self, changed: Callable[[str], None]) -> None:
        self.changed = changed

    def close(self) -> None:
        pass

    def has_gpus(self, placement: Placement) -> bool:
        return False

    def choose(self, placement: Placement) -> str:
        return placement.pools[0]

    def pools(self) -> list[PoolState]:
        return []

    def look(self, launch: Launch) -> Job:
        self._kill("look", self.killed_before)
        self.looks += 1
        seen = self.says.get(launch.name, Job())
        return replace(seen, state=self.jobs.get(launch.name, JobState.ABSENT))

    def cancel(self, name: str) -> None:
        if name in self.live():
            self.jobs[name] = JobState.CANCELLED
        self._kill("cancel", self.killed_after)

    def live(self) -> list[str]:
        return [name for name, job in self.jobs.items() if job.is_live]

    def lines(self, name: str, num_nodes: int, *, follow: bool = False) -> Iterator[str]:
        yield "what was printed last\n"

    def tail(self, name: str, num_nodes: int, count: int) -> list[str]:
        return ["what was printed last\n"]

    def _kill(self, now: str, wanted: str) -> None:
        if now == wanted:
            self.killed_before = self.killed_after = ""
            raise Killed(now)

    # -- what trainers do

    def train(self, name: str, steps: int, **changes: Any) -> None:
        """The attempt takes the run to `steps`; `changes` are of its session."""
        run, _, attempt = name.rpartition("-")
        store = open_store(self._settings.run_uri(run))
        now = self._clock()
        fields: dict[str, Any] = {
            "number": int(attempt), "attempt": int(attempt), "world_size": 2, "device": "cpu", "first_step": 0,
            "step": steps, "total_steps": 10, "stage": "training", "images_per_second": 5.0,
            "losses": {"loss/total": 1.0}, "started_at": now - timedelta(minutes=30), "seen_at": now,
        }  # fmt: skip
        session = Session(**(fields | changes))
        store.put(records.session_name(int(attempt)), session.model_dump_json().encode())

    def end(self, name: str, state: JobState = JobState.FAILED) -> None:
        self.jobs[name] = state

    def succeed(self, name: str, **changes: Any) -> None:
        run, _, _ = name.rpartition("-")
        self.train(name, 10)
        store = open_store(self._settings.run_uri(run))
        spec = RunSpec.model_validate_json(store.get(records.SPEC)) if _has_spec(store) else None
        store.put(records.RESULT, result(spec, **changes).model_dump_json().encode())
        outcome = Outcome(verdict=Verdict.SUCCEEDED, step=10, ended_at=self._clock())
        store.put(records.OUTCOME, outcome.model_dump_json().encode())
        self.end(name, JobState.SUCCEEDED)

    def fail(self, name: str, reason: str = "the loss is not finite") -> None:
        run, _, _ = name.rpartition("-")
        outcome = Outcome(verdict=Verdict.FAILED, step=3, reason=reason, kind="NonFiniteLoss", ended_at=self._clock())
        open_store(self._settings.run_uri(run)).put(records.OUTCOME, outcome.model_dump_json().encode())
        self.end(name)


def _has_spec(store: Any) -> bool:
    return any(entry.name == records.SPEC for entry in store.list(records.SPEC))


def result(spec: RunSpec | None, **changes: Any) -> Result:
    """Numbers that depend on arm and seed, with a spread."""
    ratio, seed = (spec.mask_ratio, spec.seed) if spec else (0.75, 0)
    value = 10 - 4 * ratio + 0.1 * seed + 0.013 * ((seed * 7 + int(ratio * 8)) % 5)
    fields: dict[str, Any] = {
        "steps": 10, "images_seen": 640, "subset_size": 28, "subset_digest": "0" * 64, "held_out_digest": "1" * 64,
        "probe": Metric(name="probe/landmark_nme", value=value, unit="% of eye distance", higher_is_better=False),
        "floors": Floors(pixels=12.0, random_encoder=11.0 + 0.05 * seed),
        "sanity": [Metric(name="sanity/psnr", value=20.0, unit="dB", higher_is_better=True)],
        "losses": {"loss/total": 0.5}, "export": "export/",
    }  # fmt: skip
    return Result(**(fields | changes))


class Board:
    """An MLflow that takes everything, and knows how every run of it ended."""

    uri = "http://mlflow"

    def __init__(self) -> None:
        self.ended: dict[str, RunState] = {}

    def ensure_parent(self, *, experiment_id: str, **rest: Any) -> TrackedRun:
        return TrackedRun("1", f"parent of {experiment_id}")

    def ensure_child(self, parent: TrackedRun, *, own: Mapping[str, str], **rest: Any) -> TrackedRun:
        return TrackedRun("1", " ".join(own.values()))

    def finish(self, run_id: str, state: RunState, tags: Mapping[str, str]) -> None:
        self.ended[run_id] = state

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *args, **options: None


class Clock:
    def __init__(self) -> None:
        self.now = datetime.now(UTC)  # what requests write is never in its future

    def __call__(self) -> datetime:
        return self.now


class Bench:
    """A service without its web part."""

    def __init__(self, db: Database, settings: Settings, tracker: Tracker | Board | None = None) -> None:
        self.db, self.settings, self.tracker = db, settings, tracker
        self.clock = Clock()
        self.cluster = Cluster(settings, self.clock)
        self.reconciler = self.start()

    def start(self) -> Reconciler:
        """A service is started, on what it finds."""
        self.reconciler = self.another()
        return self.reconciler

    def another(self) -> Reconciler:
        """A second service on the same database."""
        outside = Outside(self.settings, self.cluster, cast("Tracker | None", self.tracker))
        return Reconciler(self.db, self.settings, outside, Telemetry(), clock=self.clock)

    def submit(self, spec: dict[str, Any], key: str | None = None) -> str:
        submitted = experiments.submit(self.db, check_and_resolve(spec), key, experiments.request_digest(spec))
        self.reconciler.wake()
        return submitted

    def go(self, ticks: int = 1, seconds: float = 2.0) -> None:
        """Time passes, and the service looks. Raises Killed where it is killed."""
        for _ in range(ticks):
            self.clock.now += timedelta(seconds=seconds)
            self.reconciler.tick()
            self.reconciler.drain()

    def go_until(self, condition: Callable[[], bool], ticks: int = 300) -> None:
        for _ in range(ticks):
            if condition():
                return
            self.go()
        raise AssertionError(f"did not happen: {self.states()} {[run.waiting_reason for run in self.runs()]}")

    def runs(self) -> list[Run]:
        with self.db.read() as session:
            return list(session.scalars(select(Run).order_by(Run.created_at, Run.id)))

    def attempts(self) -> list[Attempt]:
        with self.db.read() as session:
            return list(session.scalars(select(Attempt).order_by(Attempt.run_id, Attempt.number)))

    def audit(self, project: str | None = None) -> list[dict[str, Any]]:
        """Oldest first, without number and time."""
        names = ("name", "token_id", "project", "action", "object", "asked", "address", "status")
        with self.db.read() as session:
            found = audit.entries(session, 1000, project, after=0)
        return [{name: getattr(entry, name) for name in names} for entry in found]

    def experiment(self, id: str) -> Experiment:
        with self.db.read() as session:
            return session.get_one(Experiment, id)

    def states(self) -> dict[str, int]:
        return dict(Counter(run.state.value for run in self.runs()))
