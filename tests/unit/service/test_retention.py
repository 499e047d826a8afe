"""What is deleted goes whole, and can be taken back for a while; what others use stays, whoever is killed."""

import time
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select, text, update

from service import projects
from service.db import Database
from service.errors import Deleted, InvalidSpec, NotDeletable, NotFound, TooManyQueued
from service.experiments import actions
from service.experiments import service as experiments
from service.experiments.extend import Extension, extend
from service.reconciler import cleaning
from service.reconciler.cleaning import CLEAN_SECONDS
from service.retention import service
from service.schemas.experiments import Changes
from service.schemas.retention import Deletion, ProjectChanges
from service.settings import Settings
from service.states import RunState
from service.tables import Arm, Doomed, Experiment, Run, Trial
from tests.unit.service.bench import Bench, Board, Killed
from tests.unit.service.test_reconciler import finish_all
from trainer.contract.records import COMMITTED, STATE, Checkpoint, checkpoint_name
from trainer.resolve import check_and_resolve
from trainer.store.objects import DirectoryStore, open_store
from trainer.weights.sources import FILES_ONLY


class Shredder(Board):
    """An MLflow that remembers what was deleted."""

    def __init__(self) -> None:
        super().__init__()
        self.deleted: set[str] = set()

    def delete(self, run_id: str, *, copies: bool = False) -> None:
        self.deleted.add(run_id)


@pytest.fixture
def bench(database: Database, settings: Settings) -> Iterator[Bench]:
    made = Bench(database, settings, Shredder())
    yield made
    made.reconciler.stop()


def delete(bench: Bench, experiment: str, **options: Any) -> Deletion:
    wanted = {"objects": True, "tracking": False} | options
    return service.delete(bench.db, bench.settings, experiment, "ann", **wanted)


def clean(bench: Bench, days: float = 0.0, times: int = 2) -> None:
    """Time passes, and the reconciler cleans."""
    for _ in range(times):
        bench.go(seconds=CLEAN_SECONDS + 1 + days * 86400 / times)


def directories(bench: Bench) -> set[str]:
    return {path.name for path in Path(bench.settings.store_uri, "runs").iterdir()}


def ids(bench: Bench) -> set[str]:
    return {run.id for run in bench.runs()}


def ended(bench: Bench, spec: dict[str, Any]) -> str:
    experiment = bench.submit(spec)
    finish_all(bench)
    bench.go(3)
    return experiment


# ---------------------------------------------------------------- deletion


def test_what_others_share_stays_and_the_rest_goes_when_its_time_is_over(bench: Bench, spec: dict[str, Any]) -> None:
    first = ended(bench, spec)
    second = ended(bench, spec | {"name": "other", "factors": {"mask_ratio": [0.75]}})
    shared = {run.id for run in bench.runs() if run.spec["mask_ratio"] == 0.75}
    only_first = ids(bench) - shared
    dry = service.plan(bench.db, bench.settings, first, objects=True, tracking=False)
    assert (set(dry.removed_runs), {run.run_id for run in dry.kept_runs}) == (only_first, shared)
    assert dry.kept_runs[0].because == f"used by {second}"
    assert dry.bytes == sum(
        entry.size for run in only_first for entry in open_store(bench.settings.run_uri(run)).list()
    )
    hours = experiments.show(bench.db, bench.settings, second).gpu_hours

    assert delete(bench, first).removed_runs == dry.removed_runs
    clean(bench, days=6.9)
    assert directories(bench) == shared | only_first, "nothing goes before its time"
    clean(bench, days=0.2)
    assert directories(bench) == shared == ids(bench)
    with pytest.raises(NotFound):
        experiments.show(bench.db, bench.settings, first)
    shown = experiments.show(bench.db, bench.settings, second)
    assert (shown.state, shown.counts, shown.gpu_hours) == ("succeeded", {RunState.SUCCEEDED: 2}, hours)
    assert {run.home_id for run in bench.runs()} == {second}
    with bench.db.read() as session:
        assert not session.scalars(select(Doomed)).all()
        assert set(session.scalars(select(Arm.experiment_id))) == {second}
        assert set(session.scalars(select(Trial.experiment_id))) == {second}
    delete(bench, second, undo_days=0)
    clean(bench)
    assert directories(bench) == ids(bench) == set()


