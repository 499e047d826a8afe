"""What a slow operation is at, told on standard error; standard output is left to what was asked for.

    with progress("indexing") as line:
        for done in ...:
            line(f"indexing: {done} images")

On a terminal the line updates in place and its last state stays; elsewhere a line comes now and then and one at the
end. What takes but a moment says nothing.
"""

import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console, RenderableType
from rich.live import Live
from rich.text import Text

from service.text import duration

# While a submission is looked at.
READS = "the service reads the data and the teacher"

MOMENT_SECONDS = 1.0
EVERY_SECONDS = 15.0
UPDATE_SECONDS = 0.25


class Line:
    """Called with what is being done now, and with what a terminal shows for it where that is more than a line.

    `look` shows what is due; whoever has threads leaves that to `progress`.
    """

    def __init__(self, doing: str) -> None:
        self._doing = doing
        self._shown: RenderableType | None = None
        self._began = time.monotonic()
        self._due = self._began + EVERY_SECONDS
        self._console = Console(stderr=True)
        # Not what rich asks, which takes FORCE_COLOR for a terminal.
        self._in_place = self._console.file.isatty() and not self._console.is_dumb_terminal
        self._live: Live | None = None

    def __call__(self, doing: str, shown: RenderableType | None = None) -> None:
        self._doing, self._shown = doing, shown

    def look(self) -> None:
        now = time.monotonic()
        if not self._in_place:
            if now >= self._due:
                self._print()
        elif self._live:
            self._live.refresh()
        elif now - self._began > MOMENT_SECONDS:
            # Where standard output is the same terminal, what is printed there appears above the line.
            self._live = Live(
                get_renderable=self._rendered, console=self._console, auto_refresh=False,
                redirect_stdout=sys.stdout.isatty(),
            )  # fmt: skip
            self._live.start(refresh=True)

    def end(self) -> None:
        if self._live:
            self._live.stop()
        elif not self._in_place and time.monotonic() - self._began > MOMENT_SECONDS:
            self._print()

    def _print(self) -> None:
        self._due = time.monotonic() + EVERY_SECONDS
        print(self._text(), file=sys.stderr, flush=True)

    def _rendered(self) -> RenderableType:
        return self._shown or Text(self._text(), no_wrap=True, overflow="ellipsis")

    def _text(self) -> str:
        return f"{self._doing} ({duration(time.monotonic() - self._began)})"


@contextmanager
def progress(doing: str) -> Iterator[Line]:
    """A line that is looked after while the block does its work; blocks are not nested."""
    line, ended = Line(doing), threading.Event()

    def look_after() -> None:
        while not ended.wait(UPDATE_SECONDS):
            line.look()

    thread = threading.Thread(target=look_after, name="progress", daemon=True)
    thread.start()
    try:
        yield line
    finally:
        ended.set()
        thread.join()
        line.end()
