"""Where a run's time went: waiting, attempts, and the stretches of training in them, as high as their world size."""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta

from service.pages.curves import Tick
from service.schemas.runs import AttemptView, RunDetail, SessionView
from service.text import duration

WIDTH, HEIGHT = 720, 132
LEFT, RIGHT = 92, 10
ATTEMPTS_TOP, BAR = 12, 18
STRETCHES_TOP, STRETCHES_BOTTOM = 44, 104
NUM_TICKS = 5


@dataclass(frozen=True)
class Bar:
    """A rectangle and what it stands for."""

    x: float
    y: float
    width: float
    height: float
    kind: str
    """Class of its colour."""
    label: str
    """Drawn in it where there is room."""
    words: str


@dataclass(frozen=True)
class Timeline:
    bars: list[Bar]
    ticks: list[Tick]
    most: int
    """Largest world size."""
    rows: list[tuple[AttemptView, list[SessionView]]]
    """The same for a table, newest attempt first."""
    width: int = WIDTH
    height: int = HEIGHT
    left: int = LEFT
    stretches_top: int = STRETCHES_TOP
    stretches_bottom: int = STRETCHES_BOTTOM


def timeline(run: RunDetail, now: datetime) -> Timeline:
    """From the request on until the run's end, or now."""
    start, end = run.created_at, run.ended_at or now
    # A shared run may have been trained for an older request than this row's.
    start = min([start, *(attempt.created_at for attempt in run.attempts)])
    end = max([end, start + timedelta(seconds=1), *(session.seen_at for session in run.sessions)])
    span = (end - start).total_seconds()
    most = max((session.world_size for session in run.sessions), default=1)

    def x(at: datetime) -> float:
        return round(LEFT + (at - start).total_seconds() / span * (WIDTH - LEFT - RIGHT), 1)

    def bar(first: datetime, last: datetime, y: float, height: float, kind: str, label: str, words: str) -> Bar:
        width = max(1.5, x(last) - x(first))
        told = f"{words}, {duration((last - first).total_seconds())}"
        return Bar(x(first), y, width, height, kind, label if width > 7 * len(label) + 6 else "", told)

    def bars() -> Iterator[Bar]:
        until = start
        for attempt in run.attempts:
            if attempt.created_at > until:
                yield bar(until, attempt.created_at, ATTEMPTS_TOP, BAR, "waiting", "waiting", "waiting")
            until = attempt.ended_at or end
            words = f"attempt {attempt.number} {attempt.state.value}"
            yield bar(attempt.created_at, until, ATTEMPTS_TOP, BAR, attempt.state.value, str(attempt.number), words)
        if not run.state.is_final and until < end:
            yield bar(until, end, ATTEMPTS_TOP, BAR, "waiting", "waiting", "waiting")
        for session in run.sessions:
            size = session.world_size
            height = round((STRETCHES_BOTTOM - STRETCHES_TOP) * size / most, 1)
            where = f" ({session.places})" if session.places else ""
            words = f"world size {size}{where}, steps {session.first_step} to {session.step}"
            top = STRETCHES_BOTTOM - height
            yield bar(session.started_at, session.seen_at, top, height, "stretch", str(size), words)

    parts = [span * index / (NUM_TICKS - 1) for index in range(NUM_TICKS)]
    ticks = [Tick(x(start + timedelta(seconds=part)), duration(part)) for part in parts]
    stretches = {
        attempt.number: [session for session in run.sessions if session.attempt == attempt.number]
        for attempt in run.attempts
    }
    rows = [(attempt, stretches[attempt.number]) for attempt in reversed(run.attempts)]
    return Timeline(list(bars()), ticks, most, rows)
