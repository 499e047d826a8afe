"""How a page is made: templates, headers that let nothing foreign in, refusals as pages."""

import functools
import re
from collections.abc import Awaitable, Callable, Coroutine, Hashable, Mapping, Sequence
from contextvars import ContextVar
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

import anyio.to_thread
import jinja2
from fastapi import Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse
from fastapi.routing import APIRoute

from service import audit
from service.api.auth import COOKIE, LOCAL, Principal
from service.db import Database
from service.errors import ApiError, Unauthorized
from service.runs import service as runs
from service.text import age, duration, first_line, hours, metric_name, now_and_mean, percent, short, size

SECURITY = {
    "Content-Security-Policy": "default-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'",
    "Referrer-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",
}

MAX_KEPT_BYTES = 1 << 16
"""Of a form that comes without a good token: it goes to the browser and back, and a spec is a dozen lines."""
KEPT = re.compile(r"/new|/webhooks|/experiments/[^/?#]+/extend")
"""Addresses of the pages on which people write, and of their forms."""
Written = Sequence[tuple[str, str]]
"""Fields of a form, in order."""

_jinja = jinja2.Environment(
    loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"), autoescape=True,
    undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True,
)  # fmt: skip
_jinja.filters |= {
    "age": age,
    "duration": duration,
    "now_and_mean": now_and_mean,
    "percent": percent,
    "short": short,
    "first_line": first_line,
    "metric": metric_name,
    "hours": hours,
    "size": size,
}


MAX_PAGES, MAX_SLOW_PARTS = 4, 16
"""That are made at a time. A page is made by Python alone, which works on one at a time: more would only be in each
other's way. What is slow waits for others."""

WHO = "<!-- who is looking -->"
"""In a page's frame, where it says so; that is put in last, since the rest is the same for others."""
# Not everything that makes a page has a use for the request.
_looking: ContextVar[Request | None] = ContextVar("looking", default=None)
_for_others: ContextVar[bool] = ContextVar("for_others", default=False)
"""Whether others are to have the page, too: it leaves open who is looking."""


class PageRoute(APIRoute):
    """What the API answers with JSON, people get as a page: the token's form, or what went wrong."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def answer(request: Request) -> Response:
            before = _looking.set(request)
            try:
                return await handle(request)
            except Unauthorized as error:
                # Who has sent none is asked for it; who has sent one is told what is wrong with it.
                problem = error.detail if COOKIE in request.cookies else ""
                return token_form(_path(request), problem, await _written(request), 401)
            except ApiError as error:
                return error_page(error.status, error.detail)
            except RequestValidationError as error:
                if not wants_page(request):
                    raise
                wrong = ", ".join(sorted({f"{item['loc'][-1]}={str(item['input'])[:80]!r}" for item in error.errors()}))
                detail = f"This page cannot be opened with {wrong}: a part of its address is wrong or missing."
                return error_page(422, detail, path=request.url.path)
            finally:
                _looking.reset(before)

        return answer


def token_form(target: str, problem: str = "", written: Written = (), status: int = 200) -> HTMLResponse:
    """Asks for the token. What was sent without one goes along in the form, since the service keeps nothing of it."""
    return page("token.html", status, next=target, problem=problem, written=written)


def sent_again_to(target: str) -> str:
    """Where a form that was kept goes once the token is good; a spec is shown once more before it is submitted."""
    if not KEPT.fullmatch(target):
        return ""
    return "/new/check" if target == "/new" else target


def wants_page(request: Request) -> bool:
    """As browsers do; a program takes whatever comes."""
    return "text/html" in request.headers.get("accept", "")


def error_page(
    status: int, detail: str, headers: Mapping[str, str] | None = None, path: str | None = None
) -> HTMLResponse:  # fmt: skip
    """`path`: of a page that there is, for who came with a wrong address."""
    answer = page("error.html", status, problem=status, detail=detail, path=path)
    answer.headers.update(headers or {})
    return answer


class LastingPage(HTMLResponse):
    """Nothing of it changes by itself any more."""


def page(template: str, status: int = 200, *, lasts: bool = False, **values: Any) -> HTMLResponse:
    kind = LastingPage if lasts else HTMLResponse
    text = _jinja.get_template(template).render(**values)
    return kind(text if _for_others.get() else text.replace(WHO, _who()), status, SECURITY)


def part(request: Request, template: str, run_id: str, **values: Any) -> Response:
    """A part of the run's page that is asked for by itself: MLflow and the store may be slow, the page is not."""
    with request.app.state.db.read() as session:
        is_live = not runs.get(session, run_id).state.is_final
    return page(template, run_id=run_id, is_live=is_live, **values)


def polled(endpoint: Callable[..., Response], *, is_slow: bool = False) -> Callable[..., Awaitable[Response]]:
    """For what an open page asks for again every few seconds: one answer for all who may see the same.

    It is good for a few seconds, and for none once somebody has changed something.
    """

    @functools.wraps(endpoint)
    async def answer(request: Request, **asked: Any) -> Response:
        state = request.app.state

        async def made() -> Response:
            _for_others.set(True)  # in a task of its own
            limiter = state.slow_parts if is_slow else state.pages
            return await anyio.to_thread.run_sync(partial(endpoint, request=request, **asked), limiter=limiter)

        principal: Principal = request.state.principal
        changed = await anyio.to_thread.run_sync(_changed, state.db)
        key = (request.url.path, request.url.query, principal.project, principal.scope, changed)
        found = await state.polled.get(key, made, lambda response: isinstance(response, LastingPage))
        # What is on its way to one browser has headers of its own.
        return HTMLResponse(found.body.replace(WHO.encode(), _who().encode()), found.status_code, SECURITY)

    return answer


def _changed(db: Database) -> Hashable:
    with db.read() as session:
        return audit.state(session)


def slow(endpoint: Callable[..., Response]) -> Callable[..., Awaitable[Response]]:
    """As `polled`, for what waits for MLflow, the store or the cluster: it has threads of its own, so that the others
    go on when one of these is slow."""
    return polled(endpoint, is_slow=True)


def _who() -> str:
    """In HTML: whose token the browser has kept. Nothing where it keeps none, or none is needed, or only a part of the
    page is asked for."""
    request = _looking.get()
    if not request or COOKIE not in request.cookies or _is_part(request):
        return ""
    found: Principal | None = getattr(request.state, "principal", None)
    if found in (None, LOCAL):
        return ""
    return _jinja.get_template("_who.html").render(principal=found)


def _is_part(request: Request) -> bool:
    return "hx-request" in request.headers


def _path(request: Request) -> str:
    """Where to go on after the token; a part of a page is no place to go to, and few of what forms send to are."""
    if _is_part(request):
        return "/"
    if request.method == "GET":
        return _asked(request)
    return _page_of_form(request) or "/"


def _page_of_form(request: Request) -> str:
    path = request.url.path.removesuffix("/check")
    return path if KEPT.fullmatch(path) else ""


async def _written(request: Request) -> Written:
    size = request.headers.get("content-length", "")
    is_kept = request.method == "POST" and not _is_part(request) and _page_of_form(request)
    if not is_kept or not size.isdecimal() or int(size) > MAX_KEPT_BYTES:
        return ()
    return parse_qsl((await request.body()).decode("utf-8", "replace"), keep_blank_values=True)


def _asked(request: Request) -> str:
    """With its query: which experiments of the list, which two side by side."""
    return f"{request.url.path}?{request.url.query}" if request.url.query else request.url.path
