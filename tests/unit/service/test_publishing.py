"""What MLflow is told of an experiment is what is true of it in the end, whatever happens while it is told."""

from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import pytest

from service.db import Database
from service.experiments import actions
from service.experiments import extend as extending
from service.experiments.extend import Extension
from service.reconciler import loop
from service.settings import Settings
from service.states import RunState
from service.tracking import TrackingAway
from tests.unit.service.bench import Bench, Board
from tests.unit.service.test_reconciler import finish_all
from trainer.weights.sources import FILES_ONLY


@pytest.fixture
def bench(database: Database, settings: Settings) -> Iterator[Bench]:
    made = Bench(database, settings, Board())
    yield made
    made.reconciler.stop()


def add_a_seed(bench: Bench, experiment: str) -> None:
    extending.extend(bench.db, experiment, Extension(seeds=[7]), FILES_ONLY, None)


def retry(bench: Bench, experiment: str) -> None:
    actions.retry(bench.db, bench.settings, experiment)


@pytest.mark.parametrize("act", [retry, add_a_seed])
def test_what_is_asked_for_while_an_experiment_is_being_published_is_published_too(
    bench: Bench, spec: dict[str, Any], act: Callable[[Bench, str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    experiment = bench.submit(spec | {"factors": {}, "seeds": 1})
    publish, published = loop.publish, list[dict[str, int]]()

    def publish_slowly(*args: Any) -> None:
        published.append(bench.states())
        if len(published) == 1:
            act(bench, experiment)
        publish(*args)

    monkeypatch.setattr(loop, "publish", publish_slowly)
    bench.go(3)
    for name in bench.cluster.live():
        bench.cluster.fail(name)
    bench.go_until(lambda: bool(published))
    assert not bench.experiment(experiment).published
    finish_all(bench)
    bench.go_until(lambda: bench.experiment(experiment).published)
    assert "queued" not in published[-1]
    assert published[-1]["succeeded"] == 1


def test_a_run_that_another_experiment_revives_is_published_again_where_it_was_cancelled(
    bench: Bench, spec: dict[str, Any]
) -> None:
    first = bench.submit(spec)
    bench.go(3)
    actions.cancel(bench.db, first)
    bench.go_until(lambda: bench.experiment(first).published)
    second = bench.submit(spec | {"name": "second"})
    assert not bench.experiment(first).published
    finish_all(bench)
    bench.go_until(lambda: bench.experiment(first).published and bench.experiment(second).published)
    assert isinstance(bench.tracker, Board)
    assert bench.tracker.ended[f"parent of {second}"] is RunState.SUCCEEDED


def test_a_cap_that_is_raised_while_it_is_looked_at_cancels_nothing(
    bench: Bench, spec: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    experiment = bench.submit(spec | {"gpu_hours": 0.5})
    bench.go(3)
    for name in bench.cluster.live():
        bench.cluster.train(name, 5)  # a process-hour each
    usage = loop.repository.usage

    def raised_meanwhile(*args: Any) -> Any:
        found = usage(*args)
        if found[0] and bench.experiment(experiment).gpu_hours == 0.5:
            monkeypatch.setattr(loop.repository, "usage", usage)
            extending.extend(bench.db, experiment, Extension(gpu_hours=100), FILES_ONLY, None)
        return found

    monkeypatch.setattr(loop.repository, "usage", raised_meanwhile)
    bench.go(4)
    assert bench.experiment(experiment).gpu_hours == 100
    finish_all(bench)
    assert bench.states() == {"succeeded": 4}


class Slow(Board):
    """Each of its answers takes longer than half a lease."""

    def __init__(self, bench: Bench) -> None:
        super().__init__()
        self._bench = bench
        self.told: list[str] = []
        self.fails_at = 0

    def log_metrics(self, run_id: str, *rest: Any) -> None:
        if len(self.told) + 1 == self.fails_at:
            self.fails_at = 0
            raise TrackingAway("MLflow is away")
        self.told.append(run_id)
        self._bench.clock.now += timedelta(seconds=0.6 * self._bench.settings.lease_seconds)
        other = self._bench.another()
        other.tick()
        other.stop()


def test_publishing_that_takes_longer_than_a_lease_is_done_by_one_service_and_once(
    bench: Bench, spec: dict[str, Any]
) -> None:
    bench.tracker = Slow(bench)
    bench.start()
    experiment = bench.submit(spec)
    finish_all(bench)
    bench.go_until(lambda: bench.experiment(experiment).published)
    assert sorted(bench.tracker.told) == sorted(run.id for run in bench.runs())


def test_publishing_goes_on_where_it_was_cut_off(bench: Bench, spec: dict[str, Any]) -> None:
    bench.tracker = Slow(bench)
    bench.tracker.fails_at = 3
    bench.start()
    experiment = bench.submit(spec)
    finish_all(bench)
    bench.go_until(lambda: bench.experiment(experiment).published)
    assert sorted(bench.tracker.told) == sorted(run.id for run in bench.runs())
