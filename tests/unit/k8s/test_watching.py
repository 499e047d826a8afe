"""A watch goes on whatever it meets: a copy that stands still would be believed for ever."""

import json
import threading
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from k8s import watching
from k8s.watching import Watched


def _object(name: str, version: str) -> dict[str, Any]:
    return {"metadata": {"name": name, "resourceVersion": version}}


class Server:
    """Lists what there is; its watches tell the next events of those that the test has put in, and then are silent."""

    def __init__(self, *watches: list[dict[str, Any]]) -> None:
        self.objects = [_object("a", "1")]
        self.watches, self.lists = list(watches), 0

    def __call__(self, *, watch: bool = False, **options: Any) -> Any:
        if not watch:
            self.lists += 1
            listed = {"items": self.objects, "metadata": {"resourceVersion": str(self.lists)}}
            return SimpleNamespace(data=json.dumps(listed), close=lambda: None)
        return SimpleNamespace(stream=self._stream, close=lambda: None, shutdown=lambda: None)

    def _stream(self, **options: Any) -> Iterator[bytes]:
        if self.watches:
            yield "".join(json.dumps(event) + "\n" for event in self.watches.pop(0)).encode()
        threading.Event().wait(0.2)


@pytest.fixture(autouse=True)
def _fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watching, "FIRST_PAUSE_SECONDS", 0.01)


def _wait_for(condition: Any) -> None:
    for _ in range(500):
        if condition():
            return
        threading.Event().wait(0.01)
    raise AssertionError("did not happen")


def test_an_object_without_a_name_is_logged_and_everything_is_listed_anew() -> None:
    server = Server([{"type": "ADDED", "object": {"metadata": {"resourceVersion": "2"}}}])
    watched = Watched("jobs", server)
    watched.start()
    _wait_for(lambda: watched.get("a"))
    server.objects.append(_object("b", "3"))
    _wait_for(lambda: watched.get("b"))
    watched.stop()


def test_so_is_an_error_of_who_is_told() -> None:
    told: list[str] = []

    def changed(found: dict[str, Any]) -> None:
        told.append(found["metadata"]["name"])
        if len(told) == 2:
            server.objects.append(_object("c", "9"))
            raise TypeError("a slip of ours")

    server = Server([{"type": "ADDED", "object": _object("b", "2")}])
    watched = Watched("jobs", server, changed)
    watched.start()
    _wait_for(lambda: "c" in told)
    watched.stop()


def test_what_has_a_label_is_found_by_it_through_changes_and_lists() -> None:
    def of(attempt: str, name: str, version: str) -> dict[str, Any]:
        return {"metadata": {"name": name, "resourceVersion": version, "labels": {"attempt": attempt}}}

    def names(attempt: str) -> list[str]:
        return sorted(each["metadata"]["name"] for each in watched.labelled(attempt))

    changes = [("ADDED", of("one", "w1", "2")), ("MODIFIED", of("one", "w0", "3")), ("DELETED", of("two", "x", "4"))]
    server = Server([{"type": kind, "object": each} for kind, each in changes])
    server.objects = [of("one", "w0", "1"), of("two", "x", "1")]
    watched = Watched("pods", server, label="attempt")
    watched.start()
    _wait_for(lambda: names("two") == [] and watched.get("w0"))
    assert names("one") == ["w0", "w1"]
    assert {each["metadata"]["resourceVersion"] for each in watched.labelled("one")} == {"2", "3"}
    # All is listed anew: what has gone meanwhile is found no more.
    server.objects = [of("two", "y", "9")]
    server.watches.append([{"type": "ERROR", "object": {"code": 410}}])
    _wait_for(lambda: names("two") == ["y"])
    assert names("one") == []
    watched.stop()
