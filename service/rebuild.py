"""Writing a lost database anew from the store: experiments, arms, trials, runs and attempts, with all their numbers.

Tokens, webhooks, the audit and limits of projects are not in the store: a dump of the database has them
(docs/backup.md).
"""

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from pydantic import ValidationError
from sqlalchemy import select
from sqlalchemy.orm import Session

from service.db import Database
from service.errors import NotEmpty, Unavailable
from service.experiments.wishes import follow
from service.reconciler.outside import progress_of, seconds_by_pool
from service.record import FOLDER, OWN, ExperimentRecord, RunRecord
from service.schemas.rebuild import NotRebuilt, Rebuilt
from service.settings import Settings
from service.states import FINAL, AttemptState, RunState
from service.tables import Arm, Attempt, Charge, Experiment, PoolCharge, Run, Trial
from trainer.contract.records import DONE, Outcome, Readings, Result, Sent, Verdict
from trainer.contract.records import Session as TrainingSession
from trainer.store.objects import StorageError, open_store
from trainer.store.rundir import UnreadableRecord, read_outcome, read_readings, read_result, read_sent, read_sessions

READERS = 16
ALL = ""
"""Of all pools together, in what is counted by pool."""


@dataclass(frozen=True)
class Found:
    """What a run has left in its directory."""

    outcome: Outcome | None
    result: Result | None
    readings: Readings
    sessions: Sequence[TrainingSession]
    sent: Sent | None


def rebuild(db: Database, settings: Settings, live: Collection[str]) -> Rebuilt:
    """Write all that the store knows of into an empty database. `live`: attempts that the scheduler has.

    An experiment of which something cannot be read is left out whole, and told. Raises NotEmpty, Unavailable.
    """
    _refuse_what_is_not_empty(db)
    skipped: list[NotRebuilt] = []
    try:
        records = list(_experiments(settings, skipped))
        ids = {run.id for record in records for run in record.runs}
        with ThreadPoolExecutor(READERS) as pool:
            read = dict(zip(ids, pool.map(lambda id: _read(settings, id), ids), strict=True))
    except StorageError as error:
        raise Unavailable(f"The store cannot be read, so nothing was written: {error}") from error
    records = list(_whole(records, read, skipped))
    runs = {run.id: run for record in records for run in record.runs}
    found = {id: what for id, what in read.items() if isinstance(what, Found) and id in runs}
    homes: dict[str, list[str]] = defaultdict(list)
    for record in records:
        for run in record.runs:
            homes[run.id].append(record.id)
    now = datetime.now(UTC)
    with db.deciding() as session:
        _refuse(session)
        for record in records:
            session.add(_experiment(record, now))
        session.flush()
        session.add_all(_run(runs[id], found[id], homes[id], now, live) for id in runs)
        session.flush()
        attempts = [attempt for id in runs for attempt in _attempts(runs[id], found[id], live)]
        session.add_all(attempts)
        paid = _paid(records)
        for record in records:
            _trials(session, record, found, paid)
        follow(session, list(runs), now)
        _settle(session)
    return Rebuilt(experiments=len(records), runs=len(runs), attempts=len(attempts), skipped=skipped)


def _refuse_what_is_not_empty(db: Database) -> None:
    with db.read() as session:
        _refuse(session)


def _refuse(session: Session) -> None:
    if session.scalar(select(Experiment.id).limit(1)) or session.scalar(select(Run.id).limit(1)):
        raise NotEmpty(
            "This database has experiments, and only an empty one is written anew. Start the service with another "
            "MCF_DATABASE_URL, or move its file away, and ask again."
        )


def _experiments(settings: Settings, skipped: list[NotRebuilt]) -> Iterable[ExperimentRecord]:
    store = open_store(settings.store_uri)
    for entry in store.list(f"{FOLDER}/"):
        try:
            yield ExperimentRecord.model_validate_json(store.get(entry.name))
        except ValidationError as error:
            skipped.append(NotRebuilt(name=entry.name, why=str(error).partition("\n")[0]))


