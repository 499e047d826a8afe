"""The body of a request: bounded before anybody is asked for a token, and read as plain data, JSON or YAML."""

import json
from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import Request, Response
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.errors import BodyTooLarge, UnreadableBody
from trainer.contract import plain

MAX_BYTES = 1 << 20
YAML_TYPES = ("application/yaml", "application/x-yaml", "text/yaml", "text/x-yaml")


class Bounded:
    """Middleware: no more than MAX_BYTES of a body are read, at any address. Many routes read it before the token."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        size = 0

        async def bounded() -> Message:
            nonlocal size
            message = await receive()
            size += len(message.get("body", b""))
            if size > MAX_BYTES:
                # FastAPI makes a 400 of what is no HTTPException.
                detail = f"The body is larger than {MAX_BYTES} bytes; an experiment is a dozen lines"
                raise HTTPException(BodyTooLarge.status, detail)
            return message

        await self.app(scope, bounded, send)


async def payload(request: Request) -> dict[str, Any]:
    """Dependency: the request's object. Raises UnreadableBody."""
    kind = request.headers.get("content-type", "application/json").partition(";")[0].strip().lower()
    return plain_object(await request.body(), is_yaml=kind in YAML_TYPES)


def plain_object(data: bytes | str, *, is_yaml: bool, name: str = "The body") -> dict[str, Any]:
    """Raises UnreadableBody."""
    try:
        found = plain.from_yaml(data, aliases=False) if is_yaml else plain.from_json(data)
        if b"\\u0000" in json.dumps(found, ensure_ascii=False).encode():
            raise ValueError("text with a NUL character")
    except ValueError as error:
        known = "YAML" if is_yaml else "JSON (or YAML with Content-Type: application/yaml)"
        raise UnreadableBody(f"{name} is not {known}: {error}") from error
    if not isinstance(found, dict):
        raise UnreadableBody(
            f"{name} is a {type(found).__name__}; an experiment is an object: name, base, factors, ..."
        )
    return found


class PlainRoute(APIRoute):
    """A route whose model of a body is made of what `payload` reads: json.loads keeps the last of two equal keys."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def answer(request: Request) -> Response:
            read = _Read(request.scope, request.receive)
            if self.body_field and await read.body():
                read.found = await payload(read)
            return await handle(read)

        return answer


class _Read(Request):
    found: Any

    async def json(self) -> Any:
        return self.found
