"""Deleting experiments, restoring them, and what the store holds. What is removed the reconciler removes, later."""

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta

from sqlalchemy import select
from sqlalchemy.orm import Session

from service.db import Database
from service.errors import NotDeletable, Unavailable
from service.experiments import repository as experiments
from service.experiments import views
from service.experiments.service import get
from service.experiments.wishes import follow
from service.record import FOLDER
from service.retention import repository
from service.schemas.retention import (
    Deletion,
    JointDeletion,
    KeptRun,
    NamedExperiment,
    StoreCheck,
    StoredExperiment,
    StoredThing,
)
from service.settings import Settings
from service.tables import Experiment, Trial
from trainer.store.objects import StorageError, open_store

LISTERS = 16
RUNS = "runs/"
LOOKS_LIKE_A_RUN = frozenset("0123456789abcdef")


def plan(
    db: Database, settings: Settings, experiment_id: str, *, objects: bool, tracking: bool, project: str | None = None
) -> Deletion:  # fmt: skip
    """What deleting it would do. `project`: the only one whose experiments are named.

    Raises NotFound, NotDeletable, Unavailable.
    """
    found = plan_together(db, settings, [experiment_id], project=project)
    with db.read() as session:
        purge_at = get(session, experiment_id).purge_at
    [experiment] = found.experiments
    freed = found.model_dump(exclude={"experiments"})
    return Deletion(**experiment.model_dump(), **freed, objects=objects, tracking=tracking, purge_at=purge_at)


def plan_together(
    db: Database, settings: Settings, experiment_ids: Sequence[str], *, project: str | None = None
) -> JointDeletion:  # fmt: skip
    """What deleting all of them would do: runs that they share among them count once. Raises as `plan`.

    `project`: the only one whose experiments may be among them, and are named.
    """
    ids = list(dict.fromkeys(experiment_ids))
    with db.read() as session:
        rows = [get(session, id, project=project) for id in ids]
        for row in rows:
            _refuse(session, row)
        gone = repository.only_used_by(session, *ids)
        users = repository.other_users(session, ids, project)
        mine = session.scalars(select(Trial.run_id).where(Trial.experiment_id.in_(ids))).all()
        deleted = repository.deleted(session)
        later = set(mine) & repository.only_used_by(session, *{*ids, *deleted}) - gone

    def named(user: str) -> str:
        return f"{user} (deleted)" if user in deleted else user

    kept = [
        KeptRun(
            run_id=run,
            because=f"used by {', '.join(map(named, users[run]))}" if run in users else "another experiment needs it",
        )
        for run in sorted(set(mine) - gone)
    ]
    sizes = _sizes(settings, gone | later)
    return JointDeletion(
        experiments=[NamedExperiment(experiment_id=row.id, name=row.name) for row in rows],
        removed_runs=sorted(gone), kept_runs=kept, bytes=sum(sizes[run] for run in gone),
        later_runs=sorted(later), later_bytes=sum(sizes[run] for run in later),
    )  # fmt: skip


def delete(
    db: Database, settings: Settings, experiment_id: str, by: str, *, objects: bool, tracking: bool,
    undo_days: float | None = None, project: str | None = None,
) -> Deletion:  # fmt: skip
    """It is in no list any more, and after `undo_days` (None: as the settings say) what only it uses is removed.

    Doing it again changes when and what. Raises NotFound, NotDeletable, Unavailable.
    """
    planned = plan(db, settings, experiment_id, objects=objects, tracking=tracking, project=project)
    purge_at = _mark_all(db, settings, [experiment_id], by, objects, tracking, undo_days)
    return planned.model_copy(update={"purge_at": purge_at})


def delete_together(
    db: Database, settings: Settings, experiment_ids: Sequence[str], by: str, *, objects: bool, tracking: bool,
    project: str | None = None,
) -> JointDeletion:  # fmt: skip
    """All of them, or none. Raises as `delete`."""
    planned = plan_together(db, settings, experiment_ids, project=project)
    _mark_all(db, settings, [each.experiment_id for each in planned.experiments], by, objects, tracking, None)
    return planned


def _mark_all(
    db: Database, settings: Settings, experiment_ids: Sequence[str], by: str, objects: bool, tracking: bool,
    undo_days: float | None,
) -> datetime:  # fmt: skip
    now = datetime.now(UTC)
    purge_at = now + timedelta(days=settings.undo_days if undo_days is None else undo_days)
    with db.deciding() as session:
        # Always in one order, so that two that delete the same wait for each other and not both for ever.
        for id in sorted(experiment_ids):
            experiment = get(session, id, lock=True)
            _refuse(session, experiment)
            mark(experiment, by, purge_at, now)
            experiment.remove_objects, experiment.remove_tracking = objects, tracking
    return purge_at


def mark(experiment: Experiment, by: str, purge_at: datetime, now: datetime) -> None:
    experiment.deleted_at, experiment.purge_at = experiment.deleted_at or now, purge_at
    experiment.delete_reason = f"deleted by {by}"
    # The same request again is a new one.
    experiment.idempotency_key = None
    experiment.revision += 1


