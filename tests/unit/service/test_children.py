"""What `mcf up` starts sees this machine and nothing of its shell's other errands."""

import http.server
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from service.cli import children
from service.cli.children import Child, _answers, clean_environment
from service.cli.home import Home
from service.cli.up import _children
from trainer.store import objects
from trainer.store.objects import StorageError, open_store

DEAD_PROXY = "http://127.0.0.1:9"


@pytest.fixture
def server() -> Iterator[str]:
    made = http.server.ThreadingHTTPServer(("127.0.0.1", 0), http.server.SimpleHTTPRequestHandler)
    threading.Thread(target=made.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{made.server_port}"
    made.shutdown()
    made.server_close()


@pytest.fixture
def proxied(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in "http_proxy", "HTTP_PROXY", "https_proxy", "HTTPS_PROXY":
        monkeypatch.setenv(name, DEAD_PROXY)
    for name in "no_proxy", "NO_PROXY":
        monkeypatch.delenv(name, raising=False)
    objects._s3.cache_clear()
    yield
    objects._s3.cache_clear()


@pytest.mark.usefixtures("proxied")
def test_no_proxy_stands_before_this_machine(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert _answers(server)
    for name, value in {"AWS_ENDPOINT_URL": server, "AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(StorageError) as caught:  # it is no S3 server, but it has answered
        open_store("s3://bucket").get("key")
    assert "proxy" not in str(caught.value).lower()


def test_children_get_no_settings_of_other_programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shell = {
        "MLFLOW_S3_ENDPOINT_URL": "http://elsewhere", "MLFLOW_TRACKING_URI": "http://elsewhere", "AWS_PROFILE": "work",
        "RCLONE_VFS_CACHE_MODE": "full", "MCF_TOKEN": "kept", "no_proxy": "corp",
    }  # fmt: skip
    for name, value in shell.items():
        monkeypatch.setenv(name, value)
    ours = Home(tmp_path).choose(s3=None)
    for child in _children(tmp_path, ours):
        foreign = {name for name in child.env if name.startswith(("MLFLOW_", "AWS_", "RCLONE_"))}
        assert not foreign & {"MLFLOW_S3_ENDPOINT_URL", "MLFLOW_TRACKING_URI", "AWS_PROFILE", "RCLONE_VFS_CACHE_MODE"}
        assert child.env["AWS_ENDPOINT_URL"] == ours.aws["AWS_ENDPOINT_URL"]
        assert child.env["MCF_TOKEN"] == "kept"
        assert child.env["no_proxy"] == "corp,127.0.0.1,::1,localhost"
    theirs = Home(tmp_path).choose(s3="s3://bucket")
    assert all(child.env["AWS_PROFILE"] == "work" for child in _children(tmp_path, theirs))
    assert clean_environment({})["NO_PROXY"] == "127.0.0.1,::1,localhost"


def test_a_program_that_does_not_answer_is_named_with_its_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(children, "SAY_AFTER_SECONDS", 0.0)
    child = Child("service", ["sleep", "60"], {}, tmp_path / "service.log", "http://127.0.0.1:9/healthz", "there")
    child.start()
    try:
        told = child.tick()
        assert told
        assert "http://127.0.0.1:9/healthz" in told
        assert "service.log" in told
        assert child.tick() is None
    finally:
        child.stop()


@pytest.mark.parametrize(
    ("name", "value"), [("AWS_ENDPOINT_URL", "127.0.0.1:9000"), ("AWS_PROFILE", "no-such-profile")]
)
def test_variables_that_make_no_client_are_told_in_words(
    name: str, value: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for other in "AWS_ENDPOINT_URL", "AWS_PROFILE":
        monkeypatch.delenv(other, raising=False)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    monkeypatch.setenv(name, value)
    objects._s3.cache_clear()
    store = open_store("s3://bucket")
    for ask in (lambda: store.get("key"), lambda: store.list(), lambda: list(store.scan()), lambda: store.stat("key")):
        with pytest.raises(StorageError, match=value):
            ask()
    objects._s3.cache_clear()
