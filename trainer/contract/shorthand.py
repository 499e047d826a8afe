"""A string that stands for a whole part of a spec. Pydantic only."""

import re
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, BeforeValidator


def shorthand(**known: Any) -> BeforeValidator:
    """Lets a string stand for a whole part: `encoder: vit-b16`, `decoder: 512x8`, `mask: block`."""

    def expand(value: Any) -> Any:
        if value is None or isinstance(value, Mapping | BaseModel):
            return value
        if not isinstance(value, str):
            raise ValueError("a word, or a mapping of its fields")
        if value in known.get("names", {}):
            return known["names"][value]
        if (pattern := known.get("pattern")) and (match := re.fullmatch(pattern, value)):
            return {name: int(number) for name, number in match.groupdict().items() if number}
        if field := known.get("field"):
            return {field: value}
        names = ", ".join(known.get("names", {})) or known.get("example", "")
        raise ValueError(f"one of {names}, or the numbers themselves")

    return BeforeValidator(expand)