def _read(settings: Settings, run_id: str) -> "Found | str":
    """Or what is there and cannot be read."""
    store = open_store(settings.run_uri(run_id))
    try:
        return Found(
            read_outcome(store), read_result(store), read_readings(store), read_sessions(store), read_sent(store)
        )
    except UnreadableRecord as error:
        return str(error).partition("\n")[0]


def _whole(
    records: Iterable[ExperimentRecord], read: Mapping[str, Found | str], skipped: list[NotRebuilt]
) -> Iterable[ExperimentRecord]:  # fmt: skip
    """Without the experiments that have a run which cannot be read."""
    for record in records:
        wrong = next((why for run in record.runs if isinstance(why := read[run.id], str)), None)
        if wrong is None:
            yield record
        else:
            skipped.append(NotRebuilt(name=f"{FOLDER}/{record.id}.json ({record.name})", why=wrong))


def _paid(records: Iterable[ExperimentRecord]) -> Mapping[str, Counter[str]]:
    """Run -> what experiments that are not its home have paid for it, in process-seconds: of each pool, and of ALL."""
    paid: dict[str, Counter[str]] = defaultdict(Counter)
    for record in records:
        for run in record.runs:
            paid[run.id].update(_charged(run) if run.home_id != record.id else {})
    return paid


def _charged(run: RunRecord) -> dict[str, float]:
    return {ALL: run.charged_seconds or 0.0, **run.charged_pools}


def _experiment(record: ExperimentRecord, now: datetime) -> Experiment:
    # Looks name arms by their ids, which are other ones now.
    return Experiment(
        **{name: getattr(record, name) for name in OWN if name != "looks"}, looks=[], next_check_at=now
    )  # fmt: skip


def _run(
    record: RunRecord, found: Found, homes: Sequence[str], now: datetime, live: Collection[str]
) -> Run:  # fmt: skip
    """`homes`: the experiments that use it."""
    sent = found.sent
    outcome, result = found.outcome, found.result
    values: dict[str, Any] = progress_of(found.sessions) | {
        "id": record.id, "digest": record.digest, "pretraining": record.pretraining, "private_to": record.private_to,
        "spec": record.spec, "created_at": record.created_at, "checkpoints_kept": record.checkpoints_kept,
        # Where it was sent last is newer than what its experiment knows.
        "placement": sent.placement if sent else record.placement,
        "weights_of": sent.weights_of if sent else record.weights_of,
        "tracking_id": sent.tracking_id if sent else record.tracking_id,
        "tracking_run_id": sent.tracking_run_id if sent else record.tracking_run_id,
        "home_id": record.home_id if record.home_id in homes else homes[0],
        "step": max([session.step for session in found.sessions] + [outcome.step if outcome else 0]),
        "next_check_at": now,
    }  # fmt: skip
    values.setdefault("total_steps", record.total_steps)
    if found.readings.readings:
        values["readings"] = found.readings.model_dump(mode="json")
        values["last_reading"] = found.readings.readings[-1].step
    if outcome and outcome.verdict is Verdict.SUCCEEDED and result:
        values |= {"state": RunState.SUCCEEDED, "result": result.model_dump(mode="json"), "step": result.steps}
    elif outcome:
        missing = outcome.verdict is Verdict.SUCCEEDED
        reason = "its result.json is missing; retry starts from the last checkpoint" if missing else outcome.reason
        values |= {"state": RunState.FAILED, "reason": reason, "kind": "MissingResult" if missing else outcome.kind}
    if outcome:
        values |= {"ended_at": outcome.ended_at, "stage": DONE}
    elif f"{record.id}-{_newest(found)}" in live:
        # What it does now the next look at its newest attempt tells; others get a place in their turn.
        values |= {"state": RunState.INTERRUPTED, "admitted": True}
    return Run(**values)


