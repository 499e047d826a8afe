"""What the service writes into a real MLflow server, also when it is killed on the way."""

import subprocess
import sys
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from mlflow.entities import Metric, Run

from service.compare.headline import headline
from service.compare.paper import read_back
from service.compare.service import comparison_of
from service.db import Database
from service.experiments import actions
from service.experiments.curves import Curves
from service.experiments.extend import Extension, extend
from service.experiments.repository import TrackedTrial
from service.publishing.publish import publish
from service.reconciler.loop import Reconciler
from service.reconciler.outside import Outside
from service.settings import Settings
from service.states import RunState
from service.tables import Experiment
from service.telemetry import Telemetry
from service.tracking import NOTE, TrackedRun, Tracker, TrackingAway, TrackingDeleted, TrackingGone, TrackingRefused
from tests.unit.service.bench import Bench, Killed
from trainer.contract.records import EXPORT, POINTER
from trainer.weights.mlflow_files import MlflowFiles
from trainer.weights.sources import FILES_ONLY

RECOMPUTE = Path(__file__).parents[2] / "examples" / "recompute.py"


class KilledTracker(Tracker):
    """MLflow has done it, and the service dies before it can write down what."""

    killed_after: str = ""

    def ensure_parent(self, **asked: Any) -> TrackedRun:
        return self._die("parent", super().ensure_parent(**asked))

    def ensure_child(self, parent: TrackedRun, **asked: Any) -> TrackedRun:
        return self._die("child", super().ensure_child(parent, **asked))

    def _die(self, what: str, made: TrackedRun) -> TrackedRun:
        if what == self.killed_after:
            self.killed_after = ""
            raise Killed(what)
        return made


@pytest.fixture
def bench(tmp_path: Path, mlflow_server: str) -> Iterator[Bench]:
    settings = Settings(work_dir=tmp_path, tracking_uri=mlflow_server, max_concurrent_runs=100)
    db = Database(settings.database)
    db.migrate()
    made = Bench(db, settings, KilledTracker(mlflow_server, timeout_seconds=20))
    yield made
    made.reconciler.stop()
    db.engine.dispose()


@pytest.fixture
def spec(tiny_faces: Path, request: pytest.FixtureRequest) -> dict[str, Any]:
    base = {"preset": "tiny", "data": {"uri": str(tiny_faces)}, "teacher": "none"}
    base["schedule"] = {"unit": "steps", "length": 10, "warmup": 1}
    name = f"t{abs(hash(request.node.name)) % 10**9}"
    return {"name": name, "base": base, "factors": {"mask_ratio": [0.75, 0.5]}, "seeds": 3, "concurrency": 100}


def finish(bench: Bench) -> None:
    def done() -> bool:
        for name in bench.cluster.live():
            bench.cluster.succeed(name)
        with bench.db.read() as session:
            return all(experiment.published for experiment in session.query(Experiment))

    bench.go_until(done)


def tracked(url: str, name: str) -> tuple[list[Run], list[Run]]:
    """Parents and children of the MLflow experiment."""
    client = MlflowClient(url)
    experiment = client.get_experiment_by_name(name)
    assert experiment
    runs = list(client.search_runs([experiment.experiment_id]))
    return (
        [run for run in runs if run.data.tags["mcf.kind"] == "experiment"],
        [run for run in runs if run.data.tags["mcf.kind"] == "run"],
    )


def test_runs_that_measure_more_take_the_places_of_those_before(
    bench: Bench, spec: dict[str, Any], mlflow_server: str
) -> None:
    experiment = bench.submit(spec)
    finish(bench)
    extend(bench.db, experiment, Extension(evaluation={"mask_ratio": 0.5}), FILES_ONLY, None)
    finish(bench)
    [_], children = tracked(mlflow_server, spec["name"])
    used = {run.id for run in bench.runs() if run.weights_of}
    assert {child.data.tags["mcf.run_id"] for child in children} == used
    assert len(used) == 6


