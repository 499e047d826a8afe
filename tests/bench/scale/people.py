"""People who have pages open, as their browsers ask for them, and who follow logs."""

import asyncio
import random
import re
import time
from collections import defaultdict
from collections.abc import Mapping

import httpx2

STAY_SECONDS = 60.0
"""With one page; then another is opened."""
COLD_SECONDS = 20.0
"""In which all of them come, and nothing is known yet: counted apart."""
PART = {"HX-Request": "true"}
"""htmx says so of what it asks for."""

Took = dict[str, list[tuple[float, float]]]
"""Kind of page -> when it was asked for, and how many seconds it took."""


def people(url: str, readers: int, followers: int, seconds: float) -> dict[str, float]:
    """Seconds that answers took: of all the 99th percentile, and the worst for each kind of page."""
    return asyncio.run(_people(url, readers, followers, seconds))


async def _people(url: str, readers: int, followers: int, seconds: float) -> dict[str, float]:
    took: Took = defaultdict(list)
    late: list[float] = []
    limits = httpx2.Limits(max_connections=readers + followers + 10)
    async with httpx2.AsyncClient(base_url=url, timeout=60, limits=limits) as web:
        items = (await web.get("/v1/experiments", params={"limit": 100})).json()["experiments"]
        runs = (await web.get("/v1/runs", params={"state": "running", "limit": 200})).json()["runs"]
        pages = ["/"] * 4 + ["/queue"] * 2 + [f"/experiments/{item['id']}" for item in items]
        pages += [f"/runs/{run['id']}" for run in random.sample(runs, min(10, len(runs)))]
        end = time.monotonic() + COLD_SECONDS + seconds
        tasks = [asyncio.create_task(_read(web, pages, end, took)) for _ in range(readers)]
        followed = random.sample(runs, min(followers, len(runs)))
        tasks += [asyncio.create_task(_follow(web, run["id"], end, late)) for run in followed]
        await asyncio.gather(*tasks)
    cold = [second for kind in took.values() for at, second in kind if at < end - seconds]
    warm = {kind: sorted(second for at, second in values if at >= end - seconds) for kind, values in took.items()}
    every = sorted(second for values in warm.values() for second in values)
    found = {
        "answers/s": len(every) / seconds,
        "answers p50 s": _share(every, 0.5),
        "answers p99 s": _share(every, 0.99),
    }
    found |= {f"{kind} p99 s": _share(values, 0.99) for kind, values in sorted(warm.items())}
    found["first answers p99 s"] = _share(sorted(cold), 0.99)
    late.sort()
    return found | ({"lines/s": len(late) / seconds, "lines p99 s": _share(late, 0.99)} if late else {})


async def _read(web: httpx2.AsyncClient, pages: list[str], end: float, took: Took) -> None:
    await asyncio.sleep(random.uniform(0, 5))
    while time.monotonic() < end:
        page = random.choice(pages)
        text = await _get(web, page, took)
        # As htmx does: the part that is alive is asked for again every so often, while the page is open.
        again = [
            (path, float(every)) for path, every in re.findall(r'hx-get="([^"]+)" hx-trigger="every (\d+)s"', text)
        ]
        # And what is asked for once it is there.
        for path in re.findall(r'hx-get="([^"]+)" hx-trigger="(?:load|revealed)"', text):
            await _get(web, path.replace("&amp;", "&"), took, PART)
        leaves = min(end, time.monotonic() + random.uniform(0.5, 1.5) * STAY_SECONDS)
        polls = [_poll(web, path.replace("&amp;", "&"), float(every), leaves, took) for path, every in again]
        await asyncio.gather(*polls, asyncio.sleep(max(0.0, leaves - time.monotonic())))


async def _poll(
    web: httpx2.AsyncClient, path: str, every: float, leaves: float, took: Took
) -> None:  # fmt: skip
    while time.monotonic() + every < leaves:
        await asyncio.sleep(every)
        await _get(web, path, took, PART)


async def _get(
    web: httpx2.AsyncClient, path: str, took: Took, headers: Mapping[str, str] = {}
) -> str:  # fmt: skip
    begun = time.monotonic()
    try:
        answer = await web.get(path, headers=dict(headers))
    except httpx2.TransportError:
        # As browsers do: a line that nobody used may have been closed just now.
        answer = await web.get(path, headers=dict(headers))
    took[_kind(path)].append((begun, time.monotonic() - begun))
    answer.raise_for_status()
    return answer.text


def _kind(path: str) -> str:
    return re.sub(r"/[er][-0-9a-f]{8,}", "/ID", path.partition("?")[0])


async def _follow(web: httpx2.AsyncClient, run_id: str, end: float, late: list[float]) -> None:
    """`late`: seconds from when a line was printed until it was here."""
    async with web.stream("GET", f"/v1/runs/{run_id}/logs", params={"follow": "true"}) as answer:
        async for line in answer.aiter_lines():
            if found := re.search(r"printed at ([0-9.]+)", line):
                late.append(time.time() - float(found[1]))
            if time.monotonic() > end:
                return


def _share(ordered: list[float], share: float) -> float:
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else float("nan")
