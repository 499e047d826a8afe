"""A copy of one kind of object, kept up to date by the API server: listed once, then watched.

Asking for each attempt again and again would cost the API server as many requests as there are attempts; a watch
costs one request every few minutes, and news is here within a moment. The client's own informer is not used: it
takes no plain objects, and asks a server that is away without a pause.
"""

import contextlib
import json
import random
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from http import HTTPStatus
from typing import Any, Protocol

import structlog
import urllib3
from kubernetes.client.exceptions import ApiException

from k8s.pods import Object

log = structlog.get_logger()

# The server ends a watch after so long, and it is taken up again where it was. On a line that has gone dead nothing is
# heard any more, not even that end: then the watch is given up a little later.
WATCH_SECONDS, SLACK_SECONDS = 120, 15
LIST_SECONDS = 30
# Pauses while the server does not answer; each is drawn anew, so that many services do not ask in step.
FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 0.5, 15.0


class Lister(Protocol):
    """A list method of kubernetes' client; with `watch=True` it gives a stream of changes."""

    def __call__(self, **options: Any) -> Any: ...


class Gone(Exception):
    """The server does not remember what has changed since: everything has to be listed anew."""


class Watched:
    """The objects of one list, by name. Any thread may read; one thread of its own keeps it up to date."""

    def __init__(
        self,
        what: str,
        lister: Lister,
        changed: Callable[[Object], None] | None = None,
        label: str = "",
        kept: Callable[[Object], Object] = lambda found: found,
    ) -> None:
        """`changed` is called from that thread with every object that is new, other or gone.

        `label`: objects are found by its value, too; a label that does not change while an object lives. `kept`: what
        of an object is kept, since those of an attempt that has ended stay for a day.
        """
        self._what, self._lister, self._kept = what, lister, kept
        self._changed = changed or (lambda found: None)
        self._objects: dict[str, Object] = {}
        self._label = label
        # Value of the label -> the objects that have it, by name.
        self._labelled: dict[str, dict[str, Object]] = {}
        self._version = ""
        self._listed, self._stopping = threading.Event(), threading.Event()
        self._stream: Any = None
        self._thread = threading.Thread(target=self._run, name=f"watch {what}", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stopping.set()
        if stream := self._stream:
            # It may have ended by itself meanwhile.
            with contextlib.suppress(OSError, ValueError, RuntimeError):
                stream.shutdown()

    def wait(self, seconds: float) -> bool:
        """Whether everything has been listed once, at the latest after `seconds`."""
        return self._listed.wait(seconds)

    def get(self, name: str) -> Object | None:
        return self._objects.get(name)

    def all(self) -> list[Object]:
        return list(self._objects.values())

    def labelled(self, value: str) -> list[Object]:
        """Those whose label has this value."""
        return list(self._labelled.get(value, {}).values())

    def put(self, found: Object) -> None:
        """What has just been created, which the watch will tell of in a moment; it is found by its name alone."""
        self._objects.setdefault(found["metadata"]["name"], found)

    def _run(self) -> None:
        pause = FIRST_PAUSE_SECONDS
        while not self._stopping.is_set():
            try:
                if not self._version:
                    self._list()
                self._follow()
                pause = FIRST_PAUSE_SECONDS
            except Gone:
                self._version = ""
            except Exception as error:
                # Whatever it was: without this thread the copy would stand still, and everybody would believe it.
                if self._stopping.is_set():
                    return
                known = isinstance(error, ApiException | urllib3.exceptions.HTTPError | OSError | ValueError)
                tell = log.warning if known else log.exception
                tell("watch interrupted", what=self._what, error=_short(error), again_in=round(pause, 1))
                # A line that broke is taken up again where it was. Else what failed may have been the version itself.
                if not known or isinstance(error, ApiException):
                    self._version = ""
                self._stopping.wait(pause * random.uniform(0.5, 1.0))
                pause = min(2 * pause, LONGEST_PAUSE_SECONDS)

    def _list(self) -> None:
        answer = self._lister(_preload_content=False, _request_timeout=LIST_SECONDS)
        with contextlib.closing(answer):
            found = json.loads(answer.data)
        before = self._objects
        self._objects = {each["metadata"]["name"]: self._kept(each) for each in found["items"]}
        labelled: dict[str, dict[str, Object]] = {}
        for name, each in self._objects.items():
            labelled.setdefault(self._value(each), {})[name] = each
        self._labelled = labelled
        self._version = found["metadata"]["resourceVersion"]
        self._listed.set()
        for name, each in self._objects.items():
            if name not in before or _version(before[name]) != _version(each):
                self._changed(each)
        for name in before.keys() - self._objects.keys():
            self._changed(before[name])

    def _follow(self) -> None:
        """Returns when the server ends the watch; raises Gone, and whatever the line raises."""
        answer = self._lister(
            watch=True, resource_version=self._version, allow_watch_bookmarks=True, timeout_seconds=WATCH_SECONDS,
            _preload_content=False, _request_timeout=(LIST_SECONDS, WATCH_SECONDS + SLACK_SECONDS),
        )  # fmt: skip
        self._stream = answer
        began = time.monotonic()
        try:
            for line in _lines(answer):
                self._take(json.loads(line))
        finally:
            self._stream = None
            answer.close()
        # A server that ends every watch at once must not be asked a hundred times a second.
        if time.monotonic() - began < 1:
            self._stopping.wait(1)

    def _take(self, event: Mapping[str, Any]) -> None:
        kind, found = event["type"], event["object"]
        if kind == "ERROR":
            if found.get("code") == HTTPStatus.GONE:
                raise Gone
            raise ApiException(status=found.get("code"), reason=found.get("message"))
        self._version = found["metadata"]["resourceVersion"]
        if kind == "BOOKMARK":
            return
        name, value = found["metadata"]["name"], self._value(found)
        if kind == "DELETED":
            self._objects.pop(name, None)
            of_value = self._labelled.get(value, {})
            of_value.pop(name, None)
            if not of_value:
                self._labelled.pop(value, None)
        else:
            found = self._kept(found)
            self._objects[name] = found
            self._labelled.setdefault(value, {})[name] = found
        self._changed(found)

    def _value(self, found: Object) -> str:
        return str(found["metadata"].get("labels", {}).get(self._label, ""))


def _lines(answer: Any) -> Iterator[bytes]:
    rest = b""
    for chunk in answer.stream(decode_content=True):
        *lines, rest = (rest + chunk).split(b"\n")
        yield from filter(None, lines)


def _version(found: Object) -> Any:
    return found["metadata"].get("resourceVersion")


def _short(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0][:200]
