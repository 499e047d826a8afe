"""The list of experiments, cut down to what one looks for: in SQL, before pages are cut."""

import itertools
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import insert, select

from service.db import Database
from service.experiments import repository, views
from service.experiments.search import STATE, Search
from service.schemas.experiments import ExperimentState
from service.settings import Settings
from service.states import RunState
from service.tables import Arm, Experiment, Run, Trial
from tests.unit.service.test_api import Scene

NOW = datetime.now(UTC)
ROUNDS = {"rounds": [4, 8, 12]}
MORE, NONE = {"taken_at": "t", "finished": {"1": [0]}, "on": [1]}, {"taken_at": "t", "finished": {"1": [0]}, "on": []}
DESIGNS: tuple[tuple[Any, list[Any]], ...] = (
    (3, []),
    ([0, 1], []),
    (ROUNDS, []),
    (ROUNDS, [MORE]),
    (ROUNDS, [MORE, NONE]),
)


@pytest.fixture
def scene(settings: Settings) -> Iterator[Scene]:
    made = Scene(settings)
    yield made
    made.db.engine.dispose()


def experiment(number: int, **values: Any) -> dict[str, Any]:
    return {
        "id": f"e{number:010x}", "name": f"x{number}", "project": "default", "created_at": NOW, "next_check_at": NOW,
        "request_digest": "", "concurrency": 1, "priority": 0, "cancelled_at": None, "looks": [], "spec": {"seeds": 1},
    } | values  # fmt: skip


def test_sql_has_the_state_that_is_shown_for_all_that_an_experiment_may_be(database: Database) -> None:
    sets = [states for count in range(len(RunState) + 1) for states in itertools.combinations(RunState, count)]
    cases = list(itertools.product(sets, (None, NOW), DESIGNS))
    experiments = [
        experiment(n, cancelled_at=cancelled, spec={"seeds": seeds}, looks=looks)
        for n, (_, cancelled, (seeds, looks)) in enumerate(cases)
    ]
    runs = [
        {
            "id": f"r{state.value}", "digest": state.value, "spec": {}, "placement": {},
            "home_id": experiments[0]["id"],
            "created_at": NOW, "next_check_at": NOW, "state": state, "total_steps": 1,
        }
        for state in RunState
    ]  # fmt: skip
    trials = [
        {"experiment_id": f"e{n:010x}", "arm_id": n + 1, "seed": seed, "run_id": f"r{state.value}"}
        for n, (states, _, _) in enumerate(cases)
        for seed, state in enumerate(states)
    ]
    arms = [
        {"id": n + 1, "experiment_id": item["id"], "position": 0, "name": "base", "levels": {}, "is_baseline": True}
        for n, item in enumerate(experiments)
    ]
    with database.write() as session:
        for table, rows in (Experiment, experiments), (Run, runs), (Arm, arms), (Trial, trials):
            session.execute(insert(table), rows)
    with database.read() as session:
        told = dict(session.execute(select(Experiment.id, STATE)).all())
        rows = {item.id: item for item in session.scalars(select(Experiment))}
        tallies = repository.tallies(session, rows)
        shown = {
            id: views.state_of(item, tallies[id].counts if id in tallies else {}).value for id, item in rows.items()
        }
    assert told == shown
    assert set(told.values()) == {state.value for state in ExperimentState}


def test_a_page_of_a_list_is_full_however_few_are_like_that(scene: Scene) -> None:
    with scene.db.write() as session:
        rows = [
            experiment(
                n, name=f"mask-{n}" if n % 10 else f"teacher-{n}", created_at=NOW - timedelta(seconds=n),
                project="faces" if n % 4 else "default", cancelled_at=None if n % 20 else NOW,
            )
            for n in range(200)
        ]  # fmt: skip
        session.execute(insert(Experiment), rows)

    def found(query: str) -> list[str]:
        names, cursor = [], ""
        while True:
            page = scene.http.get(f"/v1/experiments?limit=3&{query}{cursor}").json()
            assert len(page["experiments"]) == 3 or page["next_cursor"] is None
            names += [item["name"] for item in page["experiments"]]
            if page["next_cursor"] is None:
                return names
            cursor = f"&cursor={page['next_cursor']}"

    assert found("search=TEACHER") == [f"teacher-{n}" for n in range(0, 200, 10)]
    assert found("state=cancelled") == [f"teacher-{n}" for n in range(0, 200, 20)]
    assert len(found("state=cancelled&state=succeeded")) == 200
    assert found("search=teacher&state=succeeded&project=faces") == [f"teacher-{n}" for n in range(10, 200, 20)]
    assert found("search=e00000000c") == [f"mask-{n}" if n % 10 else f"teacher-{n}" for n in range(192, 200)]
    assert found("search=100%25") == found("search=mask_") == []
    answer = scene.http.get("/v1/experiments?state=asleep")
    assert answer.status_code == 422
    assert "'succeeded'" in answer.text


def test_search_takes_what_no_database_does(database: Database) -> None:
    with database.read() as session:
        asked = Search(words="a\0b", name="a\0", prefix="\0e")
        assert repository.page(session, 10, None, asked.conditions()) == []
