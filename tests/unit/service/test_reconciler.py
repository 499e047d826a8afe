"""What the reconciler promises, on SQLite and on PostgreSQL, whenever it is killed."""

import random
import socket
import threading
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import event, select, text, update

from service.db import Database
from service.errors import AlreadyEnded, NothingToRetry
from service.experiments import actions
from service.experiments import service as experiments
from service.launching.port import Job, JobState
from service.reconciler import repository
from service.reconciler.loop import Reconciler
from service.reconciler.outside import Outside
from service.runs import logs
from service.settings import Settings
from service.states import RunState
from service.tables import Experiment, Run
from service.telemetry import Telemetry
from service.tracking import Tracker
from tests.unit.service.bench import Bench, Killed, counting_statements
from trainer.contract.records import Speed
from trainer.store.objects import open_store


def finish_all(bench: Bench) -> None:
    """Trainers succeed as soon as they are started, until every run has ended."""

    def done() -> bool:
        for name in bench.cluster.live():
            bench.cluster.succeed(name)
        return all(run.settled for run in bench.runs())

    bench.go_until(done)


def test_every_run_is_trained_once_and_ends(bench: Bench, spec: dict[str, Any]) -> None:
    bench.submit(spec)
    finish_all(bench)
    assert bench.states() == {"succeeded": 4}
    assert sorted(bench.cluster.submissions.values()) == [1, 1, 1, 1]
    assert all(run.result and run.step == 10 and run.ended_at for run in bench.runs())


@pytest.mark.parametrize("point", ["before submit", "after submit", "before look", "after cancel"])
def test_a_service_killed_at_any_point_loses_no_run_and_starts_none_twice(
    bench: Bench, spec: dict[str, Any], point: str
) -> None:
    spec |= {"factors": {}, "seeds": 1}
    experiment = bench.submit(spec)
    if point == "after cancel":
        bench.go(3)
        actions.cancel(bench.db, experiment)
    when, what = point.split()
    setattr(bench.cluster, f"killed_{when}", what)
    with pytest.raises(Killed):
        bench.go(5)

    bench.start()
    bench.go(seconds=bench.settings.lease_seconds + 1)
    if point == "after cancel":
        bench.go(3)
        assert bench.states() == {"cancelled": 1}
    else:
        finish_all(bench)
        assert bench.states() == {"succeeded": 1}
    assert list(bench.cluster.submissions.values()) == [1]
    assert [attempt.number for attempt in bench.attempts()] == [1]


def test_while_a_lease_holds_nobody_else_touches_the_run(bench: Bench, spec: dict[str, Any]) -> None:
    bench.submit(spec | {"factors": {}, "seeds": 1})
    bench.go(1)
    bench.cluster.killed_before = "look"
    with pytest.raises(Killed):
        bench.go(2)
    [name] = bench.cluster.live()
    bench.cluster.succeed(name)
    bench.start()
    bench.go(3)
    assert bench.states() != {"succeeded": 1}
    bench.go(3, seconds=bench.settings.lease_seconds)
    assert bench.states() == {"succeeded": 1}


def test_a_stale_lease_writes_nothing(bench: Bench, spec: dict[str, Any]) -> None:
    bench.submit(spec | {"factors": {}, "seeds": 1})
    bench.go(1)
    now = bench.clock() + timedelta(minutes=1)
    with bench.db.write() as session:
        [lease] = repository.lease_runs(session, now, 60, 10)
    later = now + timedelta(minutes=2)
    with bench.db.write() as session:
        [other] = repository.lease_runs(session, later, 60, 10)
    with bench.db.write() as session:
        assert not repository.write_run(session, lease, {"state": RunState.FAILED}, None, later)
        assert repository.write_run(session, other, {"step": 7}, None, later)
    assert (bench.runs()[0].state, bench.runs()[0].step) != (RunState.FAILED, 0)


