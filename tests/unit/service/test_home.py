"""The folder of an `mcf up`: ports and keys are chosen once, and one `mcf up` has it to itself."""

import socket
import stat
from pathlib import Path

import pytest

from service.cli.home import AlreadyUp, Home


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
