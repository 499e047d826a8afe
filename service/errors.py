"""What the service refuses; the text says what was asked, what is possible and what to do (as JSON: api/refusals.py).

ApiError
├── Unauthorized         401  no token, or one that is not good (any more)
├── Forbidden            403  the token's scope is too small, or it is another project's
├── NotFound             404  no such experiment or run
├── Conflict             409  the request is fine, the state of things is not
│   ├── KeyReused             an Idempotency-Key with another body
│   ├── NothingToRetry        no failed run
│   ├── AlreadyEnded          cancelling, pausing or changing what has ended
│   ├── NothingToResume       nothing of it is paused
│   ├── Ambiguous             a name or the beginning of an id that means several things, or a run that several share
│   ├── NotEmpty              a database that is to be written anew has experiments
│   ├── NotDeletable          some of it still runs, or it is gone
│   ├── Deleted               it is deleted: restore it first
│   ├── NotExtendable         it was cancelled, or what it was trained on is not what it was
│   └── NothingToDraw         a figure of numbers that are not there
├── BodyTooLarge         413
├── NoSuchRange          416  a part of a file that lies behind its end
├── TooManyQueued        429  the project has as many waiting runs as it may; has Retry-After
├── InvalidSpec          422  a spec with problems, all of them listed
├── UnreadableBody       422  not JSON or YAML, or no object
└── Unavailable          503  MLflow or the store does not answer
"""

import re
from collections.abc import Mapping, Sequence
from typing import ClassVar

from trainer.contract import Problem


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


class NothingToResume(Conflict):
    pass


class Ambiguous(Conflict):
    pass


class NotEmpty(Conflict):
    pass


class NotDeletable(Conflict):
    pass


class Deleted(Conflict):
    pass


class NotExtendable(Conflict):
    pass


class NothingToDraw(Conflict):
    pass


class BodyTooLarge(ApiError):
    status = 413


class NoSuchRange(ApiError):
    status = 416


class TooManyQueued(ApiError):
    status = 429
    headers: ClassVar[Mapping[str, str]] = {"Retry-After": "60"}


class InvalidSpec(ApiError):
    status = 422


class UnreadableBody(ApiError):
    status = 422


class Unavailable(ApiError):
    status = 503