def test_an_experiment_is_a_parent_with_a_finished_child_for_every_trial(
    bench: Bench, spec: dict[str, Any], mlflow_server: str, tmp_path: Path
) -> None:
    experiment = bench.submit(spec)
    finish(bench)
    [parent], children = tracked(mlflow_server, spec["name"])
    assert parent.info.status == "FINISHED"
    assert len(children) == 6
    assert {child.info.status for child in children} == {"FINISHED"}
    assert {child.data.tags["mlflow.parentRunId"] for child in children} == {parent.info.run_id}
    arms = {(child.data.tags["mcf.arm"], child.data.tags["mcf.seed"]) for child in children}
    assert ("mask_ratio=0.5", "2") in arms
    assert {child.data.params["mask_ratio"] for child in children} == {"0.5", "0.75"}
    # The compare page takes the first three by name of the params that differ: the factor, and no field of nothing.
    differ = [key for key in sorted(children[0].data.params) if len({c.data.params.get(key) for c in children}) > 1]
    assert differ == ["arm.mask_ratio", "mask_ratio", "seed"]
    assert [key for key in children[0].data.params if key.startswith("teacher.")] == ["teacher.source"]
    assert {child.data.tags["mcf.factor.mask_ratio"] for child in children} == {"0.5", "0.75"}
    client = MlflowClient(mlflow_server)
    names = {item.path for item in client.list_artifacts(parent.info.run_id)}
    forms = {f"comparison.{form}" for form in ("md", "csv", "json", "tex", "svg")}
    assert names == forms | {"report.html", "figures"}
    figures = {item.path for item in client.list_artifacts(parent.info.run_id, "figures")}
    assert figures == {"figures/forest.svg", "figures/factors.svg", "figures/cost.svg"}  # one factor: no interactions
    report = client.download_artifacts(parent.info.run_id, "report.html", str(tmp_path))
    assert read_back(Path(report).read_text()).comparison.experiment_id == experiment
    with bench.db.read() as session:
        table = comparison_of(session, experiment, mlflow_server)
    told = parent.data.tags[NOTE]
    assert f"Best arm: {table.arms[0].name}" in told
    assert headline(table).why in told
    # Above the list of runs, too, until a person has written something there.
    above = parent.info.experiment_id
    assert client.get_experiment(above).tags[NOTE] == told
    found = TrackedRun(above, parent.info.run_id)
    bench.tracker.describe(found, "newer")
    assert client.get_experiment(above).tags[NOTE] == "newer"
    client.set_experiment_tag(above, NOTE, "read our wiki")
    bench.tracker.describe(found, "newest")
    assert client.get_experiment(above).tags[NOTE] == "read our wiki"
    pages = [f"{mlflow_server}/#/experiments/{child.info.experiment_id}/runs/{child.info.run_id}" for child in children]
    assert table.arms[0].runs[0].tracking_url in {f"{page}?workflowType=machine_learning" for page in pages}


def test_an_arms_encoder_is_a_registered_model_with_the_arms_alias(
    bench: Bench, spec: dict[str, Any], mlflow_server: str
) -> None:
    experiment = bench.submit(spec)
    finish(bench)
    client, name = MlflowClient(mlflow_server), f"mcf-{spec['name']}"
    with bench.db.read() as session:
        parent = session.get_one(Experiment, experiment)
        found = TrackedRun(parent.tracking_id, parent.tracking_run_id)
        best = next(arm for arm in comparison_of(session, experiment, mlflow_server).arms if arm.rank == 1)
    publish(bench.db, bench.tracker, experiment, found, lambda done=None: None)  # as after a crash at its end
    versions = client.search_model_versions(f"name='{name}'")
    assert {(version.tags["mcf.arm"], version.tags["mcf.seed"]) for version in versions} == {
        ("mask_ratio=0.75", "0"), ("mask_ratio=0.5", "0"),
    }  # fmt: skip
    assert len(versions) == 2
    assert client.get_model_version_by_alias(name, "best").tags["mcf.arm"] == best.name
    # What a trainer would do with it: here no trainer has written the pointer to its weights.
    version = client.get_model_version_by_alias(name, "mask_ratio-0-5")
    client.log_text(version.run_id, "{}", f"{EXPORT}{POINTER}")
    assert MlflowFiles(mlflow_server).find(f"models:/{name}/@mask_ratio-0-5").endswith(f"/{version.version}/{POINTER}")


