"""What the release before identities were settled (commit 6d68dd9) has left is opened, compared, extended and shared.

first_release/ was made by that release: two arms x two seeds that have succeeded, and the same with one seed in an
experiment that does not share. Of one run there is the last checkpoint; {FOLDER} stands for where all this lay.
"""

import os
import shutil
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from service.compare.service import comparison_of
from service.db import Database
from service.experiments import service as experiments
from service.experiments.extend import Extension, extend
from service.settings import Settings
from tests.forks import forks
from tests.integration.torchruns import ENV
from tests.unit.service.bench import Bench
from trainer.contract import RunSpec
from trainer.contract.records import Verdict
from trainer.store.objects import open_store
from trainer.store.rundir import list_checkpoints, read_outcome, read_result, read_sessions
from trainer.weights.sources import FILES_ONLY

OLD = Path(__file__).with_name("first_release")
SHARED, PRIVATE = "e099e766dc2", "e4cc093d871"
WITH_CHECKPOINT = "r2796e6e9e617"


@pytest.fixture
def old(tmp_path: Path) -> Iterator[Bench]:
    """Today's service on what is there."""
    for file in OLD.rglob("*.json"):
        place = tmp_path / "store" / file.relative_to(OLD)
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(file.read_text().replace("{FOLDER}", str(tmp_path)))
    checkpoint = f"runs/{WITH_CHECKPOINT}/checkpoints"
    shutil.copytree(OLD / checkpoint, tmp_path / "store" / checkpoint)
    shutil.copytree(OLD / "faces", tmp_path / "faces")
    shutil.copy(OLD / "labels.csv", tmp_path)
    with sqlite3.connect(tmp_path / "mcf.db") as connection:
        connection.executescript((OLD / "mcf.sql").read_text().replace("{FOLDER}", str(tmp_path)))
    connection.close()
    database = Database(f"sqlite:///{tmp_path}/mcf.db")
    database.migrate()
    bench = Bench(database, Settings(work_dir=tmp_path, max_concurrent_runs=100, reconcile_threads=16))
    yield bench
    bench.reconciler.stop()
    database.engine.dispose()


def spec_of(bench: Bench, experiment: str) -> dict[str, Any]:
    with bench.db.read() as session:
        return dict(experiments.get(session, experiment).spec)


def test_it_opens_and_compares(old: Bench) -> None:
    for id, seeds in (SHARED, 2), (PRIVATE, 1):
        detail = experiments.show(old.db, old.settings, id)
        assert (detail.state, [len(arm.trials) for arm in detail.arms]) == ("succeeded", [seeds, seeds])
        with old.db.read() as session:
            table = comparison_of(session, id, None)
        assert table.complete
        assert all(one.value is not None for arm in table.arms for one in arm.runs)
    for each in old.runs():
        spec = RunSpec.model_validate(each.spec)
        assert (each.digest, each.pretraining) == (spec.digest, spec.pretraining)
        assert each.private_to == (PRIVATE if each.home_id == PRIVATE else "")


def test_the_same_again_is_shared_and_what_was_private_stays_so(old: Bench) -> None:
    before = {run.id for run in old.runs()}
    again = old.submit(spec_of(old, SHARED))
    assert {run.id for run in old.runs()} == before
    assert experiments.show(old.db, old.settings, again).state == "succeeded"
    old.submit(spec_of(old, PRIVATE))
    assert len(old.runs()) == len(before) + 2


def test_seeds_and_arms_are_added_and_nothing_is_trained_again(old: Bench) -> None:
    before = {run.id for run in old.runs()}
    extend(old.db, SHARED, Extension(seeds=3, factors={"mask_ratio": [0.25]}), FILES_ONLY, None)
    assert len({run.id for run in old.runs()} - before) == 2 + 3
    assert experiments.show(old.db, old.settings, SHARED).num_runs == 9


def test_more_is_measured_on_the_weights_that_are_there(old: Bench) -> None:
    extend(old.db, SHARED, Extension(evaluation={"folds": 4}), FILES_ONLY, None)
    old.go(3)
    [name] = old.cluster.live()
    [new] = [run for run in old.runs() if f"{run.id}-1" == name]
    assert new.weights_of == WITH_CHECKPOINT
    # A real trainer, which finds a checkpoint that bears a digest of before.
    uri, earlier = (old.settings.run_uri(id) for id in (new.id, WITH_CHECKPOINT))
    spec = Path(uri, "spec.json")
    env = {**os.environ, **ENV, "MCF_RUN_URI": uri, "MCF_WEIGHTS_URI": earlier}
    done = forks.run("trainer.main", "--spec", str(spec), env=env, merged=True)
    assert done.returncode == 0, done.stdout
    store = open_store(uri)
    [session] = read_sessions(store)
    outcome, result = read_outcome(store), read_result(store)
    assert (session.first_step, session.step) == (3, 3)
    assert outcome
    assert outcome.verdict is Verdict.SUCCEEDED
    before = read_result(open_store(earlier))
    assert result
    assert before
    assert result.sanity[0] == before.sanity[0], "of the same weights"
    assert "4 folds" in result.probe_note
    # The state is safe where it is.
    assert list_checkpoints(store) == []
