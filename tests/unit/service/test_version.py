"""Both ends of a connection know the other's version, and it is said once where they differ."""

import warnings
from collections.abc import Iterator
from typing import cast

import httpx2
import pytest
from typer.testing import CliRunner

from service import version
from service.cli.main import app as mcf
from service.client import Client, NoSuchThing
from service.connection import OtherVersion
from service.settings import Settings
from service.version import HEADER, VERSION, difference
from tests.unit.service.test_api import Scene


@pytest.fixture
def scene(settings: Settings) -> Iterator[Scene]:
    made = Scene(settings)
    yield made
    made.db.engine.dispose()


def test_every_answer_says_the_version_of_the_service(scene: Scene) -> None:
    for path in "/healthz", "/", "/v1/experiments", "/v1/experiments/e0", "/nowhere", "/static/nothing":
        assert scene.http.get(path).headers[HEADER] == VERSION
    assert scene.http.post("/v1/experiments", content=b"x" * 2_000_000).headers[HEADER] == VERSION
    assert scene.http.get("/openapi.json").json()["info"]["version"] == VERSION


@pytest.mark.parametrize(
    ("theirs", "said"),
    [
        ("0.1.0", "is mcf 0.1.0, older than this mcf .0.10.2.. .*update it to 0.10.2"),
        ("0.10.2.dev1", "another build"),
        ("0.11", "newer than this mcf .0.10.2.. Install mcf 0.11 here"),
        (None, "tells no version: it is older"),
        ("0.10.2", ""),
    ],
)
def test_it_is_said_which_end_is_older_and_what_to_do(
    theirs: str | None, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(version, "VERSION", "0.10.2")

    told = difference("http://there", theirs)
    assert bool(told) == bool(said)
    if said:
        with pytest.warns(OtherVersion, match=said):
            warnings.warn(told, OtherVersion, stacklevel=1)


def answering(*headers: dict[str, str], status: int = 200) -> httpx2.Client:
    answers = iter(headers)
    return httpx2.Client(
        base_url="http://there",
        transport=httpx2.MockTransport(lambda request: httpx2.Response(status, headers=next(answers), json={})),
    )


def test_a_client_warns_once_and_not_of_an_equal_service_nor_of_a_proxy(scene: Scene) -> None:
    client = Client("http://there")
    client._connection._http = answering({HEADER: "99.0"}, {HEADER: "99.0"})
    with pytest.warns(OtherVersion, match="99.0, newer") as caught:
        [client.ping() for _ in range(2)]
    assert len(caught) == 1
    told: list[str] = []
    client = Client("http://localhost", warn=told.append)
    client._connection._http = cast(httpx2.Client, scene.http)
    with pytest.raises(NoSuchThing):
        client.experiment("nothing")
    assert client.service_version() == VERSION
    client = Client("http://there", warn=told.append)
    client._connection._http = answering({}, status=502)
    with pytest.raises(Exception, match="502"):
        client.ping()
    assert told == []


def test_the_command_says_its_version_with_and_without_a_service() -> None:
    for words in ["--version", "--url", "http://127.0.0.1:9"], ["--url", "http://127.0.0.1:9", "--version"]:
        answer = CliRunner().invoke(mcf, words)
        assert answer.exit_code == 0
        assert answer.output.splitlines()[0] == f"mcf {VERSION}"
        assert "No service answers at http://127.0.0.1:9" in answer.output