def test_every_number_of_the_table_can_be_computed_anew_from_mlflow_by_somebody_else(
    bench: Bench, spec: dict[str, Any], mlflow_server: str, tmp_path: Path
) -> None:
    spec["factors"]["contrastive.temperature"] = [0.1, 0.2]
    bench.submit(spec | {"name": f"{spec['name']}-first"})
    finish(bench)
    # Its numbers come into MLflow by the service; here no trainer logs any.
    experiment = bench.submit(spec)
    finish(bench)
    command = [sys.executable, str(RECOMPUTE), mlflow_server, experiment]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert int(done.stdout.split()[0]) > 40
    client = MlflowClient(mlflow_server)
    _, children = tracked(mlflow_server, spec["name"])
    assert {child.data.tags["mcf.subset_digest"] for child in children} == {"0" * 64}
    with bench.db.read() as session:
        parent = session.get_one(Experiment, experiment)
        found = TrackedRun(parent.tracking_id, parent.tracking_run_id)
    publish(bench.db, bench.tracker, experiment, found, lambda done=None: None)  # as after a crash at its end
    for name in "cost/process_hours", "probe/landmark_nme":
        assert len(client.get_metric_history(children[0].info.run_id, name)) == 1
    name = next(name for name in children[0].data.metrics if name.startswith("probe/"))
    client.log_metric(children[0].info.run_id, name, children[0].data.metrics[name] + 1e-6)
    moved = subprocess.run(command, capture_output=True, text=True)
    assert moved.returncode == 1
    assert "mcf says" in moved.stdout


@pytest.mark.parametrize("point", ["parent", "child"])
def test_killed_between_mlflow_and_the_database_it_makes_no_second_run(
    bench: Bench, spec: dict[str, Any], mlflow_server: str, point: str
) -> None:
    bench.submit(spec | {"factors": {}, "seeds": 1})
    bench.tracker.killed_after = point  # type: ignore[union-attr]
    with pytest.raises(Killed):
        bench.go(5)
    outside = Outside(bench.settings, bench.cluster, Tracker(mlflow_server, timeout_seconds=20))
    bench.reconciler = Reconciler(bench.db, bench.settings, outside, Telemetry(), clock=bench.clock)
    bench.go(seconds=bench.settings.lease_seconds + 1)
    finish(bench)
    parents, children = tracked(mlflow_server, spec["name"])
    assert (len(parents), len(children)) == (1, 1)
    assert children[0].data.params["mask_ratio"] == "0.75"


def test_however_runs_end_mlflow_says_so(bench: Bench, spec: dict[str, Any], mlflow_server: str) -> None:
    experiment = bench.submit(spec | {"seeds": 1})
    bench.go(4)
    one, other = bench.cluster.live()
    bench.cluster.fail(one)
    bench.go(2)
    actions.cancel(bench.db, experiment)
    bench.go(3)
    finish(bench)
    [parent], children = tracked(mlflow_server, spec["name"])
    assert parent.info.status == "KILLED"
    status = {child.data.tags["mcf.run_id"]: child.info.status for child in children}
    assert status == {one.rpartition("-")[0]: "FAILED", other.rpartition("-")[0]: "KILLED"}
    failed = next(child for child in children if child.info.status == "FAILED")
    assert failed.data.tags["mcf.reason"] == "the loss is not finite"


def test_a_retried_run_goes_on_in_the_same_mlflow_run(bench: Bench, spec: dict[str, Any], mlflow_server: str) -> None:
    experiment = bench.submit(spec | {"factors": {}, "seeds": 1})
    bench.go(4)
    bench.cluster.fail(bench.cluster.live()[0])
    finish(bench)
    actions.retry(bench.db, bench.settings, experiment)
    finish(bench)
    [parent], [child] = tracked(mlflow_server, spec["name"])
    assert (parent.info.status, child.info.status) == ("FINISHED", "FINISHED")


