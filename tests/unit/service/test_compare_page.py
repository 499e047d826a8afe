"""Two experiments side by side on a page, and the list from which they are picked."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from pydantic import SecretStr
from sqlalchemy import update

from service.api.auth import COOKIE
from service.compare.answers import Answers
from service.db import Database
from service.settings import Settings
from service.states import RunState, Scope
from service.tables import Run
from tests.unit.service.bench import counting_statements
from tests.unit.service.test_api import Scene


@pytest.fixture
def scene(settings: Settings, database: Database) -> Iterator[Scene]:
    url = database.engine.url.render_as_string(hide_password=False)
    made = Scene(settings.model_copy(update={"database_url": url}))
    yield made
    made.db.engine.dispose()


def submitted(scene: Scene, spec: dict[str, Any]) -> str:
    answer = scene.http.post("/v1/experiments", json=spec)
    assert answer.status_code == 201, answer.text
    return str(answer.json()["id"])


def test_two_experiments_stand_side_by_side_arm_by_arm(scene: Scene, spec: dict[str, Any]) -> None:
    one = submitted(scene, spec | {"name": "first", "seeds": 3})
    other = submitted(scene, spec | {"name": "second", "seeds": 4, "factors": {"mask_ratio": [0.5, 0.9]}})
    scene.finish()
    picked = scene.http.get(f"/compare?id={other}&id={one}", follow_redirects=False)
    assert picked.headers["location"] == f"/compare?one={one}&other={other}"
    page = scene.http.get(f"/compare?one={one}&other={other}").text
    assert "first and second" in page
    assert "3 shared" in page
    assert "second minus first" in page
    assert f"Only in first ({one}): mask_ratio=0.75." in page
    # The same as the terminal says, which asks run by run.
    assert f"Only in second ({other}): mask_ratio=0.9." in page


def test_experiments_are_named_as_people_name_them_and_a_name_of_several_shows_them(
    scene: Scene, spec: dict[str, Any]
) -> None:
    one, other = (submitted(scene, spec | {"name": name}) for name in ("first", "second"))
    page = scene.http.get(f"/compare?one=first&other={other[:6]}").text
    assert "first and second" in page
    assert f'value="{one}"' in page
    twin = submitted(scene, spec | {"name": "first", "seeds": 3})
    answer = scene.http.get("/compare?one=first&other=second")
    assert answer.status_code == 409
    for id in one, twin:
        assert f"{id}  first, project default" in answer.text
    assert 'value="second"' in answer.text


def test_what_cannot_stand_side_by_side_is_said_in_words(scene: Scene, spec: dict[str, Any]) -> None:
    one = submitted(scene, spec)
    assert f'value="{one}"' in scene.http.get(f"/compare?one={one}").text
    for query, told in (
        (f"one={one}&other=e0000000000", "There is no experiment &#39;e0000000000&#39;"),
        (f"one={one}&other={one}", "asked for twice"),
        (f"id={one}", "and 1 were picked"),
        (f"id={one}&id={one}&id={one}", "and 3 were picked"),
    ):
        answer = scene.http.get(f"/compare?{query}")
        assert (answer.status_code, told in answer.text) == (404, True), query
    other = submitted(scene, spec | {"name": "other"})
    page = scene.http.get(f"/compare?one={one}&other={other}").text
    assert "no arm yet" in page
    assert "No numbers stand side by side" in page
    answer = scene.http.get(f"/compare?one={one}&other={other}&metric=none")
    assert "none" in answer.text


def test_another_projects_experiment_is_not_there_to_be_compared(tmp_path: Path, spec: dict[str, Any]) -> None:
    scene = Scene(Settings(work_dir=tmp_path, token=SecretStr("first")))
    admin = {"Authorization": "Bearer first"}
    ids = {
        project: scene.http.post(f"/v1/experiments?project={project}", json=spec, headers=admin).json()["id"]
        for project in ("ours", "theirs")
    }
    body = {"name": "ann", "scope": Scope.READ, "project": "ours"}
    secret = scene.http.post("/v1/tokens", json=body, headers=admin).json()["secret"]
    reader = TestClient(scene.app, cookies={COOKIE: secret})
    for query in f"one={ids['ours']}&other={ids['theirs']}", f"one={ids['theirs']}&other={ids['ours']}":
        page = reader.get(f"/compare?{query}")
        assert page.status_code == 404
        assert "Arm by arm" not in page.text
    scene.db.engine.dispose()


# ---------------------------------------------------------------- answers in the list


def test_the_list_has_an_answer_when_its_row_has_asked_and_keeps_it_until_a_run_ends(
    scene: Scene, spec: dict[str, Any]
) -> None:
    id = submitted(scene, spec | {"seeds": 3})
    assert "no run has finished" in scene.http.get("/").text
    scene.finish()
    before = scene.http.get("/").text
    assert f'hx-get="/experiments/{id}/answer" hx-trigger="revealed" hx-select="#answer-{id}"' in before
    line = scene.http.get(f"/experiments/{id}/answer").text
    assert "<b>mask_ratio=0.75</b> landmark nme 7.1" in line
    assert "Is the difference real?" in line
    after = scene.http.get("/").text
    assert "<b>mask_ratio=0.75</b> landmark nme 7.1" in after
    assert "hx-preserve hx-get" not in after
    # A step of training changes nothing, and the end of a run does.
    with scene.db.write() as session:
        session.execute(update(Run).values(step=9, process_seconds=7200.0))
    assert "hx-preserve hx-get" not in scene.http.get("/").text
    with scene.db.write() as session:
        session.execute(update(Run).where(Run.id == Run.id).values(state=RunState.QUEUED, ended_at=None, result=None))
        session.execute(update(Run).where(Run.spec["seed"].as_integer() == 0).values(state=RunState.SUCCEEDED))
    assert "hx-preserve hx-get" in scene.http.get("/").text


def test_an_answer_that_is_known_is_not_compared_again(scene: Scene, spec: dict[str, Any]) -> None:
    id = submitted(scene, spec)
    scene.finish()
    answers = Answers(scene.app.state.comparisons)
    with scene.db.read() as session:
        made = answers.of(session, id)
        with counting_statements(scene.db.engine) as statements:
            assert answers.of(session, id) is made
    assert len(statements) == 2


def test_what_one_looks_for_stands_in_the_address_and_survives_the_refresh(scene: Scene, spec: dict[str, Any]) -> None:
    for n in range(52):
        submitted(scene, spec | {"name": f"mask-{n}", "factors": {}, "seeds": 1})
    submitted(scene, spec | {"name": "teacher", "factors": {}, "seeds": 1})
    page = scene.http.get("/?search=mask&state=queued&state=&project=").text
    assert 'hx-get="/?search=mask&amp;state=queued"' in page
    assert 'value="queued" checked' in page
    assert (">mask-51<" in page, ">mask-1<" in page, ">teacher<" in page) == (True, False, False)
    older = page.partition('id="older" href="')[2].partition('"')[0].replace("&amp;", "&")
    page = scene.http.get(older).text
    assert (">mask-51<" in page, ">mask-1<" in page, ">mask-0<" in page) == (False, True, True)
    assert f'hx-get="{older}"'.replace("&", "&amp;") in page
    assert 'id="newest" href="/?search=mask&amp;state=queued"' in page
    assert "No experiment is like that" in scene.http.get("/?state=failed").text
    assert "possible: queued, running" in scene.http.get("/?state=asleep").text
