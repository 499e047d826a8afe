"""Refusals as JSON: {"error": name, "detail": what was asked, what is possible, what to do}."""

from collections.abc import Mapping, Sequence
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel
from starlette.exceptions import HTTPException

from service.errors import ApiError
from trainer.contract import Problem


class ErrorBody(BaseModel):
    """Body of every refusal."""

    error: str
    detail: str
    problems: list[Problem] = []


def responses(*kinds: type[ApiError]) -> dict[int | str, dict[str, Any]]:
    """For a route's `responses`: which refusals it knows."""
    return {kind.status: {"model": ErrorBody, "description": kind.__name__} for kind in kinds}


def install(app: FastAPI) -> None:
    app.add_exception_handler(ApiError, _api_error)
    app.add_exception_handler(RequestValidationError, _invalid_request)
    app.add_exception_handler(HTTPException, http_error)


def _api_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, ApiError)
    return _answer(error.status, error.error, error.detail, error.problems, error.headers)


def _invalid_request(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    problems = [
        Problem(field=".".join(map(str, item["loc"][1:])), asked=repr(item["input"])[:120], possible=item["msg"])
        for item in error.errors()
    ]
    return _answer(422, "invalid_request", "; ".join(map(str, problems)), problems)


def http_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    name = {404: "not_found", 405: "method_not_allowed", 413: "body_too_large"}.get(error.status_code, "http_error")
    detail = f"{request.method} {request.url.path}: {error.detail}. The API is described at /docs"
    return _answer(error.status_code, name, detail, headers=dict(error.headers or {}))


def _answer(
    status: int, error: str, detail: str, problems: Sequence[Problem] = (), headers: Mapping[str, str] | None = None
) -> JSONResponse:
    body = ErrorBody(error=error, detail=detail, problems=list(problems)).model_dump(mode="json")
    return JSONResponse(body, status, headers)
