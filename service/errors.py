"""What the API refuses, and how it says so: {"error": name, "detail": what was asked, what is possible, what to do}.

ApiError
├── Unauthorized         401  no token, or one that is not good (any more)
├── Forbidden            403  the token's scope is too small, or it is another project's
├── NotFound             404  no such experiment or run
├── Conflict             409  the request is fine, the state of things is not
│   ├── KeyReused             an Idempotency-Key with another body
│   ├── NothingToRetry        no failed run
│   ├── AlreadyEnded          cancelling what has ended
│   ├── NotExtendable         it was cancelled, or what it was trained on is not what it was
│   └── NothingToDraw         a figure of numbers that are not there
├── BodyTooLarge         413
├── InvalidSpec          422  a spec with problems, all of them listed
├── UnreadableBody       422  not JSON or YAML, or no object
└── Unavailable          503  MLflow or the store does not answer
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel
from starlette.exceptions import HTTPException

from trainer.contract import Problem


class ErrorBody(BaseModel):
    """Body of every refusal."""

    error: str
    detail: str
    problems: list[Problem] = []


class ApiError(Exception):
    status: ClassVar[int]
    headers: ClassVar[Mapping[str, str]] = {}

    def __init__(self, detail: str, *, problems: Sequence[Problem] = ()) -> None:
        super().__init__(detail)
        self.detail = detail
        self.problems = list(problems)

    @property
    def error(self) -> str:
        return re.sub(r"(?<!^)(?=[A-Z])", "_", type(self).__name__).lower()


class Unauthorized(ApiError):
    status = 401
    headers: ClassVar[Mapping[str, str]] = {"WWW-Authenticate": "Bearer"}


class Forbidden(ApiError):
    status = 403


class NotFound(ApiError):
    status = 404


class Conflict(ApiError):
    status = 409


class KeyReused(Conflict):
    pass


class NothingToRetry(Conflict):
    pass


class AlreadyEnded(Conflict):
    pass


class NotExtendable(Conflict):
    pass


class NothingToDraw(Conflict):
    pass


class BodyTooLarge(ApiError):
    status = 413


class InvalidSpec(ApiError):
    status = 422


class UnreadableBody(ApiError):
    status = 422


class Unavailable(ApiError):
    status = 503


def responses(*kinds: type[ApiError]) -> dict[int | str, dict[str, Any]]:
    """For a route's `responses`: which refusals it knows."""
    return {kind.status: {"model": ErrorBody, "description": kind.__name__} for kind in kinds}


def install(app: FastAPI) -> None:
    app.add_exception_handler(ApiError, _api_error)
    app.add_exception_handler(RequestValidationError, _invalid_request)
    app.add_exception_handler(HTTPException, _http_error)


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


def _http_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    name = {404: "not_found", 405: "method_not_allowed"}.get(error.status_code, "http_error")
    detail = f"{request.method} {request.url.path}: {error.detail}. The API is described at /docs"
    return _answer(error.status_code, name, detail, headers=dict(error.headers or {}))


def _answer(
    status: int, error: str, detail: str, problems: Sequence[Problem] = (), headers: Mapping[str, str] | None = None
) -> JSONResponse:
    body = ErrorBody(error=error, detail=detail, problems=list(problems)).model_dump(mode="json")
    return JSONResponse(body, status, headers)
