"""The version of this mcf, and what to say where the two ends of a connection have different ones."""

import re
from importlib.metadata import version

VERSION = version("mcf")
HEADER = "Mcf-Version"
"""Of every answer of a service."""


def difference(url: str, theirs: str | None) -> str:
    """What to tell somebody whose service answers with this version; None = with none. Empty where they are equal."""
    if theirs == VERSION:
        return ""
    update = f"It may refuse what is new: update it to {VERSION}, or install its version here."
    if theirs is None:
        # The first release that tells its version is this one.
        return f"The service at {url} tells no version: it is older than this mcf ({VERSION}). {update}"
    both = f"The service at {url} is mcf {theirs}"
    if _numbers(theirs) < _numbers(VERSION):
        return f"{both}, older than this mcf ({VERSION}). {update}"
    if _numbers(theirs) > _numbers(VERSION):
        return f"{both}, newer than this mcf ({VERSION}). Install mcf {theirs} here to use what it can do."
    return f"{both}, another build than this mcf ({VERSION}). Install the same one at both ends."


def _numbers(text: str) -> tuple[int, ...]:
    """Of the release alone: which of two builds of one came first is nobody's business here."""
    found = re.match(r"\d+(\.\d+)*", text)
    return tuple(map(int, found[0].split("."))) if found else ()
