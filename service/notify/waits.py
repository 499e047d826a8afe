"""Which runs wait, and since when: noted every half minute, as nothing happens when a run goes on waiting.

A run waits if it has no place, or has a place and no node. One that has no place because its own experiment has as many
in flight as its `concurrency` allows does not count: that is what was asked for.
"""

from datetime import datetime, timedelta

from sqlalchemy import and_, exists, func, or_, select, update
from sqlalchemy.orm import Session

from service.notify.repository import tell, webhooks_for
from service.states import Event, RunState
from service.tables import Experiment, Run, Trial, Webhook

GOING = (~Run.settled, Run.cancel_reason == "", Run.pause_reason == "")
WANTED = (Trial.cancel_reason == "", Trial.pause_reason == "", Experiment.cancelled_at.is_(None))
IS_NOTED = Run.waits_since.is_not(None)
NO_SYNC = {"synchronize_session": False}


def is_anything_going(session: Session) -> bool:
    """Or has gone when it was last looked."""
    return session.scalar(select(Run.id).where(or_(~Run.settled, IS_NOTED)).limit(1)) is not None


def note(session: Session, now: datetime) -> None:
    """For runs, and for experiments that have one; to be called in `deciding()`."""
    full = (
        select(Experiment.id)
        .join(Trial, Trial.experiment_id == Experiment.id)
        .join(Run, Run.id == Trial.run_id)
        .where(~Run.settled, Run.admitted, Trial.cancel_reason == "")
        .group_by(Experiment.id, Experiment.concurrency)
        .having(func.count(Run.id.distinct()) >= Experiment.concurrency)
    )
    may_start = exists().where(
        Trial.run_id == Run.id, Experiment.id == Trial.experiment_id, *WANTED, Experiment.id.not_in(full)
    )
    queued = and_(Run.state == RunState.QUEUED, or_(Run.admitted, may_start))
    waits = and_(*GOING, or_(queued, Run.state.in_((RunState.STARTING, RunState.INTERRUPTED))))
    runs = update(Run).execution_options(**NO_SYNC)
    session.execute(runs.where(IS_NOTED, ~waits).values(waits_since=None))
    session.execute(runs.where(~IS_NOTED, waits).values(waits_since=now))

    has_one = exists().where(Trial.experiment_id == Experiment.id, Trial.run_id == Run.id, *WANTED, IS_NOTED)
    noted, mine = Experiment.waits_since.is_not(None), update(Experiment).execution_options(**NO_SYNC)
    session.execute(mine.where(noted, ~has_one).values(waits_since=None))
    session.execute(mine.where(~noted, ~Experiment.published, has_one).values(waits_since=now))


def tell_waiting(session: Session, now: datetime) -> None:
    """Once for each experiment and stretch of waiting: from its first run that waits until none does."""
    for webhook in webhooks_for(session, Event.WAITING):
        _tell(session, webhook, now)


def _tell(session: Session, webhook: Webhook, now: datetime) -> None:
    since = now - timedelta(minutes=webhook.waits_longer_than_minutes)
    # Of each experiment the run that waits longest comes first.
    rows = session.execute(
        select(Experiment, Run.id, Run.waiting_reason)
        .join(Trial, Trial.experiment_id == Experiment.id)
        .join(Run, Run.id == Trial.run_id)
        .where(*WANTED, Run.waits_since <= since, Experiment.waits_since.is_not(None))
        .order_by(Experiment.id, Run.waits_since, Run.id)
    ).all()
    told: set[str] = set()
    for experiment, run_id, reason in rows:
        if experiment.id not in told and experiment.waits_since:
            told.add(experiment.id)
            tell(session, webhook, experiment, Event.WAITING, experiment.waits_since.isoformat(), now, reason, run_id)