def _newest(found: Found) -> int:
    """Number of the newest attempt; 0 = there has been none."""
    return max([stretch.attempt for stretch in found.sessions] + [found.sent.attempt if found.sent else 0])


def _attempts(record: RunRecord, found: Found, live: Collection[str]) -> Iterable[Attempt]:
    """One for each that has trained, and the newest that was sent; why they ended was in the database alone."""
    by_number: dict[int, list[TrainingSession]] = defaultdict(list)
    for stretch in found.sessions:
        by_number[stretch.attempt].append(stretch)
    newest, step = _newest(found), 0
    for number in range(1, newest + 1):
        mine = by_number[number]
        first = mine[0].first_step if mine else step
        step = max([stretch.step for stretch in mine], default=first)
        ends = found.outcome is not None or number < newest or f"{record.id}-{number}" not in live
        won = number == newest and found.outcome is not None and found.outcome.verdict is Verdict.SUCCEEDED
        over = AttemptState.SUCCEEDED if won else AttemptState.LOST
        started = mine[0].started_at if mine else record.created_at
        yield Attempt(
            run_id=record.id, number=number, state=over if ends else AttemptState.RUNNING, confirmed=True,
            first_step=first, last_step=step, created_at=started,
            ended_at=(mine[-1].seen_at if mine else started) if ends else None,
            pool=found.sent.pool if found.sent and number == newest else "",
            reason="" if won or not ends else "its end was in the database that was lost",
        )  # fmt: skip


def _trials(
    session: Session, record: ExperimentRecord, found: Mapping[str, Found], paid: Mapping[str, Counter[str]]
) -> None:  # fmt: skip
    arms = {
        arm.position: Arm(experiment_id=record.id, **arm.model_dump(exclude={"id"})) for arm in record.arms
    }  # fmt: skip
    session.add_all(arms.values())
    session.flush()
    ids = {str(arm.id): arms[arm.position].id for arm in record.arms}
    experiment = session.get_one(Experiment, record.id)
    # What trains again is published again, and its cap counts meanwhile.
    experiment.published = record.published and all(
        found[run.id].outcome or _is_over(record, run) for run in record.runs
    )
    experiment.looks = [
        {
            "taken_at": look["taken_at"],
            "finished": {str(ids[id]): seeds for id, seeds in look["finished"].items()},
            "on": sorted(ids[str(id)] for id in look["on"]),
        }
        for look in record.looks
    ]
    session.add_all(
        Trial(
            experiment_id=record.id, arm_id=arms[trial.arm].id, seed=trial.seed, run_id=trial.run_id,
            cancel_reason=trial.cancel_reason, pause_reason=trial.pause_reason, published=experiment.published,
        )
        for trial in record.trials
    )  # fmt: skip
    for run in record.runs:
        mine = _charged(run)
        if run.home_id == record.id and not (mine[ALL] and record.published):
            # While a run goes on, what has been paid is known from its sessions.
            stretches = found[run.id].sessions
            spent = {ALL: sum(each.process_seconds for each in stretches), **seconds_by_pool(stretches)}
            mine |= {pool: max(mine.get(pool, 0.0), spent[pool] - paid[run.id][pool]) for pool in spent}
        for pool, seconds in mine.items():
            if seconds:
                keys = {"run_id": run.id, "experiment_id": record.id, "process_seconds": seconds}
                session.add(Charge(**keys) if pool == ALL else PoolCharge(**keys, pool=pool))


def _is_over(record: ExperimentRecord, run: RunRecord) -> bool:
    """Without an outcome: it was cancelled."""
    trials = [trial for trial in record.trials if trial.run_id == run.id]
    return record.cancelled_at is not None or all(trial.cancel_reason for trial in trials)


def _settle(session: Session) -> None:
    """Ends that MLflow had been told are not told again."""
    published = select(Trial.run_id).where(Trial.published)
    for run in session.scalars(select(Run).where(Run.id.in_(published), Run.state.in_(FINAL))):
        run.settled = True
