"""Hours by node pool, and what they cost at the operator's prices."""

from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select

from service.costs import Prices
from service.experiments import actions
from service.schemas.costs import Cost
from service.settings import Settings
from service.states import AttemptState
from service.tables import Attempt, PoolCharge, Run
from tests.unit.service.bench import Bench
from tests.unit.service.test_api import Scene
from trainer.contract.records import Session

PRICES = Prices({"a100": 4.0, "spot": 1.0}, "EUR")


def test_hours_without_a_price_are_said_and_not_counted() -> None:
    hour = 3600.0
    assert PRICES.of(3 * hour, {"a100": hour, "spot": 2 * hour}) == Cost(amount=6.0, currency="EUR")
    found = PRICES.of(4 * hour, {"a100": hour, "mine": 2 * hour})
    assert found == Cost(amount=4.0, currency="EUR", unpriced_hours=3.0)
    assert str(found) == "4.00 EUR and 3 h without a price"
    assert Prices({}, "EUR").of(hour, {"a100": hour}) is None
    assert PRICES.of_hours(2, "a100") == Cost(amount=8.0, currency="EUR")
    assert PRICES.of_hours(2, "mine") is None
    # Sums in another order.
    assert PRICES.of(hour + 1e-6, {"spot": hour}) == Cost(amount=1.0, currency="EUR")


def test_a_session_of_before_is_of_no_pool() -> None:
    told = {
        "number": 1, "attempt": 1, "world_size": 2, "device": "cpu", "first_step": 0, "step": 1, "total_steps": 2,
        "stage": "training", "images_per_second": None, "losses": {}, "started_at": "2026-12-01T12:00:00Z",
        "seen_at": "2026-12-01T13:00:00Z",
    }  # fmt: skip
    assert Session.model_validate(told).pool_seconds == {}
    assert Session.model_validate({**told, "pools": {"a100": 1, "spot": 1}}).pool_seconds == {
        "a100": 3600,
        "spot": 3600,
    }


def test_a_run_in_two_pools_is_counted_in_each_and_its_home_pays_once(bench: Bench, spec: dict[str, Any]) -> None:
    first = bench.submit(spec | {"seeds": 1, "factors": {}})
    bench.go_until(lambda: bool(bench.cluster.live()))
    [name] = bench.cluster.live()
    bench.cluster.train(name, 5, world_size=3, pools={"a100": 1, "spot": 2})
    bench.go_until(lambda: bench.runs()[0].pool_seconds == {"a100": 1800.0, "spot": 3600.0})
    assert bench.runs()[0].process_seconds == 5400.0
    assert paid(bench) == {(first, "a100"): 1800.0, (first, "spot"): 3600.0}
    second = bench.submit(spec | {"seeds": 1, "factors": {}, "name": "second"})
    actions.cancel(bench.db, first)
    now = bench.clock.now
    bench.cluster.train(name, 8, world_size=3, pools={"a100": 1, "spot": 2}, started_at=now - timedelta(hours=1))
    bench.go_until(lambda: bench.runs()[0].step == 8)
    assert bench.runs()[0].home_id == second
    assert paid(bench) == {
        (first, "a100"): 1800.0, (first, "spot"): 3600.0, (second, "a100"): 1800.0, (second, "spot"): 3600.0
    }  # fmt: skip


def paid(bench: Bench) -> dict[tuple[str, str], float]:
    with bench.db.read() as session:
        return {(row.experiment_id, row.pool): row.process_seconds for row in session.scalars(select(PoolCharge))}


def test_money_is_shown_wherever_hours_are(tmp_path: Path, spec: dict[str, Any]) -> None:
    (tmp_path / "pools.yaml").write_text(
        "a100: {image: x, gpus: 8, price_per_gpu_hour: 4}\nspot: {image: x, gpus: 8, price_per_gpu_hour: 1.5}\n"
    )
    settings = Settings(
        work_dir=tmp_path, scheduler="jobset", pools=tmp_path / "pools.yaml", store="s3://mcf/store", currency="EUR"
    )  # fmt: skip
    scene = Scene(settings)
    asked = {**spec, "seeds": 2, "factors": {}, "placement": {"pool": "a100", "extra": {"nodes": 1, "pool": "spot"}}}
    id = scene.http.post("/v1/experiments", json=asked).json()["id"]
    scene.finish()
    with scene.db.write() as session:
        for run in session.scalars(select(Run)):
            run.pool_seconds = {"a100": 1200.0, "spot": 2400.0}
            run.sessions = [STRETCH | {"pools": {"a100": 1, "spot": 2}}]
            past = {"first_step": 0, "created_at": run.created_at, "state": AttemptState.SUCCEEDED}
            session.add(Attempt(run_id=run.id, number=1, **past))
            for pool, seconds in run.pool_seconds.items():
                session.add(PoolCharge(run_id=run.id, experiment_id=id, pool=pool, process_seconds=seconds))
        run_id = run.id
    a_run = 1200 / 3600 * 4 + 2400 / 3600 * 1.5
    detail = scene.http.get(f"/v1/experiments/{id}").json()
    assert detail["cost"] == {"amount": pytest.approx(2 * a_run), "currency": "EUR", "unpriced_hours": 0.0}
    assert scene.http.get(f"/v1/runs/{run_id}").json()["cost"]["amount"] == pytest.approx(a_run)
    [row] = scene.http.get(f"/v1/experiments/{id}/comparison").json()["arms"]
    assert row["cost"]["amount"] == pytest.approx(2 * a_run)
    for form in "text/markdown", "text/csv":
        table = scene.http.get(f"/v1/experiments/{id}/comparison", headers={"Accept": form}).text
        assert "cost" in table
        assert f"{2 * a_run:.2f}"[:-1] in table
    for page in "/", f"/experiments/{id}", f"/runs/{run_id}":
        assert "EUR" in scene.http.get(page).text, page
    assert "world size 3 (1 in a100, 2 in spot)" in scene.http.get(f"/runs/{run_id}").text
    more = {**asked, "base": {**asked["base"], "mask_ratio": 0.6}}
    plan = scene.http.post("/v1/experiments?dry_run=true", json=more).json()
    assert plan["estimated_cost"]["amount"] == pytest.approx(plan["estimated_gpu_hours"] * 4)


STRETCH = {
    "attempt": 1, "world_size": 3, "first_step": 0, "step": 10, "started_at": "2026-12-01T12:00:00Z",
    "seen_at": "2026-12-01T12:20:00Z",
}  # fmt: skip
