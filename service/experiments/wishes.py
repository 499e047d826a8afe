"""What experiments want of their runs, and what follows for a run that several of them share.

A trial wants its run, unless it or its experiment was cancelled or paused. While one trial wants it, a run goes on,
and its home is an experiment that does. A run that nobody wants stops with a checkpoint: for good where everybody has
cancelled it, and until it is resumed where somebody has only paused it.
"""

from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import select
from sqlalchemy.orm import Session

from service.states import FINAL
from service.tables import Experiment, Run, Trial


@dataclass(frozen=True)
class Wish:
    """What one trial wants of its run: that it goes on, unless there is a reason for something else."""

    experiment_id: str
    cancelled: str
    paused: str


def follow(session: Session, run_ids: Collection[str], now: datetime) -> None:
    """Tell these runs what their experiments want, after any of them has changed its mind. Ended ones stay ended."""
    session.flush()
    wishes = _wishes(session, run_ids)
    query = select(Run).where(Run.id.in_(wishes), Run.state.not_in(FINAL)).order_by(Run.id)
    for run in session.scalars(query.with_for_update()):
        _tell(run, wishes[run.id], now)


def _wishes(session: Session, run_ids: Collection[str]) -> dict[str, list[Wish]]:
    """Of each run, the oldest experiment first."""
    rows = session.execute(
        select(
            Trial.run_id, Experiment.id, Experiment.deleted_at, Experiment.cancelled_at, Experiment.cancel_reason,
            Trial.cancel_reason, Experiment.pause_reason, Trial.pause_reason,
        )
        .join(Experiment, Experiment.id == Trial.experiment_id)
        .where(Trial.run_id.in_(list(run_ids)))
        .order_by(Experiment.created_at, Experiment.id, Trial.id)
    )  # fmt: skip
    found: dict[str, list[Wish]] = {}
    for run_id, experiment_id, deleted_at, cancelled_at, why, trial_cancelled, paused, trial_paused in rows:
        cancelled = (why or "cancelled") if cancelled_at else trial_cancelled
        cancelled = cancelled or ("its experiment was deleted" if deleted_at else "")
        found.setdefault(run_id, []).append(Wish(experiment_id, cancelled, paused or trial_paused))
    return found


def _tell(run: Run, wishes: Collection[Wish], now: datetime) -> None:
    going = [wish for wish in wishes if not (wish.cancelled or wish.paused)]
    paused = [wish for wish in wishes if wish.paused and not wish.cancelled]
    before = run.cancel_reason, run.pause_reason
    if heirs := going or paused:
        if run.cancel_reason:
            # Whoever is about to write that it has been cancelled has lost the right to.
            run.lease_token = run.lease_expires_at = None
        run.cancel_reason, run.pause_reason = "", "" if going else paused[0].paused
        if run.home_id not in {wish.experiment_id for wish in heirs}:
            run.home_id = heirs[0].experiment_id
    else:
        # Whoever of them was last decides; the first reason stays.
        own = [wish.cancelled for wish in wishes if wish.experiment_id == run.home_id]
        run.cancel_reason = run.cancel_reason or (own or [wish.cancelled for wish in wishes])[0]
        run.pause_reason = ""
    if (run.cancel_reason, run.pause_reason) != before:
        run.next_check_at = now
