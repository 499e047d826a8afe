"""What a run's nodes printed, attempt by attempt; followed until the run has ended."""

import time
from collections import deque
from collections.abc import Iterator

from service.db import Database
from service.launching.port import Launcher
from service.runs import repository
from service.runs import service as runs
from service.tables import Attempt, Run
from trainer.contract import Placement

NEXT_ATTEMPT_SECONDS = 0.5
"""Between two looks for an attempt that follows the one whose log has ended."""


def text(db: Database, launcher: Launcher, run_id: str, attempt: int | None, tail: int | None) -> str:
    """All lines so far, or the last `tail`, of all attempts or one. Raises NotFound."""
    run, attempts = _load(db, run_id)
    chosen = [item for item in attempts if attempt in (None, item.number)]
    lines = (line for item in chosen for line in _lines(launcher, run, item, follow=False) if line)
    return "".join(deque(lines, tail))


def follow(db: Database, launcher: Launcher, run_id: str) -> Iterator[str]:
    """Lines as they come, "" where there is nothing new; ends when the run has. Raises NotFound."""
    seen = 0
    while True:
        run, attempts = _load(db, run_id)
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
    yield f"--- attempt {attempt.name}, {attempt.created_at:%Y-%m-%d %H:%M:%S} UTC ---\n"
    nodes = Placement.model_validate(run.placement).max_nodes
    printed = False
    for line in launcher.lines(attempt.name, nodes, follow=follow):
        printed = printed or bool(line)
        yield line
    if not printed and attempt.log_tail:
        yield "(the pods are gone; these are the last lines of each:)\n"
        yield attempt.log_tail


def _load(db: Database, run_id: str) -> tuple[Run, list[Attempt]]:
    with db.read() as session:
        return runs.get(session, run_id), list(repository.attempts(session, run_id))
