"""The SQL of deletion: what only one experiment uses, what others refer to, and what is left to remove."""

import re
import uuid
from collections.abc import Collection, Iterable, Sequence
from datetime import datetime

from sqlalchemy import Select, case, delete, exists, func, or_, select, update
from sqlalchemy.orm import Session

from service.states import FINAL, RunState
from service.tables import Arm, Attempt, Charge, Doomed, Experiment, PoolCharge, Project, Run, Trial

# The address of a run's export in another run's spec, as a teacher or to start from (service/experiments/shelf.py).
IN_STORE = re.compile(r"/runs/(r[0-9a-f]+)/")
SOURCES = ("teacher", "initial")
# Checkpoints: more than any run has.
ALL = 1_000_000


def only_used_by(session: Session, *experiment_ids: str) -> set[str]:
    """Runs that nobody would use any more without these experiments; those they have given up for others count."""
    elsewhere = exists().where(Trial.run_id == Run.id, Trial.experiment_id.not_in(experiment_ids))
    here = exists().where(Trial.run_id == Run.id, Trial.experiment_id.in_(experiment_ids))
    paid_elsewhere = exists().where(
        Charge.run_id == Run.id, Charge.experiment_id == Experiment.id, Charge.experiment_id.not_in(experiment_ids),
        Experiment.purged_at.is_(None),
    )  # fmt: skip
    # At home here; or where everything is gone already, and only something of these has held them.
    homes = select(Experiment.id).where(or_(Experiment.id.in_(experiment_ids), Experiment.purged_at.is_not(None)))
    given_up = Run.home_id.in_(homes) & ~paid_elsewhere
    query = select(Run.id).where(~elsewhere, or_(here, given_up))
    return _unreferenced(session, set(session.scalars(query)))


def _unreferenced(session: Session, candidates: set[str]) -> set[str]:
    """Without those that a run which stays measures, was taught by, or starts from."""
    if not candidates:
        return candidates
    users: dict[str, set[str]] = {}
    sources = [Run.spec[part]["source"].as_string() for part in SOURCES]
    for user, weights, *addresses in session.execute(select(Run.id, Run.weights_of, *sources)):
        found = {match[1] for address in addresses if address and (match := IN_STORE.search(address))}
        for used in found | ({weights} if weights else set()):
            users.setdefault(used, set()).add(user)
    while held := {run for run in candidates if users.get(run, set()) - candidates}:
        candidates = candidates - held
    return candidates


def unended(session: Session, experiment_id: str) -> int:
    """Runs of it that have not ended, or whose end is not told everywhere; not those that go on for others."""
    query = select(func.count()).where(Run.home_id == experiment_id, ~Run.settled)
    return session.scalar(query) or 0


def other_users(session: Session, experiment_ids: Collection[str], project: str | None) -> dict[str, list[str]]:
    """Run of these experiments -> the other experiments that use it, of one project or of all."""
    mine = select(Trial.run_id).where(Trial.experiment_id.in_(experiment_ids))
    query = (
        select(Trial.run_id, Trial.experiment_id)
        .join(Experiment, Experiment.id == Trial.experiment_id)
        .where(Trial.run_id.in_(mine), Trial.experiment_id.not_in(experiment_ids))
        .distinct()
        .order_by(Trial.run_id, Trial.experiment_id)
    )
    rows = session.execute(query.where(Experiment.project == project) if project else query)
    found: dict[str, list[str]] = {}
    for run, other in rows:
        found.setdefault(run, []).append(other)
    return found


def deleted(session: Session) -> set[str]:
    """Experiments that can still be restored."""
    query = select(Experiment.id).where(Experiment.deleted_at.is_not(None), Experiment.purged_at.is_(None))
    return set(session.scalars(query))


def due(session: Session, now: datetime) -> Sequence[str]:
    """Experiments whose time of grace is over."""
    query = select(Experiment.id).where(Experiment.purged_at.is_(None), Experiment.purge_at <= now)
    return session.scalars(query.order_by(Experiment.purge_at)).all()


def aged(session: Session, now: datetime) -> list[tuple[str, str, float]]:
    """Experiments that a project's rule deletes, by id, with the project and its days."""
    rules = session.execute(select(Project.name, Project.delete_after_days)).all()
    found = []
    for project, days in rules:
        if days is None:
            continue
        last = (
            select(func.max(Run.ended_at))
            .join(Trial, Trial.run_id == Run.id)
            .where(Trial.experiment_id == Experiment.id)
            .scalar_subquery()
        )
        query = select(Experiment.id, Experiment.created_at, Experiment.restored_at, last).where(
            Experiment.project == project, Experiment.published, Experiment.deleted_at.is_(None)
        )
        found += [
            (id, project, days)
            for id, created, restored, ended in session.execute(query)
            # Runs that it shares may have ended before it was submitted.
            if ended is not None and (now - max(ended, created, restored or created)).total_seconds() > days * 86400
        ]
    return found