def restore(db: Database, experiment_id: str) -> None:
    """As it was; what is not deleted stays as it is. Raises NotFound."""
    with db.deciding() as session:
        experiment = get(session, experiment_id, lock=True)
        if experiment.deleted_at is None:
            return
        now = datetime.now(UTC)
        experiment.deleted_at, experiment.purge_at, experiment.restored_at = None, None, now
        experiment.delete_reason = ""
        # Runs that it shares may have been told to stop meanwhile.
        follow(session, experiments.runs_of(session, experiment_id), now)
        experiments.reopen(session, [experiment_id], now)


def check_store(db: Database, settings: Settings) -> StoreCheck:
    """What takes room, for whom, and what nobody knows of. Reads every name in the store. Raises Unavailable."""
    sizes: dict[str, list[int]] = defaultdict(lambda: [0, 0])
    try:
        for entry in open_store(settings.store_uri).scan():
            parts = entry.name.split("/")
            name = "/".join(parts[:2]) if entry.name.startswith(RUNS) and len(parts) > 2 else parts[0]
            found = sizes[name]
            found[0], found[1] = found[0] + 1, found[1] + entry.size
    except StorageError as error:
        raise Unavailable(f"The store cannot be read: {error}") from error
    runs = {name.removeprefix(RUNS): size for name, (_, size) in sizes.items() if name.startswith(RUNS)}
    with db.read() as session:
        known = repository.known_directories(session, runs)
        should = repository.should_be_there(session)
        stored = _by_experiment(session, settings, runs)
        being_removed = repository.num_runs_being_removed(session)
    things = [StoredThing(name=name, objects=count, bytes=size) for name, (count, size) in sorted(sizes.items())]
    return StoreCheck(
        uri=settings.store_uri, bytes=sum(thing.bytes for thing in things), run_bytes=sum(runs.values()),
        experiments=sorted(stored, key=lambda item: -item.own_bytes),
        orphans=[thing for thing in things if _is_orphan(thing.name, known)],
        others=[thing for thing in things if not _looks_like_a_run(thing.name) and thing.name != FOLDER],
        missing=sorted(should - runs.keys()), being_removed=being_removed,
    )  # fmt: skip


def _is_orphan(name: str, known: Collection[str]) -> bool:
    return _looks_like_a_run(name) and name.removeprefix(RUNS) not in known


def _looks_like_a_run(name: str) -> bool:
    id = name.removeprefix(RUNS)
    return name.startswith(f"{RUNS}r") and len(id) in (13, 16) and set(id[1:]) <= LOOKS_LIKE_A_RUN


def _by_experiment(session: Session, settings: Settings, sizes: Mapping[str, int]) -> Iterable[StoredExperiment]:
    users: dict[str, set[str]] = defaultdict(set)
    for experiment_id, run_id in session.execute(select(Trial.experiment_id, Trial.run_id)):
        users[run_id].add(experiment_id)
    used: dict[str, list[str]] = defaultdict(list)
    for run_id, ids in users.items():
        for id in ids:
            used[id].append(run_id)
    rows = session.scalars(select(Experiment).where(Experiment.purged_at.is_(None))).all()
    tallies = experiments.tallies(session, [row.id for row in rows])
    # Who is deleted keeps nothing for long.
    going = {row.id for row in rows if row.deleted_at}
    for row in rows:
        mine = used[row.id]
        yield StoredExperiment(
            experiment_id=row.id, name=row.name, project=row.project, created_at=row.created_at,
            state=views.state_of(row, tallies[row.id].counts), deleted_at=row.deleted_at, runs=len(mine),
            bytes=sum(sizes.get(run, 0) for run in mine),
            own_bytes=sum(sizes.get(run, 0) for run in mine if not users[run] - going - {row.id}),
        )  # fmt: skip


def _sizes(settings: Settings, run_ids: Collection[str]) -> dict[str, int]:
    """Bytes of the runs' directories. Raises Unavailable."""

    def size(run_id: str) -> int:
        return sum(entry.size for entry in open_store(settings.run_uri(run_id)).list())

    try:
        with ThreadPoolExecutor(LISTERS) as pool:
            return dict(zip(run_ids, pool.map(size, run_ids), strict=True))
    except StorageError as error:
        raise Unavailable(f"The store cannot be read, so nothing was deleted: {error}") from error


def _refuse(session: Session, experiment: Experiment) -> None:
    if experiment.purged_at:
        raise NotDeletable(f"Experiment {experiment.id} is gone since {experiment.purged_at:%Y-%m-%d %H:%M} UTC.")
    state = views.state_of(experiment, experiments.tallies(session, [experiment.id])[experiment.id].counts)
    if not state.is_final or repository.unended(session, experiment.id):
        going = state.value if not state.is_final else f"{state.value}, but some of its runs are still ending"
        raise NotDeletable(
            f"Experiment {experiment.id} is {going}. Cancel it and wait until its runs have stopped: "
            f"`mcf cancel {experiment.id}`."
        )
