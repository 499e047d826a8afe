"""Which runs wait, and since when: noted every half minute, as nothing happens when a run goes on waiting.

A run waits if it is queued and has a reason, or has a place and no node. One that waits because its own experiment has
as many in flight as `concurrency` allows does not count: that is what was asked for.
"""

from datetime import datetime, timedelta

from sqlalchemy import and_, exists, func, or_, select, update
from sqlalchemy.orm import Session, aliased

from service.notify.repository import tell, webhooks_for
from service.states import Event, RunState
from service.tables import Experiment, Run, Trial, Webhook

GOING = (~Run.settled, Run.cancel_reason == "", Run.pause_reason == "")
WANTED = (Trial.cancel_reason == "", Trial.pause_reason == "", Experiment.cancelled_at.is_(None))


def note(session: Session, now: datetime) -> None:
    """For runs, and for experiments that have one; to be called in `deciding()`."""
    other, trial = aliased(Run), aliased(Trial)
    in_flight = (
        select(func.count(other.id.distinct()))
        .join(trial, trial.run_id == other.id)
        .where(
            trial.experiment_id == Trial.experiment_id, trial.cancel_reason == "", other.admitted, ~other.settled,
        )
        .scalar_subquery()
    )  # fmt: skip
    may_start = exists().where(
        Trial.run_id == Run.id, Experiment.id == Trial.experiment_id, *WANTED, in_flight < Experiment.concurrency
    )
    queued = and_(Run.state == RunState.QUEUED, or_(Run.admitted, may_start))
    without_node = Run.state.in_((RunState.STARTING, RunState.INTERRUPTED))
    waits = and_(*GOING, Run.waiting_reason != "", or_(queued, without_node))
    waiting = set(session.scalars(select(Run.id).where(waits)))
    noted = set(session.scalars(select(Run.id).where(Run.waits_since.is_not(None))))
    session.execute(update(Run).where(Run.id.in_(noted - waiting)).values(waits_since=None))
    session.execute(update(Run).where(Run.id.in_(waiting - noted)).values(waits_since=now))
    if not (noted or waiting):
        return
    has_one = exists().where(Trial.experiment_id == Experiment.id, Trial.run_id == Run.id, *WANTED, _WAITS)
    going = update(Experiment).where(~Experiment.published)
    session.execute(going.where(has_one, Experiment.waits_since.is_(None)).values(waits_since=now))
    session.execute(
        update(Experiment).where(Experiment.waits_since.is_not(None), ~has_one).values(waits_since=None)
    )  # fmt: skip


_WAITS = Run.waits_since.is_not(None)


def tell_waiting(session: Session, now: datetime) -> None:
    """Once for each experiment and stretch of waiting: from its first run that waits until none does."""
    for webhook in webhooks_for(session, Event.WAITING):
        _tell(session, webhook, now)


def _tell(session: Session, webhook: Webhook, now: datetime) -> None:
    since = now - timedelta(minutes=webhook.waits_longer_than_minutes)
    rows = session.execute(
        select(Experiment, Run.id, Run.waiting_reason)
        .join(Trial, Trial.experiment_id == Experiment.id)
        .join(Run, Run.id == Trial.run_id)
        .where(*WANTED, Run.waits_since <= since, Experiment.waits_since.is_not(None))
        .order_by(Experiment.id, Run.waits_since.desc(), Run.id.desc())
    )
    # Of each experiment the run that waits longest.
    for experiment, run_id, reason in {experiment.id: (experiment, *rest) for experiment, *rest in rows}.values():
        assert experiment.waits_since
        tell(session, webhook, experiment, Event.WAITING, experiment.waits_since.isoformat(), now, reason, run_id)