def purge(session: Session, experiment: Experiment, now: datetime) -> Collection[str]:
    """Take the experiment out of the tables, and what only it has used; returns the runs that are to be removed."""
    gone = only_used_by(session, experiment.id)
    session.execute(delete(Trial).where(Trial.experiment_id == experiment.id))
    session.execute(delete(Arm).where(Arm.experiment_id == experiment.id))
    for run in session.scalars(select(Run).where(Run.id.in_(gone))):
        session.add(
            Doomed(
                run_id=run.id, remove_objects=experiment.remove_objects, next_check_at=now,
                tracking_run_id=run.tracking_run_id if experiment.remove_tracking else None,
            )
        )  # fmt: skip
    session.flush()
    for table in Attempt, Charge, PoolCharge:
        session.execute(delete(table).where(table.run_id.in_(gone)))
    session.execute(delete(Run).where(Run.id.in_(gone)))
    _rehome(session, experiment.id)
    experiment.purged_at, experiment.idempotency_key, experiment.published = now, None, True
    return gone


def _rehome(session: Session, experiment_id: str) -> None:
    """What stays is of the oldest experiment that uses it."""
    for run in session.scalars(select(Run).where(Run.home_id == experiment_id)):
        heir = session.scalar(_users(run.id).limit(1))
        run.home_id = heir or run.home_id


def _users(run_id: str) -> Select[str]:
    return (
        select(Experiment.id)
        .join(Trial, Trial.experiment_id == Experiment.id)
        .where(Trial.run_id == run_id)
        .order_by(Experiment.created_at, Experiment.id)
    )


def lease_doomed(session: Session, now: datetime, expires: datetime) -> Doomed | None:
    """One at a time."""
    free = or_(Doomed.lease_expires_at.is_(None), Doomed.lease_expires_at <= now)
    due = select(Doomed).where(Doomed.next_check_at <= now, free)
    found = session.scalar(due.order_by(Doomed.next_check_at, Doomed.run_id).limit(1).with_for_update(skip_locked=True))
    if found:
        found.lease_token, found.lease_expires_at = uuid.uuid4().hex, expires
    return found


def renew(session: Session, doomed: Doomed, expires: datetime) -> None:
    """Unless somebody else is at it by now."""
    mine = update(Doomed).where(Doomed.run_id == doomed.run_id, Doomed.lease_token == doomed.lease_token)
    session.execute(mine.values(lease_expires_at=expires))


def removed(session: Session, doomed: Doomed) -> None:
    """Unless somebody else is at it by now."""
    session.execute(delete(Doomed).where(Doomed.run_id == doomed.run_id, Doomed.lease_token == doomed.lease_token))


def num_runs_being_removed(session: Session) -> int:
    """Without the notes of experiments, which have no directory."""
    return session.scalar(select(func.count()).select_from(Doomed).where(Doomed.run_id.startswith("r"))) or 0


def put_off(session: Session, doomed: Doomed, until: datetime) -> None:
    values = {"lease_token": None, "lease_expires_at": None, "next_check_at": until}
    mine = update(Doomed).where(Doomed.run_id == doomed.run_id, Doomed.lease_token == doomed.lease_token)
    session.execute(mine.values(values))


def to_thin(session: Session, default: int, limit: int) -> list[tuple[str, int]]:
    """Runs that have succeeded and have more checkpoints than they are to keep, with how many those are.

    Of the projects that use a run the one that keeps most decides.
    """
    asked = func.coalesce(Project.keep_checkpoints, default)
    wanted = func.max(case((asked == 0, ALL), else_=asked))
    query = (
        select(Run.id, wanted)
        .join(Trial, Trial.run_id == Run.id)
        .join(Experiment, Experiment.id == Trial.experiment_id)
        .outerjoin(Project, Project.name == Experiment.project)
        .where(Run.state == RunState.SUCCEEDED, Run.settled)
        .group_by(Run.id, Run.checkpoints_kept)
        .having(or_(Run.checkpoints_kept.is_(None), Run.checkpoints_kept > wanted))
        .order_by(Run.checkpoints_kept.is_not(None), Run.id)
        .limit(limit)
    )
    return [(run, keep) for run, keep in session.execute(query)]


def thinned(session: Session, run_id: str, keep: int) -> None:
    session.execute(update(Run).where(Run.id == run_id).values(checkpoints_kept=keep))


def known_directories(session: Session, names: Iterable[str]) -> set[str]:
    """Of these names of directories, those of runs that are there or are being removed."""
    asked = list(names)
    there = set(session.scalars(select(Run.id).where(Run.id.in_(asked))))
    return there | set(session.scalars(select(Doomed.run_id).where(Doomed.run_id.in_(asked))))


def should_be_there(session: Session) -> set[str]:
    """Runs that have left something in the store."""
    return set(session.scalars(select(Run.id).where(or_(Run.state == RunState.SUCCEEDED, Run.step > 0))))


def unended_runs(session: Session) -> set[str]:
    return set(session.scalars(select(Run.id).where(Run.state.not_in(FINAL))))