def test_a_shared_run_appears_in_both_experiments_with_its_numbers(
    bench: Bench, spec: dict[str, Any], mlflow_server: str
) -> None:
    bench.submit(spec | {"seeds": 1})
    finish(bench)
    bench.submit(spec | {"seeds": 1, "name": f"{spec['name']}-two"})
    finish(bench)
    [parent], children = tracked(mlflow_server, f"{spec['name']}-two")
    assert parent.info.status == "FINISHED"
    assert [child.info.status for child in children] == ["FINISHED", "FINISHED"]
    assert all("probe/landmark_nme" in child.data.metrics and "mcf.trained_in" in child.data.tags for child in children)


def test_a_step_that_was_logged_twice_counts_once_with_its_newest_value(mlflow_server: str) -> None:
    client = MlflowClient(mlflow_server)
    run = client.create_run(client.create_experiment("twice")).info.run_id
    for timestamp, step, value in (1, 1, 0.1), (2, 2, 0.2), (3, 2, 0.25), (4, 3, 0.3):
        client.log_batch(run, metrics=[Metric("loss/total", value, timestamp, step)])
    tracker = Tracker(mlflow_server, timeout_seconds=20)
    assert tracker.histories(run) == {"loss/total": [(1, 0.1), (2, 0.25), (3, 0.3)]}
    assert tracker.pictures(run) == {}
    for number in 30, 9, 100:
        client.log_text(run, str(number), f"pictures/step-{number:06d}.png")
    assert list(tracker.pictures(run)) == [9, 30, 100]
    assert tracker.picture(run, tracker.pictures(run)[100]) == b"100"


def test_a_deleted_run_is_no_reason_to_try_for_ever(mlflow_server: str) -> None:
    tracker = Tracker(mlflow_server, timeout_seconds=20)
    with pytest.raises(TrackingGone):
        tracker.histories("0" * 32)
    assert not tracker.is_away


def test_under_a_deleted_mlflow_experiment_runs_go_on_and_say_how_to_restore_it_and_then_it_has_their_end(
    bench: Bench, spec: dict[str, Any], mlflow_server: str
) -> None:
    experiment = bench.submit(spec | {"factors": {}, "seeds": 2})
    bench.go_until(lambda: len(bench.cluster.live()) == 2)
    client = MlflowClient(mlflow_server)
    tracking_id = bench.experiment(experiment).tracking_id
    client.delete_experiment(tracking_id)
    # A node is lost: the next attempt does not wait for MLflow.
    lost, _ = bench.cluster.live()
    bench.cluster.end(lost)
    bench.go_until(lambda: len(bench.cluster.live()) == 2)
    for name in bench.cluster.live():
        bench.cluster.succeed(name)
    restore = (
        f"`mlflow experiments restore --experiment-id {tracking_id}`, or cancel this experiment and submit it under"
    )
    bench.go_until(lambda: all(restore in run.waiting_reason for run in bench.runs()))
    assert bench.states() == {"succeeded": 2}
    assert "does not answer" not in "".join(run.waiting_reason for run in bench.runs())
    client.restore_experiment(tracking_id)
    finish(bench)
    [parent], children = tracked(mlflow_server, spec["name"])
    assert {run.info.status for run in (parent, *children)} == {"FINISHED"}
    assert [run.waiting_reason for run in bench.runs()] == ["", ""]


def test_a_single_run_that_was_deleted_in_mlflow_holds_nothing_up(
    bench: Bench, spec: dict[str, Any], mlflow_server: str
) -> None:
    bench.submit(spec | {"factors": {}, "seeds": 2})
    bench.go_until(lambda: len(bench.cluster.live()) == 2)
    MlflowClient(mlflow_server).delete_run(bench.runs()[0].tracking_run_id)
    finish(bench)
    [parent], [_] = tracked(mlflow_server, spec["name"])
    assert parent.info.status == "FINISHED"


