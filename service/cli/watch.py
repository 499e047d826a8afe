"""Watching an experiment: bars that move on a terminal, a line now and then elsewhere."""

import time

from rich.markup import escape
from rich.progress_bar import ProgressBar
from rich.table import Table

from service.cli.children import SAY_AFTER_SECONDS
from service.cli.progress import progress
from service.cli.show import counts, terminal
from service.client import Experiment
from service.schemas.experiments import ArmView, ExperimentDetail
from service.text import duration

WATCH_SECONDS = 1.0
BAR_WIDTH = 12


def watch(experiment: Experiment) -> None:
    """Returns when every run has ended. A KeyboardInterrupt passes through, and the experiment goes on."""
    since, told = None, set[str]()

    def look(detail: ExperimentDetail) -> None:
        nonlocal since
        reason, now = _waiting(detail), time.monotonic()
        since = (since or now) if reason else None
        # Between two runs there is always one that starts.
        for text in warnings(detail):
            if text not in told:
                told.add(text)
                terminal().print(f"warning: {escape(text)}", soft_wrap=True)
        line(_line(detail, reason if since and now - since > SAY_AFTER_SECONDS else ""), _bars(detail))

    with progress(experiment.detail.name) as line:
        experiment.wait(poll_seconds=WATCH_SECONDS, on_progress=look)


def warnings(detail: ExperimentDetail) -> list[str]:
    """Of runs that train although somebody has to see to them."""
    return [
        f"{arm.name}, seed {trial.seed}: {trial.waiting_reason}"
        for arm in detail.arms
        for trial in arm.trials
        if trial.state == "running" and trial.waiting_reason
    ]


def _line(detail: ExperimentDetail, reason: str) -> str:
    waiting = f"; waiting: {reason}" if reason else ""
    left = f", about {duration(detail.eta_seconds)} left" if detail.eta_seconds else ""
    return f"{detail.progress:4.0%}  {counts(detail)}{left}{waiting}"


def _waiting(detail: ExperimentDetail) -> str:
    """What the first run waits for while none trains; empty while one does."""
    trials = [trial for arm in detail.arms for trial in arm.trials if not trial.state.is_final]
    if any(trial.state == "running" for trial in trials):
        return ""
    return next((trial.waiting_reason for trial in trials if trial.waiting_reason), "")


def _bars(detail: ExperimentDetail) -> Table:
    table = Table.grid(padding=(0, 2, 0, 0), expand=True)
    # On a narrow terminal names and doings are cut, and a row stays one line.
    table.add_column(no_wrap=True, ratio=1)
    table.add_column(width=BAR_WIDTH)
    table.add_column(width=len("100%"))
    table.add_column(no_wrap=True, ratio=1)
    for arm in detail.arms:
        done = sum(1.0 if trial.state.is_final else trial.progress for trial in arm.trials) / len(arm.trials)
        # A level may be a path, and a reason may quote an error: brackets in them are no colours.
        table.add_row(escape(arm.name), _bar(done), f"{done:4.0%}", _doing(arm))
    left = f"about {duration(detail.eta_seconds)} left" if detail.eta_seconds else ""
    table.add_row(f"[bold]{detail.name}[/]", _bar(detail.progress), f"{detail.progress:4.0%}", left)
    return table


def _doing(arm: ArmView) -> str:
    """`2 of 3 seeds; seed 2 at step 40 of 60`."""
    ended = sum(trial.state.is_final for trial in arm.trials)
    parts = [f"{ended} of {len(arm.trials)} seeds"]
    for trial in arm.trials:
        if trial.state == "failed":
            parts.append(f"[red]seed {trial.seed} failed[/]")
        elif trial.state == "running":
            parts.append(f"seed {trial.seed} at step {trial.step} of {trial.total_steps}")
        elif trial.waiting_reason:
            parts.append(f"seed {trial.seed} waits: {escape(trial.waiting_reason[:60])}")
    return "; ".join(parts[:3])


def _bar(share: float) -> ProgressBar:
    return ProgressBar(total=1.0, completed=share, width=BAR_WIDTH)
