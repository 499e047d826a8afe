"""What the forms of the pages send, read by hand: as fields; that of a new experiment also with a file."""

import email
import email.policy
import secrets
from dataclasses import dataclass
from email.message import EmailMessage
from urllib.parse import parse_qs

from fastapi import Request

from service.api.body import MAX_BYTES

KEY_LENGTH = 64
Fields = dict[str, list[str]]
"""Name of a field -> all that was sent under it, in order."""


async def fields(request: Request) -> Fields:
    """Dependency. As much as any request may send (api/body.py)."""
    return parse_qs((await request.body()).decode("utf-8", "replace"), keep_blank_values=True)


def last(form: Fields, name: str, default: str = "") -> str:
    """What a field that has one value holds."""
    return form.get(name, [default])[-1]


@dataclass(frozen=True)
class Form:
    text: str = ""
    project: str = ""
    key: str = ""
    """Made with the form: who presses twice sends it twice."""
    unread: str = ""
    """Why there is no text, where it could not be read."""


def new_key() -> str:
    return secrets.token_hex(16)


async def sent(request: Request) -> Form:
    """Dependency."""
    if problem := _too_large(request):
        return Form(key=new_key(), unread=problem)
    form = await fields(request)
    return _form({name: last(form, name) for name in form})


async def sent_file(request: Request) -> Form:
    """Dependency: with the text of the file."""
    if problem := _too_large(request):
        return Form(key=new_key(), unread=problem)
    parts = _parts(await request.body(), request.headers.get("content-type", ""))
    project = parts.get("project", b"").decode("utf-8", "replace")
    try:
        return _form({"text": parts.get("file", b"").decode("utf-8-sig"), "project": project})
    except UnicodeDecodeError as error:
        unread = f"The file is not text in UTF-8 ({error.reason} at byte {error.start}); a spec is YAML or JSON."
        return Form(project=project, key=new_key(), unread=unread)


def _form(given: dict[str, str]) -> Form:
    key = given.get("key", "")
    usable = key.isascii() and key.isalnum() and len(key) <= KEY_LENGTH
    # A browser ends lines as Windows does.
    text = given.get("text", "").replace("\r\n", "\n")
    return Form(text, given.get("project", "").strip(), key if usable else new_key())


def _too_large(request: Request) -> str:
    """Said before it is read: what is refused while it is read is no page (api/body.py)."""
    size = request.headers.get("content-length", "0")
    if size.isdecimal() and int(size) > MAX_BYTES:
        return f"That is {int(size):,} bytes; an experiment is a dozen lines, and {MAX_BYTES:,} bytes at most."
    return ""


def _parts(body: bytes, content_type: str) -> dict[str, bytes]:
    """Of multipart/form-data: name of a field -> what it holds."""
    message = email.message_from_bytes(
        b"Content-Type: " + content_type.encode() + b"\r\n\r\n" + body, policy=email.policy.HTTP
    )
    found = {}
    for part in message.iter_parts() if message.is_multipart() else ():
        assert isinstance(part, EmailMessage)  # the policy makes no others
        if name := part.get_param("name", header="content-disposition"):
            held = part.get_payload(decode=True)
            found[str(name)] = held if isinstance(held, bytes) else b""
    return found
