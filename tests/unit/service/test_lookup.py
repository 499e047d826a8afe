"""An experiment or run is found by its name or the beginning of its id, and never by guessing."""

import re
from collections.abc import Iterator
from typing import Any, cast

import httpx2
import pytest

from service.client import Ambiguous, Client, NoSuchThing
from service.db import Database
from service.settings import Settings
from service.states import Scope
from tests.unit.service.test_access import FIRST, Guarded, run_of
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


def refused(scene: Scene, name: str, **more: str) -> str:
    answer = scene.http.get("/v1/lookup", params={"name": name, **more})
    assert (answer.status_code, answer.json()["error"]) == (409, "ambiguous"), answer.text
    return str(answer.json()["detail"])


def test_a_name_of_several_is_refused_with_the_newest_of_them(
    scene: Scene, client: Client, spec: dict[str, Any]
) -> None:
    first = submitted(scene, spec, "masks")
    submitted(scene, spec, "other")
    assert client.experiment("masks").id == first
    later = [submitted(scene, spec, "masks", "theirs" if number % 2 else "default") for number in range(6)]
    with pytest.raises(Ambiguous, match="beginning of one") as caught:
        client.experiment("masks")
    head, *lines, rest, advice = str(caught.value).splitlines()
    assert head == "'masks' means 7 things:"
    assert [line.split()[0] for line in lines] == later[:0:-1]
    assert re.fullmatch(r"  e\w+  masks, project theirs, queued, \d+ s ago", lines[0])
    assert rest == "  and 2 more"
    assert advice.startswith("Give an id")
    assert client.experiment(first).id == first


def test_the_beginning_of_an_id_has_to_mean_one(scene: Scene, client: Client, spec: dict[str, Any]) -> None:
    made = [submitted(scene, spec | {"share": False}, "masks") for _ in range(3)]
    assert client.experiment(made[0][:-1]).id == made[0]
    for wrong in "e", "r":
        with pytest.raises(Ambiguous, match="means"):
            client.experiment(wrong) if wrong == "e" else client.run(wrong)
    assert "queued" in refused(scene, "r", kind="run")
    run = scene.http.get("/v1/runs").json()["runs"][0]["id"]
    assert client.run(run[:-1]).id == run
    assert client.look_up(run[:-1]).kind == "run"
    assert client.look_up(made[0][:-1]).name == "masks"
    for unknown in "nobody", "100%", "e_", "x" * 100, "e0123456789", made[0]:
        with pytest.raises(NoSuchThing, match=f"There is no run '{unknown}'.*mcf show EXPERIMENT"):
            client.run(unknown)
    with pytest.raises(NoSuchThing, match=r"no experiment or no run 'nobody'.*mcf list"):
        client.look_up("nobody")
    assert scene.http.get("/v1/lookup", params={"name": "\0"}).status_code == 409


def test_a_name_that_is_the_beginning_of_an_id_too_is_refused_and_a_whole_id_is_not(
    scene: Scene, client: Client, spec: dict[str, Any]
) -> None:
    first = submitted(scene, spec, "masks")
    called_so = submitted(scene, spec, first[:4])
    assert {first, called_so} <= set(refused(scene, first[:4]).split())
    submitted(scene, spec, first)
    assert client.experiment(first).id == client.look_up(first).id == first


def test_a_token_of_a_project_looks_in_it_alone(settings: Settings, database: Database, spec: dict[str, Any]) -> None:
    guarded = Guarded(settings, database)
    theirs = guarded.submit(FIRST, spec | {"name": "masks", "share": False}, params={"project": "theirs"})
    ours = guarded.submit(FIRST, spec | {"name": "masks"}, params={"project": "ours"})
    secret = guarded.token(Scope.READ, "ours")
    assert guarded.get(secret, "/v1/lookup?name=masks")["id"] == ours["id"]
    assert guarded.get(secret, f"/v1/lookup?name={run_of(ours)[:-1]}&kind=run")["id"] == run_of(ours)
    for other in theirs["id"], theirs["id"][:-1], run_of(theirs), run_of(theirs)[:-1]:
        answer = guarded.ask(secret, "GET", f"/v1/lookup?name={other}")
        assert answer.status_code == 404, answer.text
    assert theirs["id"] not in guarded.ask(secret, "GET", "/v1/lookup?name=r").text


def test_a_list_of_runs_reads_none_of_what_it_does_not_show(scene: Scene, spec: dict[str, Any]) -> None:
    submitted(scene, spec, "masks")
    with counting_statements(scene.db.engine) as statements:
        assert len(scene.http.get("/v1/runs", params={"prefix": "r"}).json()["runs"]) == 4
    [query] = [each for each in statements if "FROM runs" in each]
    assert "runs.result" not in query
    assert "runs.spec" not in query
