"""The body of a request: bounded before anybody is asked for a token, and read as plain data, JSON or YAML."""

import json
from typing import Any

import yaml
from fastapi import Request
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.errors import BodyTooLarge, UnreadableBody

MAX_BYTES = 1 << 20
YAML_TYPES = ("application/yaml", "application/x-yaml", "text/yaml", "text/x-yaml")


class _Loader(yaml.SafeLoader):
    """Safe YAML without aliases: a few lines of them stand for gigabytes."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("aliases (*name) are not supported; write the value out")
        return super().compose_node(parent, index)


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
    data = await request.body()
    kind = request.headers.get("content-type", "application/json").partition(";")[0].strip().lower()
    try:
        found = _yaml(data) if kind in YAML_TYPES else json.loads(data, parse_constant=_refuse)
        if b"\\u0000" in json.dumps(found, ensure_ascii=False).encode():
            raise ValueError("text with a NUL character")
    except (ValueError, yaml.YAMLError, RecursionError) as error:
        known = "YAML" if kind in YAML_TYPES else "JSON (or YAML with Content-Type: application/yaml)"
        raise UnreadableBody(f"The body is not {known}: {error}") from error
    if not isinstance(found, dict):
        raise UnreadableBody(
            f"The body is a {type(found).__name__}; an experiment is an object: name, base, factors, ..."
        )
    return found


def _yaml(data: bytes) -> Any:
    # Through JSON and back: keys become text, and dates what they were written as.
    return json.loads(json.dumps(yaml.load(data, _Loader), default=str, allow_nan=False))


def _refuse(name: str) -> Any:
    raise ValueError(f"{name} is not a number JSON knows")