def test_two_services_share_the_work_and_start_nothing_twice(bench: Bench, spec: dict[str, Any]) -> None:
    bench.settings.max_concurrent_runs = 3
    bench.submit(spec | {"seeds": 6})
    outside = Outside(bench.settings, bench.cluster, None)
    other = Reconciler(bench.db, bench.settings, outside, Telemetry(), clock=bench.clock)

    def both() -> bool:
        ticks = [threading.Thread(target=service.tick) for service in (bench.reconciler, other)]
        for tick in ticks:
            tick.start()
        for tick in ticks:
            tick.join()
        other.drain()
        for name in bench.cluster.live():
            bench.cluster.succeed(name)
        return all(run.settled for run in bench.runs())

    bench.go_until(both)
    other.stop()
    assert bench.states() == {"succeeded": 12}
    assert set(bench.cluster.submissions.values()) == {1}
    assert bench.cluster.most_live <= 3


@pytest.mark.parametrize("concurrency", [1, 5, 54])
def test_54_runs_all_end_at_any_concurrency(bench: Bench, spec: dict[str, Any], concurrency: int) -> None:
    ratios = [round(0.3 + 0.03 * number, 2) for number in range(18)]
    bench.submit(spec | {"factors": {"mask_ratio": ratios}, "seeds": 3, "concurrency": concurrency})
    bench.settings.reconcile_threads = 60
    bench.start()
    finish_all(bench)
    assert bench.states() == {"succeeded": 54}
    assert set(bench.cluster.submissions.values()) == {1}
    assert bench.cluster.most_live <= concurrency


def test_of_a_thousand_queued_runs_only_those_with_a_place_are_asked_for(bench: Bench, spec: dict[str, Any]) -> None:
    bench.settings.max_concurrent_runs = 8
    ratios = [round(0.3 + 0.001 * number, 3) for number in range(500)]
    bench.submit(spec | {"factors": {"mask_ratio": ratios}, "seeds": 2})
    assert len(bench.runs()) == 1000
    for turn in range(1, 4):
        bench.go(2)
        assert (len(bench.cluster.live()), len(bench.cluster.submissions)) == (8, 8 * turn)
        before = bench.cluster.looks
        with counting_statements(bench.db.engine) as statements:
            bench.go(5)
        assert bench.cluster.looks - before <= 5 * 8
        assert len(statements) < 5 * 100
        for name in bench.cluster.live():
            bench.cluster.succeed(name)
        bench.go(1)
    assert bench.cluster.most_live == 8
    assert set(bench.cluster.submissions.values()) == {1}


def test_runs_of_long_ago_are_not_read_to_find_those_that_wait(bench: Bench, spec: dict[str, Any]) -> None:
    bench.submit(spec)
    finish_all(bench)
    with counting_statements(bench.db.engine) as statements:
        bench.go()
    asked = [each for each in statements if "FROM runs" in each and "admitted" in each]
    assert asked
    assert all("settled" in each for each in asked)
    if bench.db.is_sqlite:
        with bench.db.read() as session:
            found = session.execute(text("EXPLAIN QUERY PLAN SELECT id FROM runs WHERE settled = 0 AND admitted = 0"))
            assert "USING INDEX runs_due" in str(found.all())


def test_who_waits_is_found_by_indexes_among_thousands_that_have_ended(bench: Bench, spec: dict[str, Any]) -> None:
    bench.submit(spec)
    asked: list[tuple[str, Any]] = []

    def note(conn: object, cursor: object, statement: str, parameters: Any, *rest: object) -> None:
        asked.append((statement, parameters))

    event.listen(bench.db.engine, "before_cursor_execute", note)
    with bench.db.read() as session:
        assert repository.waiting(session)
        repository.training(session)
    event.remove(bench.db.engine, "before_cursor_execute", note)
    with bench.db.read() as session:
        if bench.db.is_sqlite:  # PostgreSQL goes by what it has counted, and here there is nothing to count
            for statement, parameters in asked:
                if statement.startswith("SELECT"):
                    plan = str(
                        session.connection().exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}", parameters).all()
                    )
                    assert "runs_of_pretraining" in plan, plan
                    assert "SCAN runs" not in plan, plan


