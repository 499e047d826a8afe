"""`Range: bytes=FROM-TO` of a request (RFC 9110, 14): which part of a file is asked for."""

import re

from service.errors import NoSuchRange

# Whoever asks for several at once, or in other units, is given everything, as the RFC allows.
ONE = re.compile(r"bytes=(\d{0,18})-(\d{0,18})")


def part_of(size: int, asked: str | None) -> tuple[int, int] | None:
    """Start and length; None = everything. Raises NoSuchRange."""
    match = ONE.fullmatch(asked.strip()) if asked else None
    if match is None or match[0] == "bytes=-":
        return None
    if not match[1]:
        start, end = max(size - int(match[2]), 0), size
    else:
        start, end = int(match[1]), min(int(match[2]) + 1, size) if match[2] else size
        if match[2] and int(match[2]) < start:
            return None
    if start >= size:
        raise NoSuchRange(f"The request is for {match[0]}, but the file has {size} bytes.")
    return start, end - start
