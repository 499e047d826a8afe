"""Reading what a run left in its directory (trainer/contract/records.py). No torch: the service reads through this."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TypeVar

from pydantic import ValidationError

from trainer.contract import RunSpec, records
from trainer.contract.frozen import Frozen
from trainer.contract.records import (
    Checkpoint,
    FaultNote,
    MemoryNote,
    Outcome,
    Readings,
    Result,
    Sent,
    Session,
    StageResult,
    Unsent,
)  # fmt: skip
from trainer.store.objects import Entry, ObjectMissing, StorageError, Store

Record = TypeVar("Record", bound=Frozen)


def read_spec(store: Store) -> RunSpec | None:
    """What the run was asked for; None where there is nothing yet. Raises StorageError."""
    return _read(store, records.SPEC, RunSpec)


def read_sent(store: Store) -> Sent | None:
    """The newest attempt that was sent off; None before the first. Raises StorageError."""
    return _read(store, records.SENT, Sent)


def read_outcome(store: Store) -> Outcome | None:
    """How the run ended for good; None while it has not. Raises StorageError."""
    return _read(store, records.OUTCOME, Outcome)


def read_memory_note(store: Store) -> MemoryNote | None:
    """That the run has run out of memory once; None while it has not. Raises StorageError."""
    return _read(store, records.OUT_OF_MEMORY, MemoryNote)


def read_fault(store: Store) -> FaultNote | None:
    """The last exception of the run's own; None while there was none. Raises StorageError."""
    return _read(store, records.FAULT, FaultNote)


def read_result(store: Store) -> Result | None:
    """The numbers of the finished run; None before. Raises StorageError."""
    return _read(store, records.RESULT, Result)


def read_readings(store: Store) -> Readings:
    """What was measured while the run trained; none before. Raises StorageError."""
    return _read(store, records.READINGS, Readings) or Readings()


def read_unsent(store: Store) -> Unsent | None:
    """What MLflow had not taken when the run ended; None where there is nothing left of it. Raises StorageError."""
    return _read(store, records.UNSENT, Unsent)


def read_stage(store: Store, stage: str) -> StageResult | None:
    """The numbers of a finished stage of evaluation; None before. Raises StorageError."""
    return _read(store, records.stage_folder(stage) + records.RESULT, StageResult)


@dataclass(frozen=True)
class SessionFile:
    """A session as it was read, and the version of its file."""

    name: str
    version: str
    session: Session


def read_sessions(store: Store) -> list[Session]:
    """Every stretch of training so far, oldest first. Raises StorageError."""
    return [file.session for file in session_files(store)]


def session_files(store: Store, known: Iterable[SessionFile] = ()) -> list[SessionFile]:
    """As `read_sessions`, with the files' versions; of `known` no file is read that has not changed."""
    seen = {(file.name, file.version): file for file in known}
    entries = [entry for entry in store.list(records.SESSIONS) if entry.name.endswith(".json")]
    found = [seen.get((entry.name, entry.version)) or _session_file(store, entry) for entry in entries]
    return [file for file in found if file is not None]


def newer_session(store: Store, file: SessionFile) -> SessionFile | None:
    """The session as it is now; None where its file has not changed. Raises StorageError."""
    found = store.get_changed(file.name, file.version)
    return SessionFile(file.name, found[1], _parsed(store, file.name, found[0], Session)) if found else None


def _session_file(store: Store, entry: Entry) -> SessionFile | None:
    session = _read(store, entry.name, Session)
    return SessionFile(entry.name, entry.version, session) if session else None


def list_checkpoints(store: Store) -> list[Checkpoint]:
    """Checkpoints that are complete, by their markers, oldest first. Raises StorageError.

    A marker that cannot be read marks nothing: its checkpoint is left out.
    """
    found = []
    for entry in store.list(records.CHECKPOINTS):
        if entry.name.endswith(f"/{records.COMMITTED}"):
            try:
                found.append(_read(store, entry.name, Checkpoint))
            except UnreadableRecord:
                continue
    return sorted((checkpoint for checkpoint in found if checkpoint), key=lambda checkpoint: checkpoint.step)


class UnreadableRecord(StorageError):
    """An object is there and is not the record its name says."""


def _read(store: Store, name: str, kind: type[Record]) -> Record | None:
    try:
        return _parsed(store, name, store.get(name), kind)
    except ObjectMissing:
        return None


def _parsed(store: Store, name: str, text: bytes, kind: type[Record]) -> Record:
    try:
        return kind.model_validate_json(text)
    except ValidationError as error:
        raise UnreadableRecord(f"{store.uri}/{name} is not a {kind.__name__}: {error}") from error