def test_runs_of_which_nothing_is_new_are_given_back_in_one_statement(bench: Bench, spec: dict[str, Any]) -> None:
    bench.submit(spec)
    bench.go(3)
    for name in bench.cluster.live():
        bench.cluster.train(name, 5)
    bench.go(2)
    with counting_statements(bench.db.engine) as statements:
        bench.go()
    written = [each for each in statements if each.startswith("UPDATE runs")]
    assert len(bench.cluster.live()) > 1
    assert len(written) == 2, "one that takes leases, one that gives them back"
    with bench.db.read() as session:
        assert not session.scalars(select(Run).where(Run.lease_token.is_not(None))).all()


def test_who_wants_a_run_while_it_is_looked_at_is_not_put_off(bench: Bench, spec: dict[str, Any]) -> None:
    bench.submit(spec)
    bench.go(3)
    now = bench.clock() + timedelta(minutes=1)
    with bench.db.write() as session:
        mine, other, *_ = repository.lease_runs(session, now, 60, 8)
    sooner, later = now + timedelta(seconds=1), now + timedelta(hours=1)
    for write in (
        lambda session: repository.give_back(session, [(mine, later)]),
        lambda session: repository.write_run(session, other, {"next_check_at": later, "lease_token": None}, None, now),
    ):
        with bench.db.deciding() as session:
            repository.look_soon(session, [f"{mine.run.id}-1", f"{other.run.id}-1"], sooner)
        with bench.db.write() as session:
            write(session)
    with bench.db.read() as session:
        found = session.scalars(select(Run).where(Run.id.in_([mine.run.id, other.run.id]))).all()
    assert [(run.next_check_at, run.lease_token) for run in found] == [(sooner, None)] * 2


def test_a_look_that_finds_nothing_new_writes_none_of_the_runs_json(bench: Bench, spec: dict[str, Any]) -> None:
    bench.submit(spec | {"factors": {}, "seeds": 1})
    bench.go(3)
    bench.cluster.train(bench.cluster.live()[0], 5)
    bench.go(2)
    with counting_statements(bench.db.engine) as statements:
        bench.go()
    written = [each for each in statements if each.startswith("UPDATE runs SET")]
    assert written
    assert not any("sessions" in each or "losses" in each for each in written)
    bench.cluster.train(bench.cluster.live()[0], 6)
    bench.go()
    [run] = bench.runs()
    assert (run.step, run.sessions[-1]["step"]) == (6, 6)


def test_a_run_of_which_nothing_is_new_is_nobodys_until_its_turn(bench: Bench, spec: dict[str, Any]) -> None:
    """A service that dies between two ticks would keep the others from it for the length of a lease."""
    bench.submit(spec | {"factors": {}, "seeds": 1})
    bench.go(3)
    bench.cluster.train(bench.cluster.live()[0], 5)
    bench.go(2)
    bench.clock.now += timedelta(seconds=30)
    bench.settings.tick_seconds = 60
    looks, loop = bench.cluster.looks, threading.Thread(target=bench.reconciler._loop)
    loop.start()
    try:
        deadline = time.monotonic() + 30
        while bench.cluster.looks == looks or bench.runs()[0].lease_token is not None:
            assert time.monotonic() < deadline
            time.sleep(0.05)
    finally:
        bench.reconciler._stopping.set()
        bench.reconciler._woken.set()
        loop.join()


def test_a_run_says_for_which_nodes_it_waits_as_long_as_it_does(bench: Bench, spec: dict[str, Any]) -> None:
    bench.submit(spec | {"factors": {}, "seeds": 1})
    bench.go(3)
    [name] = bench.cluster.live()
    told = "2 more nodes wait: in the queue: insufficient unused quota"
    for says, known in (told, told), ("", ""), (told, told):
        bench.cluster.says[name] = Job(nodes_wait=says)
        bench.cluster.train(name, 5)
        bench.go(2)
        assert [run.nodes_wait for run in bench.runs()] == [known]
    bench.cluster.says.clear()
    bench.cluster.jobs[name] = JobState.LOST
    bench.go()
    assert [run.nodes_wait for run in bench.runs()] == [""]


