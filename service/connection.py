"""HTTP to one service: finding it, asking it, and saying in words what went wrong.

McfError             what went wrong, in words for people
├── ServiceAway      nobody answers at the address
├── Untrusted        somebody answers there, with a certificate that nobody here vouches for
├── Refused          the service said no; has .status, .error, .problems
└── NoSuchThing      no experiment or run goes by that name
    └── Ambiguous    several do
"""

import fcntl
import json
import os
import ssl
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

import httpx2
from pydantic import BaseModel

from service.version import HEADER, difference
from trainer.contract import Problem
from trainer.store.cachedir import cache_folder

CA_FILES = ("SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE")
UP_FILE, UP_LOCK = Path(".mcf/up.json"), "up.lock"
# Below the cache folder: the folder of each `mcf up` that this user runs, by the port of its service.
UPS = "up"
# A service that was killed is back within seconds, and answers for the same experiments.
SERVICE_BACK_SECONDS = 60.0

Answer = TypeVar("Answer", bound=BaseModel)
Result = TypeVar("Result")


class McfError(Exception):
    """Base of everything the client raises on purpose."""


class ServiceAway(McfError):
    """Nobody answers at the address."""


class Untrusted(McfError):
    """The certificate of the service cannot be verified, or the files to verify it with cannot be read."""


class NoSuchThing(McfError):
    """No experiment or run goes by that name, or what is asked for of one is not there."""


class Ambiguous(NoSuchThing):
    """Several experiments or runs go by that name; the text lists the newest of them."""


class Refused(McfError):
    """The service said no, and why."""

    def __init__(self, status: int, error: str, detail: str, problems: Sequence[Problem] = ()) -> None:
        super().__init__(detail)
        self.status, self.error, self.problems = status, error, list(problems)


class OtherVersion(UserWarning):
    """The service is of another version than this mcf."""


def _warn(text: str) -> None:
    warnings.warn(text, OtherVersion, stacklevel=2)


class ServiceConnection:
    def __init__(
        self, url: str | None, token: str | None, timeout_seconds: float, warn: Callable[[str], None] = _warn
    ) -> None:  # fmt: skip
        """`warn`: told once if the service is of another version. Raises ServiceAway, Untrusted."""
        found, found_token = (url, None) if url else _find_service()
        self.url = found.rstrip("/")
        token = token or os.environ.get("MCF_TOKEN") or found_token
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        self._has_answered = False
        self._warn = warn
        self._looked_at_version = False
        # The environment's proxies are not for a service next door.
        verify = _trusted() if self.url.startswith("https://") else True
        self._http = httpx2.Client(
            base_url=self.url, headers=headers, timeout=timeout_seconds, trust_env=False, verify=verify
        )

    def get(self, model: type[Answer], path: str, **params: Any) -> Answer:
        return model.model_validate_json(self.call("GET", path, params=given(**params)).content)

    def call(self, method: str, path: str, **options: Any) -> httpx2.Response:
        with self._errors():
            answer = self._http.request(method, path, **options)
        self._has_answered = True
        self._look_at_version(answer)
        if answer.is_error:
            raise _refusal(answer)
        return answer

    def events(self, path: str, **params: Any) -> Iterator[tuple[str, str]]:
        """Server-sent events as (name, text); the text is what was sent as JSON."""
        with self.stream(path, params=params, timeout=None) as answer:
            name = ""
            for line in answer.iter_lines():
                field, _, value = line.partition(": ")
                if field == "event":
                    name = value
                elif field == "data":
                    yield name, json.loads(value)

    @contextmanager
    def stream(self, path: str, headers: Mapping[str, str] | None = None, **options: Any) -> Iterator[httpx2.Response]:
        """An answer that is read as it comes. Raises Refused, and ServiceAway also where it breaks off."""
        request = self._http.build_request("GET", path, headers=headers, **options)
        with self._errors():
            answer = self._http.send(request, stream=True)
            self._look_at_version(answer)
            try:
                if answer.is_error:
                    answer.read()
                    raise _refusal(answer)
                yield answer
            finally:
                answer.close()

    def patiently(self, call: Callable[[], Result]) -> Result:
        """The call's result, asked for again while a service that was there is being started anew.

        Only for calls that may be done twice.
        """
        deadline = time.monotonic() + SERVICE_BACK_SECONDS
        while True:
            try:
                return call()
            except ServiceAway:
                if not self._has_answered or time.monotonic() > deadline:
                    raise
                time.sleep(0.5)

    def _look_at_version(self, answer: httpx2.Response) -> None:
        theirs = answer.headers.get(HEADER)
        # What has no version and went wrong may be a proxy's answer.
        if self._looked_at_version or (theirs is None and answer.is_error):
            return
        self._looked_at_version = True
        if told := difference(self.url, theirs):
            self._warn(told)

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except httpx2.TransportError as error:
            if refused := _certificate_error(error):
                raise Untrusted(
                    f"{self.url} shows a certificate that is not trusted here ({refused.verify_message}).\n"
                    f"If it is of a CA of your own, set {CA_FILES[0]} to a file with the CA's certificate."
                ) from error
            raise ServiceAway(
                f"No service answers at {self.url} ({error or type(error).__name__}).\n"
                "Start one with `mcf up`, or give another address with --url or MCF_URL."
            ) from error