def test_what_only_deleted_experiments_share_is_announced_with_what_it_frees(
    bench: Bench, spec: dict[str, Any]
) -> None:
    first = ended(bench, spec)
    second = ended(bench, spec | {"name": "other", "factors": {"mask_ratio": [0.75]}})
    third = ended(bench, spec | {"name": "live", "factors": {"mask_ratio": [0.9]}})
    everything = ids(bench)
    shared = {run.id for run in bench.runs() if run.spec["mask_ratio"] == 0.75}

    def own(experiment: str) -> int:
        [found] = [
            item
            for item in service.check_store(bench.db, bench.settings).experiments
            if item.experiment_id == experiment
        ]
        return found.own_bytes

    def size(runs: set[str]) -> int:
        return sum(entry.size for run in runs for entry in open_store(bench.settings.run_uri(run)).list())

    before = service.plan(bench.db, bench.settings, second, objects=True, tracking=False)
    assert (before.removed_runs, before.later_runs, before.later_bytes, own(second)) == ([], [], 0, 0)
    told = delete(bench, first)
    assert (told.later_runs, told.bytes) == ([], size(set(told.removed_runs)))
    dry = service.plan(bench.db, bench.settings, second, objects=True, tracking=False)
    assert (dry.removed_runs, set(dry.later_runs), dry.later_bytes) == ([], shared, size(shared))
    assert {run.because for run in dry.kept_runs} == {f"used by {first} (deleted)"}
    assert own(second) == size(shared)
    told = delete(bench, second)
    service.restore(bench.db, first)
    clean(bench, days=8)
    assert ids(bench) == directories(bench) == everything, "what was restored keeps them"

    last = delete(bench, first)
    assert not last.later_runs
    clean(bench, days=8)
    live = everything - set(last.removed_runs)
    assert ids(bench) == directories(bench) == live
    assert {run.run_id for run in last.kept_runs} <= live
    assert third in {run.home_id for run in bench.runs()}


def test_what_several_free_together_counts_their_common_runs_once_and_goes_with_the_last(
    bench: Bench, spec: dict[str, Any]
) -> None:
    first, second = ended(bench, spec), ended(bench, spec | {"name": "again", "seeds": 3})
    third = ended(bench, spec | {"name": "third", "factors": {"mask_ratio": [0.75]}, "seeds": 1})
    kept = {run.id for run in bench.runs() if run.spec["mask_ratio"] == 0.75 and run.spec["seed"] == 0}
    for one in first, second:
        alone = service.plan(bench.db, bench.settings, one, objects=True, tracking=False)
        assert len(alone.removed_runs) in (0, 2), "what they share stays while one of them does"
    found = service.plan_together(bench.db, bench.settings, [first, second, first])
    assert [item.name for item in found.experiments] == ["bench", "again"]
    assert set(found.removed_runs) == ids(bench) - kept
    assert [(run.run_id, run.because) for run in found.kept_runs] == [(*kept, f"used by {third}")]
    stored = {run: open_store(bench.settings.run_uri(run)).list() for run in found.removed_runs}
    assert found.bytes == sum(entry.size for entries in stored.values() for entry in entries) > 0

    going = bench.submit(spec | {"name": "going", "factors": {"mask_ratio": [0.9]}})
    with pytest.raises(NotDeletable, match=going):
        service.delete_together(bench.db, bench.settings, [first, going], "ann", objects=True, tracking=False)
    assert experiments.show(bench.db, bench.settings, first).deleted_at is None, "all or none"
    finish_all(bench)
    others = ids(bench) - kept - set(found.removed_runs)
    done = service.delete_together(bench.db, bench.settings, [first, second], "ann", objects=True, tracking=False)
    assert done == found
    clean(bench, days=8)
    assert directories(bench) == ids(bench) == kept | others


