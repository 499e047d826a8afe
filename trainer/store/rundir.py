"""Reading what a run left in its directory (trainer/contract/records.py). No torch: the service reads through this."""

from collections.abc import Mapping
from typing import TypeVar

from pydantic import ValidationError

from trainer.contract import RunSpec, records
from trainer.contract.frozen import Frozen
from trainer.contract.records import (
    Checkpoint,
    FaultNote,
    MemoryNote,
    Outcome,
    Result,
    Session,
    StageResult,
    Unsent,
)  # fmt: skip
from trainer.store.objects import ObjectMissing, StorageError, Store

Record = TypeVar("Record", bound=Frozen)


def read_spec(store: Store) -> RunSpec | None:
    """What the run was asked for; None where there is nothing yet. Raises StorageError."""
    return _read(store, records.SPEC, RunSpec)


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


def read_unsent(store: Store) -> Unsent | None:
    """What MLflow had not taken when the run ended; None where there is nothing left of it. Raises StorageError."""
    return _read(store, records.UNSENT, Unsent)


def read_stage(store: Store, stage: str) -> StageResult | None:
    """The numbers of a finished stage of evaluation; None before. Raises StorageError."""
    return _read(store, records.stage_folder(stage) + records.RESULT, StageResult)


def read_sessions(store: Store, known: Mapping[int, Session] | None = None) -> list[Session]:
    """Every stretch of training so far, oldest first. Raises StorageError.

    `known`: sessions by number that need not be read again.
    """
    by_name = {records.session_name(number): session for number, session in (known or {}).items()}
    names = [entry.name for entry in store.list(records.SESSIONS)]
    found = [by_name.get(name) or _read(store, name, Session) for name in names if name.endswith(".json")]
    return [session for session in found if session is not None]


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
        return kind.model_validate_json(store.get(name))
    except ObjectMissing:
        return None
    except ValidationError as error:
        raise UnreadableRecord(f"{store.uri}/{name} is not a {kind.__name__}: {error}") from error