def test_higher_priority_goes_first_and_who_waits_is_told_for_what(bench: Bench, spec: dict[str, Any]) -> None:
    bench.settings.max_concurrent_runs = 1
    low = bench.submit(spec | {"name": "low", "seeds": 1})
    high = bench.submit(spec | {"name": "high", "seeds": 1, "share": False, "placement": {"priority": 5}})
    bench.go(3)
    [first] = [run for run in bench.runs() if run.admitted]
    assert first.home_id == high
    assert low != high
    waiting = {run.waiting_reason for run in bench.runs() if not run.admitted}
    assert waiting == {"all 1 places are taken (MCF_MAX_CONCURRENT_RUNS)"}


def test_the_concurrency_of_an_experiment_holds_and_is_said(bench: Bench, spec: dict[str, Any]) -> None:
    bench.submit(spec | {"concurrency": 1})
    bench.go(4)
    assert len(bench.cluster.live()) == 1
    waiting = {run.waiting_reason for run in bench.runs() if not run.admitted}
    assert waiting == {"1 of at most 1 runs of bench are in flight (its concurrency)"}


def test_the_queue_is_looked_through_when_it_has_changed_and_now_and_then(bench: Bench, spec: dict[str, Any]) -> None:
    bench.submit(spec | {"concurrency": 1})
    bench.go(2)

    def looked(ticks: int, seconds: float) -> int:
        with counting_statements(bench.db.engine) as statements:
            bench.go(ticks, seconds)
        return sum("ORDER BY experiments.priority" in text for text in statements)

    bench.go(1, seconds=6)
    assert looked(4, seconds=0.5) == 0
    # Another replica knew of a place and died.
    assert looked(1, seconds=6) == 1
    # A place becomes free.
    [name] = bench.cluster.live()
    bench.cluster.succeed(name)
    assert looked(3, seconds=1) >= 1
    assert len(bench.cluster.live()) == 1


def test_an_attempt_that_dies_is_followed_by_the_next_after_a_pause(bench: Bench, spec: dict[str, Any]) -> None:
    bench.submit(spec | {"factors": {}, "seeds": 1})
    bench.go(2)
    [name] = bench.cluster.live()
    bench.cluster.train(name, 4)
    bench.go(1)
    assert bench.states() == {"running": 1}
    bench.cluster.end(name)
    bench.go(1)
    [run] = bench.runs()
    assert run.state is RunState.INTERRUPTED
    assert "the next one starts in 1 s" in run.waiting_reason
    finish_all(bench)
    assert [attempt.state.value for attempt in bench.attempts()] == ["failed", "succeeded"]
    [run] = bench.runs()
    assert (run.restarts, run.world_sizes) == (1, [2, 2])
    assert run.process_seconds == pytest.approx(2 * 2 * 1800)


def test_each_session_counts_in_a_runs_speed_for_as_long_as_it_trained(bench: Bench, spec: dict[str, Any]) -> None:
    bench.submit(spec | {"factors": {}, "seeds": 1})
    bench.go(2)
    [name] = bench.cluster.live()
    slow = Speed(images=100, seconds=10.0, waiting_seconds=4.0, compile_seconds=30.0, peak_share=0.1)
    bench.cluster.train(name, 4, speed=slow, world_size=2)
    bench.cluster.end(name)
    bench.go_until(lambda: bench.cluster.live() not in ([], [name]))
    [name] = bench.cluster.live()
    # One that has just begun, and one on a card that nobody knows, say nothing of the share of the peak.
    for speed in Speed(), Speed(images=900, seconds=30.0, compile_seconds=1.0):
        bench.cluster.train(name, 5, speed=speed, world_size=8)
        bench.go(2)
        assert bench.runs()[0].peak_share == 0.1
    [run] = bench.runs()
    assert (run.mean_images_per_second, run.waiting_share, run.compile_seconds) == (25.0, 0.1, 31.0)
    fast = Speed(images=900, seconds=30.0, compile_seconds=1.0, peak_share=0.5)
    bench.cluster.train(name, 6, speed=fast, world_size=8)
    bench.go(2)
    # 20 seconds of a GPU at 0.1, 240 at 0.5.
    assert bench.runs()[0].peak_share == pytest.approx((20 * 0.1 + 240 * 0.5) / 260)