def test_a_deletion_is_taken_back_and_meanwhile_nothing_is_done_to_it(bench: Bench, spec: dict[str, Any]) -> None:
    experiment = ended(bench, spec)
    before = experiments.show(bench.db, bench.settings, experiment)
    service.restore(bench.db, experiment)
    assert experiments.show(bench.db, bench.settings, experiment) == before, "it is not deleted: nothing is done"
    delete(bench, experiment)
    for act in (
        lambda: actions.retry(bench.db, bench.settings, experiment),
        lambda: extend(bench.db, experiment, Extension(seeds=3), FILES_ONLY, None),
    ):
        with pytest.raises(Deleted, match="mcf restore"):
            act()
    service.restore(bench.db, experiment)
    clean(bench, days=30)
    assert experiments.show(bench.db, bench.settings, experiment) == before
    assert directories(bench) == ids(bench)


def test_what_runs_is_not_deleted(bench: Bench, spec: dict[str, Any]) -> None:
    experiment = bench.submit(spec)
    bench.go(3)
    with pytest.raises(NotDeletable, match="mcf cancel"):
        delete(bench, experiment)
    actions.cancel(bench.db, experiment)
    with pytest.raises(NotDeletable, match="still ending"):
        delete(bench, experiment)
    bench.go(6)
    delete(bench, experiment)


def test_equal_runs_that_are_asked_for_again_are_saved_or_trained_anew(bench: Bench, spec: dict[str, Any]) -> None:
    first = ended(bench, spec)
    delete(bench, first)
    again = bench.submit(spec | {"name": "again"})
    clean(bench, days=8)
    assert bench.states() == {"succeeded": 4}, "whoever asks in time shares them"
    assert set(bench.cluster.submissions.values()) == {1}
    old = ids(bench)
    delete(bench, again, undo_days=0)
    bench.clock.now += timedelta(seconds=1)
    bench.reconciler._cleaner._purge()  # killed between the two
    third = bench.submit(spec | {"name": "third"})
    assert not ids(bench) & old, "no run gets a directory that is being removed"
    clean(bench)
    finish_all(bench)
    assert experiments.show(bench.db, bench.settings, third).state == "succeeded"
    assert directories(bench) == ids(bench)
    assert {len(id) for id in ids(bench)} == {16}


def test_a_run_that_another_one_builds_on_stays(bench: Bench, spec: dict[str, Any]) -> None:
    first = ended(bench, spec | {"factors": {}, "seeds": 1})
    [base] = ids(bench)
    second = ended(bench, spec | {"name": "second", "factors": {"mask_ratio": [0.6]}, "seeds": 1})
    third = ended(bench, spec | {"name": "third", "factors": {"mask_ratio": [0.3]}, "seeds": 1})
    measures, taught = [run for run in bench.runs() if run.id != base]
    with bench.db.write() as session:
        session.execute(update(Run).where(Run.id == measures.id).values(weights_of=base))
        address = f"{bench.settings.run_uri(measures.id)}/export"
        spec_of = {**taught.spec, "teacher": {"source": address}}
        session.execute(update(Run).where(Run.id == taught.id).values(spec=spec_of))
    for experiment in first, second:
        assert delete(bench, experiment, undo_days=0).removed_runs == []
    clean(bench)
    assert directories(bench) == {base, measures.id, taught.id}
    delete(bench, third, undo_days=0)
    clean(bench)
    assert directories(bench) == ids(bench) == set(), "and goes when nothing builds on it any more"