def test_what_mlflow_answers_is_told_apart_from_no_answer(mlflow_server: str) -> None:
    tracker, client = Tracker(mlflow_server, timeout_seconds=20), MlflowClient(mlflow_server)
    tracking_id = client.create_experiment(uuid.uuid4().hex)
    run_id = client.create_run(tracking_id).info.run_id
    with pytest.raises(TrackingRefused, match=r"answers and refuses \(the MLflow run .*: .*exceeds the maximum length"):
        tracker.tag(run_id, {"x" * 2000: "too long a name"})
    client.delete_run(run_id)
    with pytest.raises(TrackingDeleted, match=rf"{run_id} was deleted. Restore it with `mlflow runs restore --run-id"):
        tracker.tag(run_id, {"a": "b"})
    with pytest.raises(TrackingGone, match="no longer has"):
        tracker.tag("0" * 32, {"a": "b"})
    with pytest.raises(TrackingRefused, match="answers and refuses"):
        Tracker(f"{mlflow_server}/elsewhere", timeout_seconds=20).ping()
    # The next call is made, and not spared as after no answer.
    assert not tracker.is_away


def test_after_a_failure_mlflow_is_left_alone_for_a_moment() -> None:
    tracker = Tracker("http://127.0.0.1:9", timeout_seconds=1)
    with pytest.raises(TrackingAway, match=r"MLflow at http://127.0.0.1:9 does not answer"):
        tracker.ping()
    assert tracker.is_away


def test_curves_ask_once_for_a_hundred_runs_and_not_again_for_those_that_nothing_is_added_to(
    mlflow_server: str,
) -> None:
    asked: list[int] = []

    class Counting(Tracker):
        def sampled(self, run_ids: Sequence[str], name: str, points: int) -> dict[str, list[tuple[int, float]]]:
            asked.append(len(run_ids))
            return super().sampled(run_ids, name, points)

    client = MlflowClient(mlflow_server)
    tracking_id = client.create_experiment("many")
    ids = [client.create_run(tracking_id).info.run_id for _ in range(101)]
    client.log_batch(ids[0], metrics=[Metric("loss/total", 1 / step, step, step) for step in range(1, 1001)])
    client.log_metric(ids[-1], "loss/total", 3.0, step=1)
    now = datetime.now(UTC)
    ended = now - timedelta(hours=1)
    trials = [TrackedTrial(0, "arm", True, n, f"r{n}", RunState.SUCCEEDED, 9, id, ended) for n, id in enumerate(ids)]
    trials[-1] = replace(trials[-1], state=RunState.RUNNING, ended_at=None)
    # What its trainer could not send at once may still come.
    trials[-2] = replace(trials[-2], ended_at=now)
    curves = Curves(Counting(mlflow_server, timeout_seconds=20))
    [curve] = curves.of(trials, "loss/total")
    assert asked == [100, 1]
    assert (curve.steps[0], curve.low[0], curve.high[0], curve.seeds[0]) == (1, 1.0, 3.0, 2)
    assert curve.steps[-1] == 1000
    assert len(curve.steps) <= 120
    assert curves.of(trials, "loss/total") == [curve]
    assert asked == [100, 1, 2]


def test_an_experiment_that_was_deleted_in_mlflow_does_not_block_its_name(mlflow_server: str) -> None:
    tracker, client = Tracker(mlflow_server, timeout_seconds=20), MlflowClient(mlflow_server)
    name, found = uuid.uuid4().hex, []
    for number in range(3):
        parent = tracker.ensure_parent(experiment_id=f"e{number}", name=name, tags={})
        assert tracker.ensure_parent(experiment_id=f"e{number}", name=name, tags={}) == parent
        found.append(client.get_experiment(parent.experiment_id).name)
        client.delete_experiment(parent.experiment_id)
    assert found == [name, f"{name} (2)", f"{name} (3)"]
