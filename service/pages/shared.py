"""One asks, and who wants to know the same meanwhile or shortly after takes that answer.

Fifty open pages that ask every few seconds cost little more than one does, and who waits holds up no thread.
"""

import asyncio
import time
from collections.abc import Callable, Coroutine, Hashable
from dataclasses import dataclass
from typing import Any, TypeVar

T = TypeVar("T")

KEPT_FOR, AT_MOST_SECONDS = 20, 10.0
"""Times as long as it took to make it is an answer good: so no question takes more than a twentieth of the time."""
LASTING, LASTING_AT_MOST_SECONDS = 30, 60.0
"""Times longer, if it changes no more by itself."""
MAX_KEPT = 100
"""Answers: a page with a thousand runs has 200 kB."""


@dataclass
class _Asked:
    answer: asyncio.Task[Any]
    good_until: float = float("inf")
    """By time.monotonic(); for ever while nobody has answered."""


class Shared:
    """Answers of the last few seconds, for requests of one event loop."""

    def __init__(self, kept_for: float = KEPT_FOR) -> None:
        self._kept_for = kept_for
        self._asked: dict[Hashable, _Asked] = {}

    async def get(
        self, key: Hashable, answer: Callable[[], Coroutine[Any, Any, T]], lasts: Callable[[T], bool] = lambda _: False
    ) -> T:
        """What `answer` returns, or has lately returned for the same key; not to be changed.

        `lasts`: whether it changes no more by itself.

        Raises what it raises, to all who wait for it; who comes later asks again.
        """
        begun = time.monotonic()
        for old in [old for old, asked in self._asked.items() if asked.good_until < begun]:
            del self._asked[old]
        if key not in self._asked:
            if len(self._asked) >= MAX_KEPT:
                del self._asked[next(iter(self._asked))]
            # A task of its own: who began it may go away while others wait.
            self._asked[key] = asked = _Asked(asyncio.create_task(answer()))
            asked.answer.add_done_callback(lambda done: self._answered(key, asked, begun, lasts))
        found: T = await asyncio.shield(self._asked[key].answer)
        return found

    def _answered(self, key: Hashable, asked: _Asked, begun: float, lasts: Callable[[Any], bool]) -> None:
        now = time.monotonic()
        if asked.answer.cancelled() or asked.answer.exception() is not None:
            if self._asked.get(key) is asked:
                del self._asked[key]
            return
        times, at_most = (LASTING, LASTING_AT_MOST_SECONDS) if lasts(asked.answer.result()) else (1, AT_MOST_SECONDS)
        asked.good_until = now + min(self._kept_for * times * (now - begun), at_most)
