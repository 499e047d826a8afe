"""What a run's nodes printed, attempt by attempt; followed until the run has ended."""

import time
from collections import deque
from collections.abc import Iterator
from itertools import islice

from service.db import Database
from service.launching.port import Launcher, LauncherAway
from service.runs import repository
from service.runs import service as runs
from service.tables import Attempt, Run
from trainer.contract import Placement

NEXT_ATTEMPT_SECONDS = 0.5
"""Between two looks for an attempt that follows the one whose log has ended."""
LINES_A_PIECE = 1000
GONE = "(the pods are gone; these are the last lines of each:)\n"


def text(db: Database, launcher: Launcher, run_id: str, attempt: int | None) -> Iterator[str]:
    """All lines so far, of all attempts or one, in pieces of some size. Raises NotFound, before the first."""
    run, chosen = _load(db, run_id, attempt)
    lines = (line for item in chosen for line in _lines(launcher, run, item, follow=False) if line)
    return iter(lambda: "".join(islice(lines, LINES_A_PIECE)), "")


def tail(db: Database, launcher: Launcher, run_id: str, attempt: int | None, count: int) -> str:
    """The last `count` lines, of all attempts or one; no more of a log is read than these. Raises NotFound."""
    run, chosen = _load(db, run_id, attempt)
    found: deque[str] = deque()
    for item in reversed(chosen):
        found.extendleft(reversed(_last_lines(launcher, run, item, count)))
        if len(found) >= count:
            break
    return "".join(deque(found, count))


def follow(db: Database, launcher: Launcher, run_id: str) -> Iterator[str]:
    """Lines as they come, "" where there is nothing new; ends when the run has. Raises NotFound."""
    seen = 0
    while True:
        run, attempts = _load(db, run_id, None)
        for item in attempts:
            # Before it is seen at the scheduler it has printed nothing, which must not look like the end.
            if item.number > seen and (item.confirmed or not item.state.is_live):
                yield from _lines(launcher, run, item, follow=True)
                seen = item.number
        if run.state.is_final:
            return
        time.sleep(NEXT_ATTEMPT_SECONDS)
        yield ""


def _lines(launcher: Launcher, run: Run, attempt: Attempt, *, follow: bool) -> Iterator[str]:
    yield _heading(attempt)
    nodes = Placement.model_validate(run.placement).max_nodes
    printed = False
    for line in launcher.lines(attempt.name, nodes, follow=follow):
        printed = printed or bool(line)
        yield line
    if not printed and attempt.log_tail:
        yield GONE
        yield attempt.log_tail


def _last_lines(launcher: Launcher, run: Run, attempt: Attempt, count: int) -> list[str]:
    nodes = Placement.model_validate(run.placement).max_nodes
    try:
        printed = launcher.tail(attempt.name, nodes, count)
    except LauncherAway as error:
        printed = [f"({error})\n"]
    if not printed and attempt.log_tail:
        printed = [GONE, *attempt.log_tail.splitlines(keepends=True)]
    return [_heading(attempt), *printed]


def _heading(attempt: Attempt) -> str:
    return f"--- attempt {attempt.name}, {attempt.created_at:%Y-%m-%d %H:%M:%S} UTC ---\n"


def _load(db: Database, run_id: str, attempt: int | None) -> tuple[Run, list[Attempt]]:
    """The run, and its attempts or the one of that number."""
    with db.read() as session:
        found = repository.attempts(session, run_id)
        return runs.get(session, run_id), [item for item in found if attempt in (None, item.number)]