def test_a_run_that_never_gets_anywhere_fails_with_its_last_words(bench: Bench, spec: dict[str, Any]) -> None:
    bench.submit(spec | {"factors": {}, "seeds": 1})

    def ended() -> bool:
        for name in bench.cluster.live():
            bench.cluster.end(name)
        return bench.runs()[0].settled

    bench.go_until(ended)
    [run] = bench.runs()
    assert (run.state, run.kind) == (RunState.FAILED, "Infrastructure")
    assert "what was printed last" in run.reason
    assert len(bench.attempts()) == 3


def test_equal_runs_are_trained_once_and_an_experiment_may_refuse_to_share(bench: Bench, spec: dict[str, Any]) -> None:
    bench.submit(spec)
    finish_all(bench)
    bench.submit(spec | {"name": "again"})
    bench.go(2)
    assert len(bench.runs()) == 4
    bench.submit(spec | {"name": "own", "share": False})
    finish_all(bench)
    assert len(bench.runs()) == 8
    assert set(bench.cluster.submissions.values()) == {1}


def test_cancelling_leaves_alone_what_another_experiment_wants(bench: Bench, spec: dict[str, Any]) -> None:
    first = bench.submit(spec)
    second = bench.submit(spec | {"name": "other", "factors": {"mask_ratio": [0.75]}})
    bench.go(3)
    actions.cancel(bench.db, first)
    bench.go(3)
    assert bench.states() == {"starting": 2, "cancelled": 2}
    assert {run.home_id for run in bench.runs() if not run.state.is_final} == {second}
    actions.cancel(bench.db, first)  # again: harmless
    finish_all(bench)
    assert bench.states() == {"succeeded": 2, "cancelled": 2}
    with pytest.raises(AlreadyEnded, match="succeeded"):
        actions.cancel(bench.db, second)


def test_a_cancelled_run_comes_back_when_another_experiment_asks_for_it(bench: Bench, spec: dict[str, Any]) -> None:
    first = bench.submit(spec)
    bench.go(3)
    actions.cancel(bench.db, first)
    bench.submit(spec | {"name": "second"})  # while it is being stopped
    bench.go(5)
    third = bench.submit(spec | {"name": "third"})
    finish_all(bench)
    assert bench.states() == {"succeeded": 4}
    assert third


def test_retry_acts_on_failed_runs_only_and_forgets_their_outcome(bench: Bench, spec: dict[str, Any]) -> None:
    experiment = bench.submit(spec | {"seeds": 1})
    bench.go(3)
    good, bad = bench.cluster.live()
    bench.cluster.succeed(good)
    bench.cluster.fail(bad)
    bench.go(3)
    assert bench.states() == {"succeeded": 1, "failed": 1}
    [failed] = [run for run in bench.runs() if run.state is RunState.FAILED]
    assert failed.reason == "the loss is not finite"

    actions.retry(bench.db, bench.settings, experiment)
    assert not open_store(bench.settings.run_uri(failed.id)).list("outcome.json")
    finish_all(bench)
    assert bench.states() == {"succeeded": 2}
    assert [attempt.name for attempt in bench.attempts() if attempt.run_id == failed.id] == [
        f"{failed.id}-1",
        f"{failed.id}-2",
    ]
    with pytest.raises(NothingToRetry, match="2 succeeded"):
        actions.retry(bench.db, bench.settings, experiment)