@pytest.mark.parametrize("after", range(4))
def test_whoever_is_killed_while_it_removes_has_removed_all_when_it_is_back(
    bench: Bench, spec: dict[str, Any], monkeypatch: pytest.MonkeyPatch, after: int
) -> None:
    experiment = ended(bench, spec)
    delete(bench, experiment, undo_days=0, tracking=True)
    left = [after]

    def dies(store: DirectoryStore, first: str = "") -> None:
        if left[0] == 0:
            # Half of it is gone.
            store.delete([first])
            raise Killed("removing")
        left[0] -= 1
        original(store, first)

    original = DirectoryStore.remove
    monkeypatch.setattr(DirectoryStore, "remove", dies)
    bench.clock.now += timedelta(seconds=1)
    with pytest.raises(Killed):
        bench.reconciler._cleaner.clean()
    monkeypatch.setattr(DirectoryStore, "remove", original)
    assert directories(bench)
    bench.start()
    clean(bench, times=1)
    assert directories(bench), "another service may still be at it"
    bench.go(seconds=cleaning.LEASE.total_seconds() + 1)
    clean(bench)
    assert directories(bench) == ids(bench) == set()
    tracker = bench.tracker
    assert isinstance(tracker, Shredder)
    assert len(tracker.deleted) == 5, "four runs and the experiment's own"


