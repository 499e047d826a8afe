"""From a spec that is written on the page to an experiment, and from an experiment back to its spec."""

import html
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import yaml
from fastapi.testclient import TestClient
from hypothesis import given
from hypothesis import strategies as st
from pydantic import SecretStr
from sqlalchemy import func, select

from service.api.auth import COOKIE
from service.experiments.written import as_yaml, asked
from service.pages import submit
from service.pages.render import MAX_KEPT_BYTES
from service.settings import Settings
from service.states import Scope
from service.tables import Experiment
from tests.unit.service.test_api import Scene
from trainer.contract import plain
from trainer.contract.ablation import parse_experiment

ROOT = Path(__file__).parents[3]
SPECS = sorted([*(ROOT / "examples").glob("*.yaml"), *(ROOT / "examples/specs").glob("*.yaml")])


@pytest.fixture
def scene(settings: Settings) -> Iterator[Scene]:
    made = Scene(settings)
    yield made
    made.db.engine.dispose()


def written(spec: dict[str, Any]) -> str:
    return yaml.safe_dump(spec, sort_keys=False)


def key_of(page: str) -> str:
    found = re.search(r'name="key" value="([0-9a-f]+)"', page)
    assert found
    return found[1]


@pytest.mark.parametrize("name", ["My first try", "a_b", "a" * 64])
def test_how_a_name_may_be_is_said_in_words(scene: Scene, name: str) -> None:
    found = scene.http.post(
        "/new/check", data={"text": written({"name": name, "base": {}})}, headers={"HX-Request": "true"}
    ).text
    assert "lower-case letters, digits and hyphens, 63 at most" in found
    assert "pattern" not in found


def num_experiments(scene: Scene) -> int:
    with scene.db.read() as session:
        return session.scalar(select(func.count()).select_from(Experiment)) or 0


# ---------------------------------------------------------------- the text


@pytest.mark.parametrize("path", SPECS, ids=lambda path: path.stem)
def test_a_kept_spec_is_written_as_it_was_asked_for(path: Path) -> None:
    was = plain.from_yaml(path.read_text())
    spec, problems = parse_experiment(was)
    assert spec, problems
    text = as_yaml(spec.model_dump(mode="json"))
    back = plain.from_yaml(text, aliases=False)
    assert parse_experiment(back)[0] == spec
    # The default of seeds is said; whatever else was not asked for is not there.
    assert back["base"] == was["base"]
    assert "'" not in text, "addresses stand without quotes"
    assert set(back) <= {*was, "seeds"}
    assert set(back.get("placement", {})) <= set(was.get("placement", {}))
    lines = [line for line in path.read_text().splitlines() if not line.startswith("#")]
    assert len(text.splitlines()) <= len(lines) + 6


def test_the_order_is_that_of_the_docs_whatever_a_database_makes_of_it() -> None:
    shuffled = {
        "seeds": {"rounds": [4, 8], "first": 0, "target": "best", "futility": 0.1, "spending": "linear"},
        "base": {"mask": {"ratio": 0.5, "kind": "block"}, "data": {"flip": True, "uri": "/f"}, "preset": "tiny"},
        "name": "x", "gone": 1, "share": True,
    }  # fmt: skip
    assert as_yaml(shuffled) == (
        "name: x\nbase:\n  preset: tiny\n  data: {uri: /f, flip: true}\n  mask: {kind: block, ratio: 0.5}\n"
        "seeds:\n  rounds: [4, 8]\n  target: best\ngone: 1\n"
    )
    assert asked({"seeds": 3, "placement": {"pool": "local", "max_nodes": 2}})["placement"] == {"max_nodes": 2}


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
        | st.text("az09:/.-#,[]{}'\"\n @*&!%|>?", max_size=12),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("a:/ ", max_size=4), inner, max_size=3),
    )
)  # fmt: skip
def test_whatever_a_spec_holds_is_read_back(value: Any) -> None:
    assert plain.from_yaml(as_yaml({"base": {"x": value}, "seeds": 3}), aliases=False)["base"] == {"x": value}


# ---------------------------------------------------------------- the check