def test_the_cap_on_gpu_hours_cancels_what_is_left_with_that_reason(bench: Bench, spec: dict[str, Any]) -> None:
    experiment = bench.submit(spec | {"gpu_hours": 1.5, "concurrency": 1})
    bench.go(3)
    bench.cluster.succeed(bench.cluster.live()[0])  # one process-hour
    bench.go(3)
    bench.cluster.train(bench.cluster.live()[0], 5)  # another
    bench.go(6)
    assert bench.states() == {"succeeded": 1, "cancelled": 3}
    reasons = {run.reason for run in bench.runs() if run.state is RunState.CANCELLED}
    assert reasons == {"the cap of 1.5 GPU-hours is reached (2 used)"}
    assert bench.audit() == [
        {
            "name": "cap of GPU-hours", "token_id": "", "project": "default", "action": "experiments.cancel",
            "object": experiment, "asked": reasons.pop(), "address": "", "status": 200,
        }
    ]  # fmt: skip
    assert experiments.show(bench.db, bench.settings, experiment).state == "cancelled"


def test_a_cap_counts_the_hours_of_its_own_experiment_alone(bench: Bench, spec: dict[str, Any]) -> None:
    capped = spec | {"gpu_hours": 1.5, "seeds": 1}
    first = bench.submit(capped)
    bench.go(3)
    for name in bench.cluster.live():
        bench.cluster.train(name, 5)  # a process-hour each
    bench.go(6)
    assert bench.states() == {"cancelled": 2}
    again = bench.submit(capped | {"name": "again"})
    bench.go(4)
    # Cancelled in its turn, and the third goes on with what runs: neither pays for the two hours before.
    third = bench.submit(capped | {"name": "third"})
    bench.go(2)
    actions.cancel(bench.db, again)
    finish_all(bench)
    assert bench.states() == {"succeeded": 2}
    shown = {name: experiments.show(bench.db, bench.settings, name) for name in (first, again, third)}
    assert shown[first].gpu_hours == pytest.approx(2.0)
    assert sum(found.gpu_hours for found in shown.values()) == pytest.approx(
        sum(run.process_seconds for run in bench.runs()) / 3600
    )
    assert shown[third].state == "succeeded"


def test_a_run_goes_to_the_oldest_experiment_that_still_wants_it(bench: Bench, spec: dict[str, Any]) -> None:
    first, *others = (bench.submit(spec | {"name": f"e{number}"}) for number in range(8))
    bench.go(2)
    actions.cancel(bench.db, first)
    assert {run.home_id for run in bench.runs()} == {others[0]}


def test_an_attempt_that_lives_after_its_end_was_written_is_stopped(bench: Bench, spec: dict[str, Any]) -> None:
    bench.submit(spec | {"factors": {}, "seeds": 1})
    finish_all(bench)
    [name] = bench.cluster.jobs
    bench.cluster.jobs[name] = JobState.RUNNING  # a service that slept through its lease submits it now
    bench.go(8)
    assert bench.cluster.live() == []


