"""What the reconciler asks of the store about its runs: little while they train, and never too little to see an end."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from service.launching.port import Job, JobState
from service.reconciler.directories import Directories
from trainer.contract.records import DONE, OUTCOME, Outcome, Session, Verdict, session_name
from trainer.store.objects import DirectoryStore, Store, _s3, open_store

START = datetime(2026, 11, 29, tzinfo=UTC)
RUNNING = Job(JobState.RUNNING)


class Run:
    """A run's directory as a trainer writes it, looked at every second as the reconciler does on a cluster."""

    def __init__(self, store: Store) -> None:
        self.store, self.now, self.attempt = store, START, 1
        self.directories = Directories(timedelta(seconds=10))

    def session(self, number: int, step: int, stage: str = "training") -> None:
        session = Session(
            number=number, attempt=self.attempt, world_size=1, device="cpu", first_step=0, step=step, total_steps=1000,
            stage=stage, images_per_second=None, losses={}, started_at=START, seen_at=self.now,
        )  # fmt: skip
        self.store.put(session_name(number), session.model_dump_json().encode())

    def end(self) -> None:
        outcome = Outcome(verdict=Verdict.FAILED, step=1, ended_at=self.now)
        self.store.put(OUTCOME, outcome.model_dump_json().encode())

    def look(self, job: Job = RUNNING, seconds: float = 1.0) -> tuple[bool, list[int]]:
        """Whether it has ended, and the step of every session."""
        self.now += timedelta(seconds=seconds)
        outcome, sessions = self.directories.read("r1", self.store, self.attempt, job, self.now)
        return outcome is not None, [session.step for session in sessions]


@pytest.fixture(params=["folder", "s3"])
def run(request: pytest.FixtureRequest, tmp_path: object) -> Run:
    store = DirectoryStore(str(tmp_path)) if request.param == "folder" else open_store(
        f"{request.getfixturevalue('s3_server')}/directories"
    )  # fmt: skip
    return Run(store)


@pytest.fixture
def requests(run: Run) -> Iterator[list[str]]:
    """Names of the operations that S3 is asked for."""
    seen: list[str] = []

    def note(model: object, **rest: object) -> None:
        seen.append(model.name)  # type: ignore[attr-defined]

    _s3().meta.events.register("before-call.s3", note)
    yield seen
    _s3().meta.events.unregister("before-call.s3", note)


@pytest.mark.parametrize("run", ["s3"], indirect=True)
def test_a_minute_of_training_is_six_small_requests_and_one_look_at_all(run: Run, requests: list[str]) -> None:
    run.session(1, 0)
    run.look()
    requests.clear()
    told = set()
    for second in range(1, 121):
        if second % 2 == 0:
            run.session(1, second)
        told.add(run.look()[1][0])
    asked = [name for name in requests if name != "PutObject"]
    assert (asked.count("GetObject"), asked.count("ListObjectsV2")) == (14, 2), asked
    assert sorted(told)[-3:] == [100, 110, 120]


@pytest.mark.parametrize("run", ["s3"], indirect=True)
def test_a_run_that_waits_for_its_nodes_costs_two_requests_in_ten_seconds(run: Run, requests: list[str]) -> None:
    for _ in range(60):
        run.look(Job(JobState.PENDING))
    assert len(requests) <= 12


def test_every_end_is_seen_in_time(run: Run) -> None:
    run.session(1, 3)
    assert run.look() == (False, [3])
    # The scheduler tells of it.
    run.session(1, 5)
    run.end()
    assert run.look(Job(JobState.FAILED)) == (True, [5])


def test_an_end_that_the_scheduler_does_not_tell_of_is_seen_too(run: Run) -> None:
    run.session(1, 3)
    run.look()
    run.session(1, 5, DONE)
    run.end()
    assert [run.look()[0] for _ in range(15)][-1]
    # An own error, whose session only falls silent.
    run.store.delete([OUTCOME])
    run.directories.forget("r1")
    run.session(1, 6)
    run.look()
    run.end()
    assert [run.look()[0] for _ in range(30)][-1]


def test_the_session_after_a_restart_is_seen_although_the_one_before_is_still_written(run: Run) -> None:
    run.session(1, 3)
    run.look()
    run.session(2, 4)
    for step in range(5, 70):
        run.session(1, step)
        found = run.look()[1]
        if len(found) == 2:
            break
    assert found[1] == 4
    assert step <= 66
    # Restarts of containers are news.
    run.session(3, 9)
    assert run.look(Job(JobState.RUNNING, crashes=1))[1][2] == 9
    # And so is another attempt.
    run.attempt = 2
    run.session(4, 10)
    assert run.look()[1][3] == 10


def test_the_first_session_of_an_attempt_is_not_waited_for(run: Run) -> None:
    run.look()
    run.session(1, 1)
    assert [run.look()[1] for _ in range(3)][-1] == [1]


class Counted:
    """A store, and how often it was asked for something."""

    def __init__(self, store: Store) -> None:
        self._store, self.requests = store, 0

    def __getattr__(self, name: str) -> object:
        self.requests += name not in ("put", "uri")
        return getattr(self._store, name)


def test_200_runs_cost_less_than_20_requests_a_second_and_each_is_seen_within_half_a_minute(tmp_path: Path) -> None:
    directories, runs, now = Directories(timedelta(seconds=10)), [], START
    for number in range(200):
        runs.append(run := Run(Counted(DirectoryStore(str(tmp_path / str(number))))))  # type: ignore[arg-type]
        run.directories = directories
        run.session(1, 0)
    seconds = 240
    for second in range(1, seconds + 1):
        now += timedelta(seconds=1)
        for number, run in enumerate(runs):
            run.now = now
            if (second + number) % 10 == 0:
                run.session(1, second)
            if (second + number) % 4 == 0:
                _, sessions = directories.read(f"r{number}", run.store, 1, RUNNING, now)
                assert second - sessions[-1].step <= 30 + 10
    asked = sum(run.store.requests for run in runs)  # type: ignore[attr-defined]
    assert asked / seconds < 20