def test_the_check_says_what_a_dry_run_says_and_writes_nothing(scene: Scene, spec: dict[str, Any]) -> None:
    scene.http.post("/v1/experiments", json=spec | {"factors": {}})
    scene.finish()
    htmx = {"HX-Request": "true"}
    part = scene.http.post("/new/check", data={"text": written(spec)}, headers=htmx).text
    assert "<html" not in part
    for told in "<dd>4, of 2 arms</dd>", "<dd>2</dd>", "<dd>2, of which 2 have finished", "mask_ratio=0.5":
        assert told in part
    wrong = spec | {"seeds": 0, "base": spec["base"] | {"mask_ratioo": 1}}
    part = scene.http.post("/new/check", data={"text": written(wrong)}, headers=htmx).text
    assert "2 problems; nothing is submitted" in part
    assert "<code>mask_ratioo</code>" in part or "<code>base.mask_ratioo</code>" in part
    part = scene.http.post("/new/check", data={"text": "name: [x"}, headers=htmx).text
    assert "What you have written is not YAML" in part
    assert "line 1" in part
    # Without a script the same stands on the page, beside the text.
    page = scene.http.post("/new/check", data={"text": written(wrong), "project": "faces"}).text
    assert "2 problems" in page
    assert "mask_ratioo: 1\n" in page
    assert 'value="faces"' in page
    assert num_experiments(scene) == 1


def test_checks_that_hang_leave_room_for_other_requests(scene: Scene, spec: dict[str, Any]) -> None:
    for _ in range(4):
        assert submit.AT_ONCE.acquire(blocking=False)
    try:
        part = scene.http.post("/new/check", data={"text": written(spec)}, headers={"HX-Request": "true"}).text
        assert "checked as soon as there is room" in part
        assert 'hx-trigger="load delay:2s"' in part
    finally:
        submit.AT_ONCE.release(4)


# ---------------------------------------------------------------- submitting


def test_pressing_twice_makes_one_experiment_and_another_text_another(scene: Scene, spec: dict[str, Any]) -> None:
    form = {"text": written(spec).replace("\n", "\r\n"), "key": key_of(scene.http.get("/new").text)}

    def press(changes: dict[str, str]) -> str:
        answer = scene.http.post("/new", data=form | changes, follow_redirects=False)
        assert answer.status_code == 303, answer.text
        return answer.headers["location"]

    with ThreadPoolExecutor(4) as pool:
        places = set(pool.map(press, [{}] * 4))
    assert len(places) == num_experiments(scene) == 1
    [place] = places
    assert scene.http.get(place).status_code == 200
    other = press({"text": written(spec | {"name": "other"})})
    faces = press({"project": "faces"})
    assert len({place, other, faces}) == num_experiments(scene) == 3
    assert scene.http.get(f"/v1{faces}").json()["project"] == "faces"


def test_a_wrong_spec_is_refused_and_the_text_stays(scene: Scene, spec: dict[str, Any]) -> None:
    text = "# mine\n" + written(spec | {"seeds": 0})
    answer = scene.http.post("/new", data={"text": text, "key": "a1", "project": "faces"})
    assert answer.status_code == 422
    assert "# mine\n" in answer.text
    assert key_of(answer.text) == "a1"
    assert "<code>seeds</code>" in answer.text
    answer = scene.http.post("/new", data={"text": written(spec), "project": "No Project"})
    assert "<code>project</code>" in answer.text
    assert num_experiments(scene) == 0


def test_a_file_becomes_the_text(scene: Scene, spec: dict[str, Any]) -> None:
    text = "# größer\n" + written(spec)
    answer = scene.http.post("/new/file", files={"file": ("spec.yaml", text.encode())}, data={"project": "faces"})
    assert text.rstrip() in answer.text
    assert 'value="faces"' in answer.text
    answer = scene.http.post("/new/file", files={"file": ("image.png", b"\x89PNG\xff\xfe")})
    assert "The file is not text in UTF-8" in answer.text
    answer = scene.http.post("/new/file", files={"file": ("big.yaml", b"#" * (1 << 20))})
    assert "an experiment is a dozen lines" in answer.text


def test_again_with_changes_begins_with_the_spec(scene: Scene, spec: dict[str, Any]) -> None:
    id = scene.http.post("/v1/experiments?project=faces", json=spec).json()["id"]
    page = scene.http.get(f"/new?from={id}").text
    assert "factors:\n  mask_ratio: [0.75, 0.5]\nseeds: 2\nconcurrency: 100\n</textarea>" in page
    assert "placement" not in page
    assert 'value="faces"' in page
    assert f'href="/new?from={id}"' in scene.http.get(f"/experiments/{id}").text
    assert scene.http.get("/new?from=e0000000000").status_code == 404
    for example in "single", "teachers":
        assert f"/new?example={example}" in page or f"/new?example={example}" in scene.http.get("/new").text
        assert "name: " in scene.http.get(f"/new?example={example}").text
    assert "possible: single, teachers" in scene.http.get("/new?example=none").text