def test_a_store_that_does_not_answer_holds_runs_up_and_fails_none(
    bench: Bench, spec: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.submit(spec | {"factors": {}, "seeds": 1})
    bench.go(2)
    folder = Path(bench.settings.run_uri(bench.runs()[0].id))
    (folder / "outcome.json").mkdir()  # reading it fails as on a broken disk
    bench.go(2)
    [run] = bench.runs()
    assert "outcome.json" in run.waiting_reason
    assert not run.state.is_final
    (folder / "outcome.json").rmdir()
    bench.go(3)
    finish_all(bench)
    assert bench.states() == {"succeeded": 1}


def test_mlflow_away_holds_runs_up_with_that_reason_and_fails_none(
    database: Database, settings: Settings, spec: dict[str, Any]
) -> None:
    bench = Bench(database, settings, Tracker("http://127.0.0.1:9", timeout_seconds=1))
    bench.submit(spec)
    bench.go(8)
    assert bench.states() == {"queued": 4}
    assert all("MLflow at http://127.0.0.1:9 does not answer" in run.waiting_reason for run in bench.runs())
    assert not bench.cluster.jobs
    bench.reconciler.stop()


def test_an_mlflow_that_accepts_and_never_answers_holds_a_look_up_by_its_timeout_once(
    settings: Settings, spec: dict[str, Any], tmp_path: Path
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        tracker = Tracker(f"http://127.0.0.1:{silent.getsockname()[1]}", timeout_seconds=1)
        db = Database(f"sqlite:///{tmp_path}/silent.db")
        db.migrate()
        bench = Bench(db, settings, tracker)
        bench.submit(spec)
        with db.write() as session:
            session.execute(update(Experiment).values(tracking_id="1", tracking_run_id="2"))
        began = time.monotonic()
        bench.go(4)
        assert time.monotonic() - began < 3
        assert all("does not answer" in run.waiting_reason for run in bench.runs())
        bench.reconciler.stop()
        db.engine.dispose()


@pytest.mark.parametrize("seed", range(3))
def test_random_days_end_well(bench: Bench, spec: dict[str, Any], seed: int) -> None:
    """Kills, deaths, cancels and new requests in any order: at most one live attempt a run, and all of them end."""
    rng = random.Random(seed)
    wanted = [bench.submit(spec | {"concurrency": 3})]
    for _ in range(60):
        happening = rng.random()
        live = bench.cluster.live()
        if happening < 0.2:
            point = rng.choice(["killed_before", "killed_after"])
            setattr(bench.cluster, point, rng.choice(["submit", "look", "cancel"]))
        elif happening < 0.4 and live:
            bench.cluster.train(rng.choice(live), rng.randrange(10))
        elif happening < 0.6 and live:
            bench.cluster.end(rng.choice(live), rng.choice([JobState.FAILED, JobState.CANCELLED]))
        elif happening < 0.65:
            wanted.append(bench.submit(spec | {"name": f"n{len(wanted)}"}))
        elif happening < 0.68:
            try:
                actions.cancel(bench.db, rng.choice(wanted))
            except AlreadyEnded:
                continue
        try:
            bench.go(seconds=rng.choice([1, 5, 70]))
        except Killed:
            bench.start()
        runs = [name.rpartition("-")[0] for name in bench.cluster.live()]
        assert len(runs) == len(set(runs))
    bench.cluster.killed_before = bench.cluster.killed_after = ""
    bench.submit(spec | {"name": "last"})
    bench.go(seconds=100)
    finish_all(bench)
    assert set(bench.states()) <= {"succeeded", "failed"}
    assert set(bench.cluster.submissions.values()) == {1}


def test_who_has_news_is_looked_at_at_once_and_the_others_in_their_turn(bench: Bench, spec: dict[str, Any]) -> None:
    bench.settings.observe_seconds = 1000
    bench.submit(spec | {"factors": {}})
    bench.go(3)
    first, second = bench.cluster.live()
    bench.cluster.succeed(first)
    bench.cluster.succeed(second)
    bench.go(3)
    assert bench.states() == {"starting": 2}
    bench.reconciler.hear(first)
    bench.go(1)
    assert bench.states() == {"starting": 1, "succeeded": 1}


def test_what_was_printed_last_is_kept_for_when_the_pods_are_gone(
    bench: Bench, spec: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.submit(spec | {"factors": {}, "seeds": 1})
    bench.go(2)
    [name] = bench.cluster.live()
    bench.cluster.fail(name)
    bench.go(2)
    monkeypatch.setattr(bench.cluster, "lines", lambda *_, **__: iter(()))
    [run] = bench.runs()
    told = "".join(logs.text(bench.db, bench.cluster, run.id, None))
    assert told.splitlines()[1:] == ["(the pods are gone; these are the last lines of each:)", "what was printed last"]
