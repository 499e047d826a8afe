"""Who asks the same at once gets one answer, and nobody gets what is older than a change."""

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from service.pages import shared
from service.pages.shared import Shared


class Question:
    """Counts how often it is answered; an answer is ready when the test says so."""

    def __init__(self) -> None:
        self.asked, self.may_end = 0, asyncio.Event()

    async def __call__(self) -> int:
        self.asked += 1
        number = self.asked
        await self.may_end.wait()
        return number


def in_a_loop(test: Callable[[Shared], Awaitable[None]]) -> Callable[[], None]:
    async def run() -> None:
        await asyncio.wait_for(test(Shared()), 10)

    return lambda: asyncio.run(run())


async def said(what: object) -> object:
    return what


@in_a_loop
async def test_twenty_who_ask_at_once_are_answered_once(found: Shared) -> None:
    question = Question()
    asking = [asyncio.create_task(found.get("key", question)) for _ in range(20)]
    await asyncio.sleep(0)
    # Who asked first goes away.
    asking[0].cancel()
    question.may_end.set()
    assert await asyncio.gather(*asking[1:]) == [1] * 19
    assert question.asked == 1


@in_a_loop
async def test_a_fault_is_told_to_who_waits_and_kept_for_nobody(found: Shared) -> None:
    async def fail() -> None:
        raise OSError("away")

    for answer in await asyncio.gather(*(found.get("key", fail) for _ in range(2)), return_exceptions=True):
        assert isinstance(answer, OSError)
    assert await found.get("key", lambda: said(1)) == 1


@pytest.mark.parametrize(
    ("took", "lasts", "kept"),
    [(0.01, False, 0.2), (0.2, False, 4.0), (60.0, False, 10.0), (0.01, True, 6.0), (0.2, True, 60.0)],
)
def test_an_answer_is_kept_by_how_long_it_took_and_longer_if_it_changes_no_more(
    monkeypatch: pytest.MonkeyPatch, took: float, lasts: bool, kept: float
) -> None:
    now = [100.0]
    monkeypatch.setattr(shared, "time", type("Clock", (), {"monotonic": staticmethod(lambda: now[0])}))

    async def slow() -> str:
        now[0] += took
        return "old"

    @in_a_loop
    async def test(found: Shared) -> None:
        assert await found.get("key", slow, lambda answer: lasts) == "old"
        now[0] += kept - 0.01
        assert await found.get("key", lambda: said("new")) == "old"
        now[0] += 0.02
        assert await found.get("key", lambda: said("new")) == "new"

    test()


@in_a_loop
async def test_only_so_many_answers_are_kept(found: Shared) -> None:
    async def long() -> str:
        await asyncio.sleep(0.01)
        return "old"

    for number in range(shared.MAX_KEPT + 1):
        await found.get(number, long)
    assert await found.get(shared.MAX_KEPT, lambda: said("new")) == "old"
    assert await found.get(0, lambda: said("new")) == "new"