def test_a_removal_that_takes_long_keeps_its_lease(
    bench: Bench, spec: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    delete(bench, ended(bench, spec), undo_days=0)
    monkeypatch.setattr(cleaning, "RENEW_SECONDS", 0.02)
    taken: list[str] = []

    def expires() -> datetime:
        with bench.db.read() as session:
            return max(found for found in session.scalars(select(Doomed.lease_expires_at)) if found)

    def slow(store: DirectoryStore, first: str = "") -> None:
        for _ in range(3):
            bench.clock.now += cleaning.LEASE * 0.7
            until = time.monotonic() + 10
            while expires() < bench.clock.now + cleaning.LEASE:
                assert time.monotonic() < until
                time.sleep(0.01)
            with bench.db.read() as session:
                taken.extend(session.scalars(select(Doomed.run_id).where(Doomed.lease_expires_at <= bench.clock.now)))
        original(store, first)

    original = DirectoryStore.remove
    monkeypatch.setattr(DirectoryStore, "remove", slow)
    bench.clock.now += timedelta(seconds=1)
    bench.reconciler._cleaner.clean()
    assert taken == [], "another service would remove it, too"
    assert directories(bench) == set()


def test_what_is_kept_as_asked_is_kept(bench: Bench, spec: dict[str, Any]) -> None:
    experiment = ended(bench, spec)
    before = directories(bench)
    delete(bench, experiment, undo_days=0, objects=False)
    clean(bench)
    assert ids(bench) == set()
    assert directories(bench) == before
    found = service.check_store(bench.db, bench.settings)
    assert {thing.name for thing in found.orphans} == {f"runs/{id}" for id in before}
    # What is there is believed: a run that is asked for again has its result at once.
    again = ended(bench, spec | {"name": "again"})
    assert experiments.show(bench.db, bench.settings, again).state == "succeeded"
    assert not service.check_store(bench.db, bench.settings).orphans


# ---------------------------------------------------------------- rules


def test_experiments_of_a_project_go_by_its_rule_and_others_stay(bench: Bench, spec: dict[str, Any]) -> None:
    other = ended(bench, spec | {"factors": {"mask_ratio": [0.3]}})
    projects.change(bench.db, "faces", ProjectChanges(delete_after_days=30))
    resolved = check_and_resolve(spec)
    aged = experiments.submit(bench.db, resolved, None, "d", project="faces")
    finish_all(bench)
    clean(bench, days=29)
    assert experiments.show(bench.db, bench.settings, aged).deleted_at is None
    clean(bench, days=2)
    shown = experiments.show(bench.db, bench.settings, aged)
    assert shown.deleted_at
    assert "rule of project faces" in bench.experiment(aged).delete_reason
    by_rule = {
        "name": "rule of project faces", "token_id": "", "project": "faces", "action": "experiments.delete",
        "object": aged, "asked": "delete_after_days=30", "address": "", "status": 200,
    }  # fmt: skip
    assert bench.audit() == [by_rule]
    service.restore(bench.db, aged)
    with bench.db.write() as session:  # by the clock of the test
        session.execute(update(Experiment).where(Experiment.id == aged).values(restored_at=bench.clock.now))
    clean(bench, days=20)
    assert experiments.show(bench.db, bench.settings, aged).deleted_at is None, "the rule counts from then on"
    clean(bench, days=11)
    clean(bench, days=8)
    with bench.db.read() as session:
        left = set(session.scalars(select(Experiment.id).where(Experiment.purged_at.is_(None))))
    assert left == {other}
    assert len(directories(bench)) == 2
    assert bench.audit("faces") == [by_rule, by_rule], "once each time"
    assert bench.audit("default") == []


def test_no_rule_deletes_what_the_audit_cannot_tell_of(bench: Bench, spec: dict[str, Any]) -> None:
    name = "a" * 63  # as long as may be
    projects.change(bench.db, name, ProjectChanges(delete_after_days=30))
    aged = experiments.submit(bench.db, check_and_resolve(spec), None, "d", project=name)
    finish_all(bench)
    with bench.db.write() as session:
        session.execute(text("ALTER TABLE audit RENAME TO gone"))
    clean(bench, days=31)
    assert bench.experiment(aged).deleted_at is None
    with bench.db.write() as session:
        session.execute(text("ALTER TABLE gone RENAME TO audit"))
    clean(bench)
    assert bench.experiment(aged).deleted_at
    [entry] = bench.audit(name)
    assert entry["object"] == aged


def test_an_entry_of_the_audit_goes_with_the_deletion_that_was_not_made(
    bench: Bench, spec: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    projects.change(bench.db, "default", ProjectChanges(delete_after_days=30))
    first, second = ended(bench, spec), ended(bench, spec | {"name": "other", "seeds": [8, 9]})
    real, marked = cleaning.mark, list[str]()

    def dies(experiment: Experiment, *rest: Any) -> None:
        if marked:
            raise Killed("between two of them")
        marked.append(experiment.id)
        real(experiment, *rest)

    monkeypatch.setattr(cleaning, "mark", dies)
    with pytest.raises(Killed):
        clean(bench, days=31)
    assert bench.audit() == []
    assert not any(bench.experiment(id).deleted_at for id in (first, second))
    monkeypatch.setattr(cleaning, "mark", real)
    bench.start()
    clean(bench)
    assert {entry["object"] for entry in bench.audit()} == {first, second}


def checkpoint(bench: Bench, run: str, step: int) -> None:
    store = open_store(bench.settings.run_uri(run))
    marker = Checkpoint(
        step=step, sha256="0" * 64, bytes=3, spec_digest="d", world_size=1, saved_at=bench.clock.now
    )  # fmt: skip
    store.put(checkpoint_name(step) + STATE, b"abc")
    store.put(checkpoint_name(step) + COMMITTED, marker.model_dump_json().encode())


def checkpoints(bench: Bench, run: str) -> set[str]:
    return {entry.name.split("/")[1] for entry in open_store(bench.settings.run_uri(run)).list("checkpoints/")}


def test_of_a_run_that_has_succeeded_the_last_checkpoints_stay(bench: Bench, spec: dict[str, Any]) -> None:
    bench.submit(spec | {"factors": {}})
    bench.go(3)
    good, bad = bench.cluster.live()
    runs = [name.rpartition("-")[0] for name in (good, bad)]
    for run in runs:
        for step in 2, 4, 6:
            checkpoint(bench, run, step)
    bench.cluster.succeed(good)
    bench.cluster.fail(bad)
    bench.go(4)
    projects.change(bench.db, "default", ProjectChanges(keep_checkpoints=2))
    clean(bench)
    assert checkpoints(bench, runs[0]) == {"000000004", "000000006"}
    assert len(checkpoints(bench, runs[1])) == 3, "a retry may need what stands before the last"
    projects.change(bench.db, "default", ProjectChanges(keep_checkpoints=None))
    clean(bench)
    assert checkpoints(bench, runs[0]) == {"000000006"}


# ---------------------------------------------------------------- what the store holds


def test_the_store_is_checked_and_nothing_that_is_not_ours_is_touched(bench: Bench, spec: dict[str, Any]) -> None:
    first = ended(bench, spec)
    second = ended(bench, spec | {"name": "other", "factors": {"mask_ratio": [0.75, 0.6]}})
    store = open_store(bench.settings.store_uri)
    store.put("runs/r0123456789ab/spec.json", b"another service's")
    store.put("runs/notes.txt", b"a person's")
    store.put("mlflow/1/model.bin", b"x" * 100)
    lost = sorted(ids(bench))[0]
    open_store(bench.settings.run_uri(lost)).remove()
    found = service.check_store(bench.db, bench.settings)
    assert [thing.name for thing in found.orphans] == ["runs/r0123456789ab"]
    assert {thing.name: thing.bytes for thing in found.others} == {"mlflow": 100, "runs": 10}
    assert found.missing == [lost]
    with bench.db.write() as session:
        session.add_all(
            Doomed(run_id=id, remove_objects=False, next_check_at=bench.clock() + timedelta(days=1))
            for id in ("e0123456789", "r0123456789ff")
        )
    assert service.check_store(bench.db, bench.settings).being_removed == 1, "of an experiment there is no directory"
    assert {item.experiment_id: item.runs for item in found.experiments} == {first: 4, second: 4}
    for experiment in first, second:
        delete(bench, experiment, undo_days=0)
    clean(bench)
    assert store.get("runs/r0123456789ab/spec.json") == b"another service's"
    assert store.get("runs/notes.txt") == b"a person's"
    assert store.get("mlflow/1/model.bin")


# ---------------------------------------------------------------- limits


def test_a_project_gets_no_more_places_runs_and_priority_than_it_may_have(bench: Bench, spec: dict[str, Any]) -> None:
    projects.change(bench.db, "faces", ProjectChanges(max_places=1, max_queued=4, max_priority=2))
    resolved = check_and_resolve(spec)
    experiment = experiments.submit(bench.db, resolved, None, "d", project="faces")
    bench.submit(spec | {"name": "free", "factors": {"mask_ratio": [0.3]}})
    bench.go(3)
    assert len(bench.cluster.live()) == 3
    told = {run.waiting_reason for run in bench.runs() if not run.admitted}
    assert told == {"project faces has all of its 1 places in use"}
    more = check_and_resolve(spec | {"name": "more", "factors": {"mask_ratio": [0.6, 0.65]}})
    with pytest.raises(TooManyQueued, match="3 runs of project faces wait already, and this would make 7; possible: 4"):
        experiments.submit(bench.db, more, None, "e", project="faces")
    assert len(bench.runs()) == 6, "what is refused has written nothing"
    urgent = check_and_resolve(spec | {"name": "urgent", "placement": {"priority": 3}})
    for ask in (
        lambda: experiments.submit(bench.db, urgent, None, "f", project="faces"),
        lambda: actions.change(bench.db, experiment, Changes(priority=9), None),
    ):
        with pytest.raises(InvalidSpec, match="at most 2 in project faces"):
            ask()
    experiments.submit(bench.db, urgent, None, "f")
    projects.change(bench.db, "faces", ProjectChanges(max_places=None))
    bench.reconciler.wake()
    bench.go(3)
    assert len(bench.cluster.live()) == 6
