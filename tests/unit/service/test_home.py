"""The folder of an `mcf up`: ports and keys are chosen once, and one `mcf up` has it to itself."""

import os
import socket
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from service.cli.home import AlreadyUp, Home, Up, reach
from service.cli.up import _children
from service.client import Client, ServiceAway
from service.db import Database
from service.settings import Settings


def test_the_next_up_has_the_same_addresses_and_keys(tmp_path: Path) -> None:
    first = Home(tmp_path).choose(s3=None)
    assert Home(tmp_path).choose(s3=None) == first
    assert len({first.url, first.tracking_uri, first.aws["AWS_ENDPOINT_URL"]}) == 3
    assert stat.S_IMODE((tmp_path / "up.json").stat().st_mode) == 0o600


def test_an_address_that_is_taken_meanwhile_is_replaced_and_the_others_stay(tmp_path: Path) -> None:
    first = Home(tmp_path).choose(s3=None)
    with socket.create_server(("127.0.0.1", int(first.url.rpartition(":")[2]))):
        second = Home(tmp_path).choose(s3=None)
    assert second.url != first.url
    assert second.tracking_uri == first.tracking_uri
    assert second.aws == first.aws


def test_somebody_elses_store_gets_no_keys_of_ours(tmp_path: Path) -> None:
    found = Home(tmp_path).choose(s3="s3://bucket/prefix/")
    assert (found.store, found.aws) == ("s3://bucket/prefix", {})


def test_a_folder_in_use_is_refused_with_the_address_of_who_uses_it(tmp_path: Path) -> None:
    first = Home(tmp_path)
    assert not first.is_taken()
    first.take()
    url = first.choose(s3=None).url
    assert Home(tmp_path).is_taken()
    with pytest.raises(AlreadyUp, match=url):
        Home(tmp_path).take()


def serving(folder: Path) -> tuple[Home, Up]:
    """As an `mcf up` that runs in the folder leaves it."""
    folder.mkdir()
    home = Home(folder)
    home.take()
    up = home.choose(s3=None)
    home.can_be_found(up, yes=True)
    return home, up


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder without an `mcf up`, in a shell that is set up for another object store."""
    monkeypatch.setenv("MCF_CACHE_DIR", str(tmp_path / "cache"))
    for name in "MCF_URL", "MLFLOW_TRACKING_URI":
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_PROFILE", "work")
    before = dict(os.environ)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    yield tmp_path
    os.environ.clear()
    os.environ.update(before)


@pytest.mark.parametrize("place", ["elsewhere/.mcf", "other"])
def test_a_command_has_the_keys_of_the_store_of_the_mcf_up_that_it_talks_to(elsewhere: Path, place: str) -> None:
    _, up = serving(elsewhere / place)
    reach(Client, "s3://mcf-other/runs/r0", "/data/WFLW", None)
    assert os.environ["AWS_PROFILE"] == "work"
    reach(Client, "/data/WFLW", "s3://mcf/runs/r0123456789ab")
    assert up.aws.items() <= os.environ.items()
    assert "AWS_PROFILE" not in os.environ


def test_another_service_s_store_gets_no_keys_of_the_mcf_up_here(elsewhere: Path) -> None:
    serving(elsewhere / "elsewhere/.mcf")
    _, other = serving(elsewhere / "other")
    reach(lambda: Client("https://mcf.example.org"), "s3://mcf/runs/r0123456789ab")
    assert os.environ["AWS_PROFILE"] == "work"
    reach(lambda: Client(other.url.replace("127.0.0.1", "localhost")), "s3://mcf/runs/r0123456789ab")
    assert other.aws.items() <= os.environ.items()


def test_a_name_in_mlflow_is_looked_up_where_the_mcf_up_keeps_its_own(
    elsewhere: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, up = serving(elsewhere / "other")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://mlflow.example.org")
    reach(Client, "models:/faces@best")
    assert "AWS_ENDPOINT_URL" not in os.environ
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    reach(Client, "models:/faces@best")
    assert os.environ["MLFLOW_TRACKING_URI"] == up.tracking_uri
    assert os.environ["AWS_ENDPOINT_URL"] == up.aws["AWS_ENDPOINT_URL"]


def test_the_only_mcf_up_that_runs_is_found_from_any_folder(elsewhere: Path) -> None:
    with pytest.raises(ServiceAway, match=r"no \.mcf/up\.json here"):
        Client()
    home, up = serving(elsewhere / "one")
    assert Client().url == up.url
    other, _ = serving(elsewhere / "two")
    with pytest.raises(ServiceAway, match=f"Several run: .*{up.url}"):
        Client()
    # One that was killed holds its folder no more.
    assert other._lock is not None
    os.close(other._lock)
    assert Client().url == up.url
    home.can_be_found(up, yes=False)
    with pytest.raises(ServiceAway):
        Client()


@pytest.mark.parametrize("name", ["a?b", "a%20b", "a#b c", "50%"])
def test_databases_are_in_the_folder_whatever_it_is_called(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / name
    folder.mkdir()
    children = {child.name: child for child in _children(folder, Home(folder).choose(s3=None))}
    database = Database(children["service"].env["MCF_DATABASE_URL"])
    database.migrate()
    database.engine.dispose()
    for field in "MCF_HOST", "MCF_PORT", "MCF_DATABASE_URL":
        monkeypatch.delenv(field, raising=False)
    plain = Database(Settings(work_dir=folder / "work").database)
    plain.migrate()
    plain.engine.dispose()
    assert (folder / "mcf.db").stat().st_size > 0
    assert (folder / "work" / "mcf.db").stat().st_size > 0
    assert list(tmp_path.iterdir()) == [folder]
    assert (children["MLflow"].folder, "sqlite:///mlflow.db" in children["MLflow"].command) == (folder, True)


def test_user_code_is_allowed_on_a_machine_of_ones_own_unless_one_says_no(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def allowed() -> bool:
        service = _children(tmp_path, Home(tmp_path).choose(s3=None))[-1]
        return Settings(user_code=service.env["MCF_USER_CODE"]).user_code

    monkeypatch.delenv("MCF_USER_CODE", raising=False)
    assert allowed()
    monkeypatch.setenv("MCF_USER_CODE", "false")
    assert not allowed()