# ---------------------------------------------------------------- who may


def test_the_page_obeys_whom_the_api_obeys_and_one_can_log_out(tmp_path: Path, spec: dict[str, Any]) -> None:
    scene = Scene(Settings(work_dir=tmp_path, token=SecretStr("first")))
    admin, ours = {"Authorization": "Bearer first"}, {"Origin": "http://testserver"}

    def browser(name: str, scope: Scope, project: str | None = None) -> TestClient:
        body = {"name": name, "scope": scope, "project": project}
        secret = scene.http.post("/v1/tokens", json=body, headers=admin).json()["secret"]
        return TestClient(scene.app, cookies={COOKIE: secret}, follow_redirects=False)

    other = scene.http.post("/v1/experiments?project=other", json=spec, headers=admin).json()["id"]
    reader, mine = browser("ann", Scope.READ), browser("ben", Scope.SUBMIT, "faces")
    assert "/new" not in reader.get("/").text
    for answer in reader.get("/new"), reader.post("/new", data={"text": written(spec)}, headers=ours):
        assert answer.status_code == 403
        assert "This needs the scope submit" in answer.text
    assert mine.get(f"/new?from={other}").status_code == 404
    assert other not in mine.get("/").text
    for path in "/new", "/new/check", "/new/file", "/logout":
        assert mine.post(path, data={"text": "a: 1"}, headers={"Origin": "https://elsewhere.org"}).status_code == 403
    answer = mine.post("/new", data={"text": written(spec)}, headers=ours)
    assert answer.status_code == 303
    place = answer.headers["location"]
    assert scene.http.get(f"/v1{place}", headers=admin).json()["project"] == "faces"
    forged = mine.post("/new", data={"text": written(spec), "project": "other"}, headers=ours)
    assert forged.status_code == 403

    assert "token ben, project faces (submit)" in mine.get(place).text
    answer = mine.post("/logout", headers=ours)
    assert answer.headers["location"] == "/login"
    assert re.match(f'{COOKIE}="";.*Max-Age=0', answer.headers["set-cookie"])
    assert "Log out" not in TestClient(scene.app, headers=admin).get("/").text
    scene.db.engine.dispose()


class Fields(HTMLParser):
    """What a browser would send of the one form of a page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: dict[str, str] = {}
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        if tag == "input" and (name := given.get("name")):
            self.found[name] = given.get("value") or ""


def test_what_was_written_is_there_again_after_the_token_was_asked_for(tmp_path: Path, spec: dict[str, Any]) -> None:
    scene = Scene(Settings(work_dir=tmp_path, token=SecretStr("first")))
    text = written(spec) + "# <&\"'> größer\n\n"
    sent = {"text": text, "project": "faces", "key": "abc1"}
    asked = scene.http.post("/new", data=sent)
    assert asked.status_code == 401
    assert "What you have written is kept" in asked.text
    assert "größer" not in asked.headers.get("set-cookie", "")
    wrong = scene.http.post("/login", data=Fields(asked.text).found | {"token": "wrong"})
    assert wrong.status_code == 401
    form = Fields(wrong.text).found
    assert form == sent | {"token": "", "next": "/new"}

    # As a browser follows it: the same fields again, and the cookie.
    page = scene.http.post("/login", data=form | {"token": "first"})
    assert (page.status_code, page.url.path) == (200, "/new/check")
    assert text.rstrip() in html.unescape(page.text)
    assert key_of(page.text) == "abc1"
    assert "Nothing is wrong with it" in page.text
    assert num_experiments(scene) == 0, "shown, and not submitted"

    # What is too large to be kept is not said to be, and other forms are not sent twice.
    scene.http.cookies.clear()
    large = scene.http.post("/new", data={"text": "#" * MAX_KEPT_BYTES})
    assert (large.status_code, "is kept" in large.text) == (401, False)
    gone = scene.http.post("/login", data={"token": "first", "next": "/logout", "a": "1"}, follow_redirects=False)
    assert (gone.status_code, gone.headers["location"]) == (303, "/logout")
    hook = {"url": "http://127.0.0.1:9/", "events": ["ended", "failed"]}
    scene.http.cookies.clear()
    assert Fields(scene.http.post("/webhooks", data=hook).text).found["url"] == hook["url"]
    scene.db.engine.dispose()
