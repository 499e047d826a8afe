"""Numbers that no column of a database and no tensor could hold are refused in words, on either database."""

import copy
from collections.abc import Iterator
from typing import Any, get_args

import pytest
from pydantic import BaseModel

from service.db import Database
from service.experiments import service as experiments
from service.settings import Settings
from tests.unit.service.test_api import Scene
from trainer.contract import RunSpec
from trainer.contract.ablation import expand, parse_experiment
from trainer.contract.experiment import Placement
from trainer.contract.frozen import MAX_INTEGER


@pytest.fixture
def scene(settings: Settings, database: Database) -> Iterator[Scene]:
    url = database.engine.url.render_as_string(hide_password=False)
    made = Scene(settings.model_copy(update={"database_url": url}))
    yield made
    made.db.engine.dispose()


def _numbers(model: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, bool]]:
    """Dotted names of the fields that are numbers, and whether of whole ones."""
    for name, field in model.model_fields.items():
        kinds = [kind for kind in (field.annotation, *get_args(field.annotation)) if isinstance(kind, type)]
        if inner := next((kind for kind in kinds if issubclass(kind, BaseModel)), None):
            yield from _numbers(inner, f"{prefix}{name}.")
        elif int in kinds or float in kinds:
            yield prefix + name, int in kinds


RUN = {name: whole for name, whole in _numbers(RunSpec) if not name.startswith("evaluation.parsing")}
EXPERIMENT = {**dict(_numbers(Placement, "placement.")), "concurrency": True, "gpu_hours": False}
ABSURD = [10**400, -(10**400), 1e308, -1e308]
JSON = {"Content-Type": "application/json"}
TOO_LARGE_TO_COUNT = [2**63, 2**31]


def test_the_walk_finds_the_numbers() -> None:
    assert {"seed", "schedule.length", "evaluation.alignment.epochs", "batch.slice"} <= RUN.keys()
    assert len(RUN) > 40


@pytest.mark.parametrize("value", ABSURD + TOO_LARGE_TO_COUNT, ids=lambda value: f"{str(value)[:4]}, {len(str(value))}")
def test_no_number_of_a_run_is_too_large_for_words(spec: dict[str, Any], value: float) -> None:
    for name, whole in RUN.items():
        if value in TOO_LARGE_TO_COUNT and not whole:
            continue
        payload = copy.deepcopy(spec) | {"factors": {}}
        part = payload["base"]
        *parents, last = name.split(".")
        for parent in parents:
            inner = part.get(parent)
            part[parent] = inner if isinstance(inner, dict) else {}
            part = part[parent]
        if name.startswith("evaluation.alignment"):
            part |= {"benchmark": "300w", "uri": "/nowhere"}
        part[last] = value
        asked, problems = parse_experiment(payload)
        assert asked
        assert problems + expand(asked)[1], name


@pytest.mark.parametrize("value", ABSURD + TOO_LARGE_TO_COUNT, ids=lambda value: f"{str(value)[:4]}, {len(str(value))}")
def test_nor_is_one_of_an_experiment(spec: dict[str, Any], value: float) -> None:
    for name, whole in EXPERIMENT.items():
        if value in TOO_LARGE_TO_COUNT and not whole:
            continue
        asked: Any = value
        for part in reversed(name.split(".")):
            asked = {part: asked}
        _, problems = parse_experiment(spec | asked)
        assert [problem.field for problem in problems] == [name]


@pytest.mark.parametrize("seeds", [0, -3, [], [-1], [1, 1], "0-4", "3", True, [True], 1.5, [0.5], None, {}, [2**31]])
def test_seeds_are_numbers_that_a_database_holds(scene: Scene, spec: dict[str, Any], seeds: Any) -> None:
    answer = scene.http.post("/v1/experiments", json=spec | {"seeds": seeds})
    assert answer.status_code == 422, answer.text
    [problem] = answer.json()["problems"]
    assert problem["field"] == "seeds"
    told = "rounds: a list of two" if isinstance(seeds, dict) else f"different seeds from 0 to {MAX_INTEGER}"
    assert told in problem["possible"]


def test_the_largest_numbers_go_all_the_way(scene: Scene, spec: dict[str, Any]) -> None:
    spec = spec | {"seeds": [MAX_INTEGER], "concurrency": MAX_INTEGER, "placement": {"priority": -MAX_INTEGER}}
    spec["base"]["schedule"] = {"unit": "steps", "length": MAX_INTEGER}
    answer = scene.http.post("/v1/experiments", json=spec)
    assert answer.status_code == 201, answer.text
    spec["base"]["schedule"] = {"unit": "epochs", "length": MAX_INTEGER * 100}
    answer = scene.http.post("/v1/experiments", json=spec)
    assert answer.json()["problems"][0]["possible"] == f"at most {MAX_INTEGER} steps"


@pytest.mark.parametrize("seeds", [0, -3, 10**9, 2**40, [2**31], [-1]])
def test_an_extension_has_the_same_bounds(scene: Scene, spec: dict[str, Any], seeds: Any) -> None:
    made = scene.http.post("/v1/experiments", json=spec).json()["id"]
    assert scene.http.post(f"/v1/experiments/{made}/extend", json={"seeds": seeds}).status_code == 422
    content = b'{"gpu_hours": Infinity}'
    assert scene.http.post(f"/v1/experiments/{made}/extend", content=content, headers=JSON).status_code == 422
    page = scene.http.post(f"/experiments/{made}/extend", data={"seeds": "0" if isinstance(seeds, list) else seeds})
    assert page.status_code == 422
    assert f"from 1 to {experiments.MAX_RUNS_OF_EXPERIMENT}" in page.text


def test_no_address_takes_one_of_two_equal_keys(scene: Scene, spec: dict[str, Any]) -> None:
    made = scene.http.post("/v1/experiments", json=spec).json()["id"]
    paths = {
        path: path.replace("{experiment_id}", made)
        for path, verbs in scene.http.get("/openapi.json").json()["paths"].items()
        if "requestBody" in verbs.get("post", {})
    }
    assert {"/v1/experiments/{experiment_id}/extend", "/v1/tokens"} <= paths.keys()
    for path in paths.values():
        answer = scene.http.post(path, content=b'{"x": {"seeds": 3, "seeds": 4}}', headers=JSON)
        assert (answer.status_code, answer.json()["error"]) == (422, "unreadable_body"), path
        assert "the key 'seeds' comes twice" in answer.json()["detail"]


def test_a_page_of_a_list_may_not_begin_before_time(scene: Scene) -> None:
    answer = scene.http.get("/v1/experiments", params={"cursor": "0001-01-01T00:00:00+23:59_e0"})
    assert (answer.status_code, answer.json()["error"]) == (422, "invalid_cursor")
