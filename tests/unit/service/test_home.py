"""The folder of an `mcf up`: ports and keys are chosen once, and one `mcf up` has it to itself."""

import socket
import stat
from pathlib import Path

import pytest

from service.cli.evaluate import _environment
from service.cli.home import AlreadyUp, Home
from service.cli.up import _children
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


def test_mcf_evaluate_has_the_keys_of_the_store_that_mcf_up_keeps_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("AWS_PROFILE", "work")
    assert _environment(["s3://mcf/runs/r0123456789ab"])["AWS_PROFILE"] == "work"
    Path(".mcf").mkdir()
    up = Home(Path(".mcf")).choose(s3=None)
    found = _environment(["s3://mcf/runs/r0123456789ab", "/data/WFLW"])
    assert up.aws.items() <= found.items()
    assert "AWS_PROFILE" not in found
    # What is elsewhere is reached as the shell says.
    assert _environment(["s3://mcf-other/runs/r0", "/data/WFLW"])["AWS_PROFILE"] == "work"
    Home(Path(".mcf")).choose(s3="s3://bucket")
    assert _environment(["s3://bucket/runs/r0123456789ab"])["AWS_PROFILE"] == "work"


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
