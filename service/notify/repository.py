"""The SQL of webhooks and of what they are told."""

import secrets
import uuid
from collections.abc import Collection, Sequence
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import delete, func, or_, select, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session, defer

from service.states import Event
from service.tables import Delivery, Experiment, Trial, Webhook

MAX_REASON = 500
KEPT = timedelta(days=30)
"""Deliveries that are done, to be looked at."""


def webhooks_for(session: Session, event: Event) -> Sequence[Webhook]:
    """In one order everywhere: two writers of the same deliveries never wait for each other in a circle."""
    found = session.scalars(select(Webhook).where(Webhook.disabled_reason == "").order_by(Webhook.id))
    return [webhook for webhook in found if event in webhook.events]


def tell_ended(session: Session, experiment_id: str, now: datetime) -> None:
    """In the transaction in which the experiment has ended."""
    if webhooks := webhooks_for(session, Event.ENDED):
        experiment = session.get_one(Experiment, experiment_id)
        for webhook in webhooks:
            tell(session, webhook, experiment, Event.ENDED, str(experiment.opened), now, experiment.cancel_reason)


def tell_failed(session: Session, run_id: str, reason: str, now: datetime) -> None:
    """In the transaction in which the run has failed: whoever wants the run, once per experiment."""
    if not (webhooks := webhooks_for(session, Event.FAILED)):
        return
    users = select(Trial.experiment_id).where(Trial.run_id == run_id, Trial.cancel_reason == "")
    query = select(Experiment).where(
        Experiment.id.in_(users), Experiment.cancelled_at.is_(None), Experiment.deleted_at.is_(None)
    )
    for experiment in session.scalars(query.order_by(Experiment.id)).all():
        for webhook in webhooks:
            tell(session, webhook, experiment, Event.FAILED, str(experiment.opened), now, reason, run_id)


def tell(
    session: Session, webhook: Webhook, experiment: Experiment, event: Event, occurrence: str, now: datetime,
    reason: str = "", run_id: str | None = None,
) -> None:  # fmt: skip
    """Write it down, unless it is: whoever else has seen the same wrote the same key."""
    if webhook.project not in (None, experiment.project):
        return
    insert = sqlite.insert if session.get_bind().dialect.name == "sqlite" else postgresql.insert
    values = {
        "id": f"d{secrets.token_hex(8)}", "webhook_id": webhook.id, "experiment_id": experiment.id, "event": event,
        "occurrence": occurrence, "run_id": run_id, "reason": reason.replace("\0", "")[:MAX_REASON], "created_at": now,
        "attempts": 0, "last_error": "", "next_check_at": now,
    }  # fmt: skip
    session.execute(insert(Delivery).values(values).on_conflict_do_nothing())


def is_anything_due(session: Session, now: datetime) -> bool:
    query = select(Delivery.id).where(Delivery.done_at.is_(None), Delivery.next_check_at <= now).limit(1)
    return session.scalar(query) is not None


def lease_due(
    session: Session, now: datetime, seconds: float, limit: int, busy: Collection[str]
) -> list[tuple[str, str, str]]:
    """(delivery, webhook, lease) of what is due: the first of each webhook, but of none that is busy."""
    due = (
        Delivery.done_at.is_(None), Delivery.next_check_at <= now,
        or_(Delivery.lease_expires_at.is_(None), Delivery.lease_expires_at <= now),
    )  # fmt: skip
    first = func.min(Delivery.next_check_at)
    query = (
        select(Delivery.webhook_id)
        .join(Webhook, Webhook.id == Delivery.webhook_id)
        .where(*due, Webhook.disabled_reason == "", Webhook.id.not_in(busy))
        .group_by(Delivery.webhook_id)
        .order_by(first)
        .limit(limit)
    )
    token, found = uuid.uuid4().hex, []
    for webhook_id in session.scalars(query).all():
        oldest = select(Delivery.id).where(*due, Delivery.webhook_id == webhook_id).order_by(Delivery.next_check_at)
        if id := session.scalar(oldest.limit(1).with_for_update(skip_locked=True)):
            found.append((id, webhook_id, token))
    values = {"lease_token": token, "lease_expires_at": now + timedelta(seconds=seconds)}
    session.execute(update(Delivery).where(Delivery.id.in_([id for id, *_ in found])).values(values))
    return found


def write(session: Session, delivery_id: str, lease: str, values: dict[str, Any]) -> bool:
    """False, and nothing written, when the lease is no longer ours, or the webhook is deleted."""
    owned = update(Delivery).where(Delivery.id == delivery_id, Delivery.lease_token == lease)
    return session.scalar(owned.values(values).returning(Delivery.id)) is not None


def disable(session: Session, webhook_id: str, reason: str, now: datetime) -> None:
    """Nothing is sent to it any more, nor kept for it."""
    waiting = update(Delivery).where(Delivery.webhook_id == webhook_id, Delivery.done_at.is_(None))
    session.execute(waiting.values(done_at=now, last_error=reason, lease_token=None, lease_expires_at=None))
    session.execute(update(Webhook).where(Webhook.id == webhook_id).values(disabled_reason=reason))


def forget_old(session: Session, now: datetime) -> None:
    session.execute(delete(Delivery).where(Delivery.done_at < now - KEPT))


def remove(session: Session, webhook_id: str) -> None:
    session.execute(delete(Delivery).where(Delivery.webhook_id == webhook_id))
    session.execute(delete(Webhook).where(Webhook.id == webhook_id))


def all_of(session: Session, project: str | None) -> Sequence[Webhook]:
    """Newest first; of one project, or all."""
    query = select(Webhook).order_by(Webhook.created_at.desc(), Webhook.id)
    return session.scalars(query.where(Webhook.project == project) if project else query).all()


def newest(session: Session, webhook_ids: Collection[str]) -> dict[str, Delivery]:
    """Webhook -> what it was told last."""
    order = Delivery.created_at.desc(), Delivery.id
    place = func.row_number().over(partition_by=Delivery.webhook_id, order_by=order).label("place")
    ranked = select(Delivery.id, place).where(Delivery.webhook_id.in_(webhook_ids)).subquery()
    query = select(Delivery).join(ranked, ranked.c.id == Delivery.id).where(ranked.c.place == 1)
    return {found.webhook_id: found for found in session.scalars(query.options(defer(Delivery.body)))}


def to_be_sent(session: Session, webhook_ids: Collection[str]) -> dict[str, tuple[int, datetime]]:
    """Webhook -> how much is to be sent, or sent again, and when the next of it is."""
    mine = Delivery.webhook_id.in_(webhook_ids) & Delivery.done_at.is_(None)
    query = select(Delivery.webhook_id, func.count(), func.min(Delivery.next_check_at)).where(mine)
    return {id: (number, at) for id, number, at in session.execute(query.group_by(Delivery.webhook_id))}


def deliveries(session: Session, webhook_id: str, limit: int) -> Sequence[Delivery]:
    """Newest first."""
    query = select(Delivery).where(Delivery.webhook_id == webhook_id)
    return session.scalars(query.order_by(Delivery.created_at.desc(), Delivery.id).limit(limit)).all()