def _trusted() -> ssl.SSLContext:
    """The system's certificates, and those that the environment names. Raises Untrusted."""
    context = httpx2.create_ssl_context(trust_env=False)
    for name in CA_FILES:
        if path := os.environ.get(name):
            try:
                context.load_verify_locations(*((None, path) if os.path.isdir(path) else (path,)))
            except OSError as error:
                told = f"{name}={path}: {error.strerror or error}. It names a file of PEM certificates."
                raise Untrusted(told) from error
    return context


def _certificate_error(error: BaseException | None) -> ssl.SSLCertVerificationError | None:
    while error:
        if isinstance(error, ssl.SSLCertVerificationError):
            return error
        error = error.__cause__ or error.__context__
    return None


def _find_service() -> tuple[str, str | None]:
    """Address and token of the service that is meant when none is named."""
    if url := os.environ.get("MCF_URL"):
        return url, None
    files = [UP_FILE] if UP_FILE.exists() else [folder / UP_FILE.name for folder in ups()]
    found = {up["url"]: up["token"] for up in (json.loads(file.read_text()) for file in files)}
    if len(found) == 1:
        return found.popitem()
    known = f"Several run: {', '.join(sorted(found))}" if found else "Start one with `mcf up`"
    raise ServiceAway(
        f"No service is known: there is no {UP_FILE} here and MCF_URL is not set.\n"
        f"{known}, or give its address with --url or MCF_URL."
    )


def up_place(url: str) -> Path:
    """Where the `mcf up` of this service leaves a link to its folder while it runs."""
    return cache_folder() / UPS / str(urlsplit(url).port)


def ups() -> list[Path]:
    """The folders of those that run."""
    return [link for link in (cache_folder() / UPS).glob("*") if (link / UP_FILE.name).exists() and _runs(link)]


def _runs(folder: Path) -> bool:
    """One that was killed has left its link, and cannot hold its folder any more."""
    with (folder / UP_LOCK).open("rb") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def _refusal(answer: httpx2.Response) -> Refused:
    try:
        body = answer.json()
        problems = [Problem.model_validate(item) for item in body.get("problems", [])]
        return Refused(answer.status_code, body["error"], body["detail"], problems)
    except (ValueError, KeyError, AttributeError):
        # Not ours: a proxy between us and the service, or a server error.
        return Refused(
            answer.status_code, "http_error", f"{answer.request.url} answered {answer.status_code}: {answer.text[:200]}"
        )


def given(**params: Any) -> dict[str, Any]:
    return {name: value for name, value in params.items() if value is not None}
