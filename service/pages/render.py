"""How a page is made: templates, headers that let nothing foreign in, refusals as pages."""

from collections.abc import Callable, Coroutine
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import jinja2
from fastapi import Request, Response
from fastapi.responses import HTMLResponse
from fastapi.routing import APIRoute

from service.api.auth import COOKIE, LOCAL, Principal
from service.errors import ApiError, Unauthorized
from service.runs import service as runs
from service.text import age, duration, first_line, hours, metric_name, now_and_mean, percent, short, size

SECURITY = {
    "Content-Security-Policy": "default-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'",
    "Referrer-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",
}

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


# Every page says who is looking, and not every part of one has a use for the request.
_looking: ContextVar[Request | None] = ContextVar("looking", default=None)


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
                return page("token.html", 401, next=_path(request), problem=problem)
            except ApiError as error:
                return page("error.html", error.status, error=error)
            finally:
                _looking.reset(before)

        return answer


def page(template: str, status: int = 200, **values: Any) -> HTMLResponse:
    text = _jinja.get_template(template).render(logged_in=_logged_in(), **values)
    return HTMLResponse(text, status, SECURITY)


def part(request: Request, template: str, run_id: str, **values: Any) -> Response:
    """A part of the run's page that is asked for by itself: MLflow and the store may be slow, the page is not."""
    with request.app.state.db.read() as session:
        is_live = not runs.get(session, run_id).state.is_final
    return page(template, run_id=run_id, is_live=is_live, **values)


def _logged_in() -> Principal | None:
    """Whose token it is that the browser has kept; None where it keeps none, or none is needed."""
    request = _looking.get()
    found: Principal | None = getattr(request.state, "principal", None) if request else None
    return found if request and COOKIE in request.cookies and found is not LOCAL else None


def _path(request: Request) -> str:
    """Where to go on after the token; a part of a page, or what a form sends, is no place to go to."""
    return "/" if "hx-request" in request.headers or request.method != "GET" else request.url.path
