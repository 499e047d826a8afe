"""Sends what webhooks are to be told, from threads of its own: a receiver that is slow holds up nobody else."""

import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from datetime import datetime, timedelta
from typing import Any

import structlog
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session

from service.compare.headline import headline
from service.compare.service import Comparisons
from service.costs import prices_of
from service.db import Database
from service.experiments import views
from service.notify import messages, repository, waits
from service.notify.posting import Answer, post
from service.settings import Settings
from service.tables import Delivery, Experiment, Webhook

log = structlog.get_logger()

SENDERS = 4
LOOK = timedelta(seconds=2)
NOTE_WAITS = timedelta(seconds=30)
LEASE_SECONDS = 60.0
PAUSES = (10, 30, 120, 600, 3600)
"""Seconds to the next attempt; the last one from then on."""
GIVE_UP = timedelta(hours=24)
GONE = 410


class Notifier:
    """`tick` starts what is due and returns at once; `drain` waits for it."""

    def __init__(
        self, db: Database, settings: Settings, clock: Callable[[], datetime], stopping: threading.Event
    ) -> None:
        self._db, self._settings, self._clock, self._stopping = db, settings, clock, stopping
        self._comparisons = Comparisons(settings.tracking_uri, prices_of(settings))
        self._looking = ThreadPoolExecutor(1, thread_name_prefix="notify")
        self._senders = ThreadPoolExecutor(SENDERS, thread_name_prefix="send")
        self._look: Future[None] | None = None
        self._sending: dict[str, Future[None]] = {}
        """By webhook: one at a time of each, so that one that is slow takes one sender."""
        self._looked_at = self._noted_at = clock() - NOTE_WAITS

    def tick(self, now: datetime) -> None:
        if now - self._looked_at >= LOOK and (self._look is None or self._look.done()):
            self._looked_at = now
            self._look = self._looking.submit(self._round)

    def drain(self) -> None:
        if self._look:
            self._look.result()
        for sent in wait(list(self._sending.values())).done:
            sent.result()

    def stop(self) -> None:
        """Returns when what is being sent has an answer, or none in time."""
        self._looking.shutdown()
        self._senders.shutdown()

    def _round(self) -> None:
        try:
            now = self._clock()
            if now - self._noted_at >= NOTE_WAITS:
                self._noted_at = now
                self._note_waits(now)
            self._start_sending(now)
        except Exception:
            # The database may be away for a while; the next round does what this one has not.
            log.exception("notifying failed")

    def _note_waits(self, now: datetime) -> None:
        with self._db.read() as session:
            is_going = waits.is_anything_going(session)
        with self._db.deciding() as session:
            if is_going:
                waits.note(session, now)
                waits.tell_waiting(session, now)
            repository.forget_old(session, now)

    def _start_sending(self, now: datetime) -> None:
        self._sending = {webhook: sent for webhook, sent in self._sending.items() if not sent.done()}
        free = SENDERS - len(self._sending)
        if not free or self._stopping.is_set():
            return
        with self._db.read() as session:
            if not repository.is_anything_due(session, now):
                return
        with self._db.write() as session:
            due = repository.lease_due(session, now, LEASE_SECONDS, free, self._sending.keys())
        for delivery, webhook, lease in due:
            self._sending[webhook] = self._senders.submit(self._send, delivery, lease)

    def _send(self, delivery_id: str, lease: str) -> None:
        try:
            with self._db.read() as session:
                delivery = session.get(Delivery, delivery_id)
                webhook = session.get(Webhook, delivery.webhook_id) if delivery else None
                if delivery is None or webhook is None:
                    return  # deleted since
                body = delivery.body or self._body(session, delivery, webhook)
            if delivery.body is None:
                # Kept before it is sent: who gets it twice gets the same.
                with self._db.write() as session:
                    if not repository.write(session, delivery_id, lease, {"body": body}):
                        return
            at = int(self._clock().timestamp())
            answer = post(webhook.url, webhook.secret, delivery.id, delivery.event.value, body, at)
        except Exception as error:
            log.exception("a delivery could not be made", delivery=delivery_id)
            answer = Answer(None, f"an error of the service ({type(error).__name__}); see its log", "", 0.0)
        try:
            self._write(delivery_id, lease, answer)
        except SQLAlchemyError:
            # Its lease runs out, and it is sent again: the receiver can tell by its id.
            log.exception("what came of a delivery was not noted", delivery=delivery_id)

    def _body(self, session: Session, delivery: Delivery, webhook: Webhook) -> str:
        experiment = session.get_one(Experiment, delivery.experiment_id)
        [summary] = views.summaries(session, [experiment], self._settings)
        table = None if experiment.purged_at else self._comparisons.of(session, experiment.id)
        head, unit = (headline(table), table.hours) if table else (None, "process-hours")
        return messages.body(delivery, summary, head, unit, webhook.form, self._settings.public_url)

    def _write(self, delivery_id: str, lease: str, answer: Answer) -> None:
        now = self._clock()
        with self._db.write() as session:
            delivery = session.get(Delivery, delivery_id)
            if delivery is None:
                return
            values = self._what_follows(delivery, answer, now)
            if not repository.write(session, delivery_id, lease, values):
                return
        if answer.status == GONE:
            # Whoever is killed before it hears the same of the next delivery.
            with self._db.deciding() as session:
                reason = f"the receiver answered {GONE} (gone) at {now:%Y-%m-%d %H:%M} UTC"
                repository.disable(session, delivery.webhook_id, reason, now)
        log.info(
            "delivery", delivery=delivery_id, webhook=delivery.webhook_id, tells=delivery.event.value,
            experiment_id=delivery.experiment_id, status=answer.status, error=answer.error,
            attempt=values["attempts"], is_over=values["done_at"] is not None,
        )  # fmt: skip

    def _what_follows(self, delivery: Delivery, answer: Answer, now: datetime) -> dict[str, Any]:
        pause = timedelta(seconds=PAUSES[min(delivery.attempts, len(PAUSES) - 1)])
        is_over = answer.is_ok or answer.status == GONE or now + pause > delivery.created_at + GIVE_UP
        given_up = "" if answer.is_ok or not is_over else "; given up"
        return {
            "attempts": delivery.attempts + 1, "last_status": answer.status, "last_error": answer.error + given_up,
            "done_at": now if is_over else None, "next_check_at": now + pause, "lease_token": None,
            "lease_expires_at": None,
        }  # fmt: skip
