"""An experiment or run is found by its name or the beginning of its id, in one request, and never by guessing."""

from collections.abc import Iterator
from typing import Any, cast

import httpx2
import pytest

from service.client import Client, NoSuchThing
from service.settings import Settings
from tests.unit.service.test_api import Scene, counting_statements


@pytest.fixture
def scene(settings: Settings) -> Iterator[Scene]:
    made = Scene(settings)
    yield made
    made.db.engine.dispose()


@pytest.fixture
def client(scene: Scene) -> Client:
    made = Client("http://localhost")
    made._connection._http = cast(httpx2.Client, scene.http)
    return made


def submitted(scene: Scene, spec: dict[str, Any], name: str, project: str = "default") -> str:
    made: str = scene.http.post(f"/v1/experiments?project={project}", json=spec | {"name": name}).json()["id"]
    return made


def test_a_name_is_the_newest_of_it_in_one_project_and_refused_in_several(
    scene: Scene, client: Client, spec: dict[str, Any]
) -> None:
    submitted(scene, spec, "masks")
    newest = submitted(scene, spec, "masks")
    submitted(scene, spec, "other")
    assert client.experiment("masks").id == newest
    theirs = submitted(scene, spec, "masks", "theirs")
    with pytest.raises(NoSuchThing, match=f"several projects .default, theirs. .*{theirs}.*Give an id"):
        client.experiment("masks")
    assert client.experiment(newest).id == newest


def test_the_beginning_of_an_id_has_to_mean_one(scene: Scene, client: Client, spec: dict[str, Any]) -> None:
    made = [submitted(scene, spec | {"share": False}, "masks") for _ in range(3)]
    assert client.experiment(made[0][:-1]).id == made[0]
    for wrong in "e", "r":
        with pytest.raises(NoSuchThing, match="begin with"):
            client.experiment(wrong) if wrong == "e" else client.run(wrong)
    run = scene.http.get("/v1/runs").json()["runs"][0]["id"]
    assert client.run(run[:-1]).id == run
    for unknown in "nobody", "100%", "e_", "x" * 100, "e\0":
        with pytest.raises(NoSuchThing, match=r"There is no|begin with"):
            client.experiment(unknown)
        with pytest.raises(NoSuchThing, match="There is no"):
            client.run(unknown)


def test_a_list_of_runs_reads_none_of_what_it_does_not_show(scene: Scene, spec: dict[str, Any]) -> None:
    submitted(scene, spec, "masks")
    with counting_statements(scene.db.engine) as statements:
        assert len(scene.http.get("/v1/runs", params={"prefix": "r"}).json()["runs"]) == 4
    [query] = [each for each in statements if "FROM runs" in each]
    assert "runs.result" not in query
    assert "runs.spec" not in query
