"""What people get as a page at addresses that are no page, or that are wrong in part; programs get JSON there."""

from fastapi import FastAPI, Request, Response
from starlette.exceptions import HTTPException

from service.api import refusals
from service.pages.render import error_page, wants_page

FOR_PROGRAMS = ("v1", "metrics", "healthz", "readyz", "docs", "redoc", "openapi.json", "static", "static-offline-docs")


def install(app: FastAPI) -> None:
    """After api/refusals.py."""
    app.add_exception_handler(HTTPException, _http_error)


def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    if request.url.path.split("/")[1] in FOR_PROGRAMS or not wants_page(request):
        return refusals.http_error(request, error)
    said = {404: "There is no page {path!r}.", 405: "{path!r} is no page to open; a form sends to it."}
    detail = said.get(error.status_code, "{detail}.").format(path=request.url.path[:200], detail=error.detail)
    return error_page(error.status_code, detail, error.headers)
