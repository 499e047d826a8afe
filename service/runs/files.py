"""The files of a run that may be fetched, and how a part of one is read.

They are those that the contract names (trainer/contract/records.py), but for what has not been sent to MLflow and the
checkpoints of stages: those are the machinery's, and go away by themselves.
"""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from service.db import Database
from service.errors import NotFound, Unavailable
from service.runs import service
from service.schemas.runs import FileKind, RunFile, RunFiles, RunSummary
from service.settings import Settings
from service.states import RunState
from service.text import duration, first_line
from trainer.contract import records
from trainer.contract.records import Checkpoint
from trainer.store.objects import Entry, ObjectMissing, StorageError, Store, open_store
from trainer.store.rundir import list_checkpoints

ENCODER = tuple(records.EXPORT + name for name in (records.WEIGHTS, records.CONFIG, records.CARD))
STATE = re.compile(rf"{records.CHECKPOINTS}(\d+)/{re.escape(records.STATE)}")
RECORD = re.compile(
    "|".join(
        [
            *map(re.escape, (records.SPEC, records.OUTCOME, records.OUT_OF_MEMORY, records.FAULT, records.READINGS)),
            rf"{records.SESSIONS}\d+\.json",
            rf"{records.STAGES}[a-z_]+/{re.escape(records.RESULT)}",
            rf"{records.CHECKPOINTS}\d+/{records.COMMITTED}",
        ]
    )
)


@dataclass(frozen=True)
class Opened:
    """A file as it was when it was looked at."""

    file: RunFile
    version: str
    _store: Store

    def read(self, start: int, length: int) -> bytes:
        """A part of it. Raises StorageError, also where the file is another one by now."""
        data, version = self._store.get_range(self.file.name, start, length)
        if version != self.version or len(data) != length:
            raise StorageError(f"{self._store.uri}/{self.file.name} has changed while it was read")
        return data


def listing(db: Database, settings: Settings, run_id: str) -> RunFiles:
    """What there is, and of the rest why not. Raises NotFound, Unavailable."""
    run, spec = _run(db, settings, run_id)
    store = open_store(settings.run_uri(run_id))
    with _answering():
        entries, checkpoints = {entry.name: entry for entry in store.list()}, _by_name(store)
    # The card comes last, and an encoder without it is still being written.
    encoder = ENCODER if all(name in entries for name in ENCODER) else ()
    records_of_it = [name for name in sorted(entries) if _kind(name) is FileKind.RECORD]
    names = [*encoder, *reversed(checkpoints), records.RESULT, *records_of_it]
    found = [_described(run_id, entries[name], checkpoints) for name in names if name in entries]
    kinds = {FileKind.RECORD, *(file.kind for file in found)}
    missing = {kind: _why_not(kind, run, spec) for kind in FileKind if kind not in kinds}
    return RunFiles(run_id=run_id, files=found, missing=missing, weights_of=run.weights_of)


def open_file(db: Database, settings: Settings, run_id: str, name: str) -> Opened:
    """Raises NotFound, in words on what there is instead, and Unavailable."""
    run, spec = _run(db, settings, run_id)
    if (kind := _kind(name)) is None:
        raise NotFound(f"{name[:200]!r} is no file of a run. GET /v1/runs/{run_id}/files lists those there are.")
    store = open_store(settings.run_uri(run_id))
    with _answering():
        checkpoints = _by_name(store) if kind is FileKind.CHECKPOINT else {}
        if checkpoints and name not in checkpoints:
            steps = ", ".join(str(each.step) for each in checkpoints.values())
            raise NotFound(f"Run {run_id} has no complete checkpoint {name}; it has those of the steps {steps}.")
        try:
            if kind is FileKind.CHECKPOINT and not checkpoints:
                raise ObjectMissing(name)
            entry = store.stat(name)
        except ObjectMissing as error:
            why = f"Run {run_id} has no {name}." if kind is FileKind.RECORD else _why_not(kind, run, spec)
            raise NotFound(why) from error
    return Opened(_described(run_id, entry, checkpoints), entry.version, store)


@contextmanager
def _answering() -> Iterator[None]:
    try:
        yield
    except StorageError as error:
        raise Unavailable(f"The store does not answer: {error}") from error


def _by_name(store: Store) -> dict[str, Checkpoint]:
    """Complete checkpoints by the names of their states, oldest first."""
    return {records.checkpoint_name(each.step) + records.STATE: each for each in list_checkpoints(store)}


def _run(db: Database, settings: Settings, run_id: str) -> tuple[RunSummary, Mapping[str, Any]]:
    with db.read() as session:
        run = service.get(session, run_id)
        return service.summary(run, settings), run.spec


def _kind(name: str) -> FileKind | None:
    if name in ENCODER:
        return FileKind.ENCODER
    if STATE.fullmatch(name):
        return FileKind.CHECKPOINT
    if name == records.RESULT:
        return FileKind.RESULT
    return FileKind.RECORD if RECORD.fullmatch(name) else None


def _described(run_id: str, entry: Entry, checkpoints: Mapping[str, Checkpoint]) -> RunFile:
    kind, marker = _kind(entry.name), checkpoints.get(entry.name)
    assert kind
    name = f"step-{marker.step}.pt" if marker else entry.name.removeprefix(records.EXPORT).replace("/", "-")
    return RunFile(
        name=entry.name, kind=kind, bytes=entry.size, step=marker.step if marker else None,
        sha256=marker.sha256 if marker else None, save_as=f"{run_id}-{name}",
    )  # fmt: skip


def _why_not(kind: FileKind, run: RunSummary, spec: Mapping[str, Any]) -> str:
    if kind is FileKind.CHECKPOINT and run.weights_of:
        return f"Run {run.id} measures the weights of run {run.weights_of}, which has their checkpoints."
    what = {FileKind.ENCODER: "encoder", FileKind.CHECKPOINT: "complete checkpoint"}.get(kind, kind.value)
    if run.state is RunState.SUCCEEDED:
        return f"Run {run.id} has succeeded, but there is no {what} in its directory."
    now = f"Run {run.id} is {run.state.value}, at step {run.step} of {run.total_steps}"
    if run.state.is_final:
        why = f" ({first_line(run.reason, 120)})" if run.reason else ""
        return f"{now}{why}, and has no {what}. `mcf retry EXPERIMENT` lets failed runs go on."
    if kind is FileKind.CHECKPOINT:
        steps = spec["cadence"]["checkpoint_steps"]
        return f"{now}, and has no complete checkpoint yet; there is one every {steps} steps and at the end."
    left = f"; training takes about {duration(run.eta_seconds)} more" if run.eta_seconds else ""
    return f"{now}, and has no {what} yet. It has one as soon as it succeeds{left}."
