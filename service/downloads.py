"""Files of a run from the service onto this machine.

What is being fetched lies aside, and gets its name when it is complete: whoever sees the name has the whole file.
"""

import hashlib
import shutil
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from service.connection import McfError, NoSuchThing, Refused, ServiceAway, ServiceConnection
from service.schemas.runs import FileKind, RunFile, RunFiles

# Times that a transfer may be cut without a byte in between, and the pause after each: a service that was killed, or a
# store that stumbles, is back within a minute.
TRIES, PAUSE_SECONDS = 30, 2.0
PARTIAL, UNAVAILABLE = 206, 503

Told = Callable[[int, int], object]
"""Called with how many bytes are there, of how many."""


def nobody(done: int, of: int) -> None:
    """For who does not want to know how far a transfer is."""


class DownloadFailed(McfError):
    """A file could not be fetched whole, or not be kept here."""


def encoder(connection: ServiceConnection, found: RunFiles, folder: Path, told: Told) -> Path:
    """Weights, configuration and model card into a folder of their own. Raises NoSuchThing, DownloadFailed."""
    wanted = _of_kind(found, FileKind.ENCODER)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise DownloadFailed(f"{folder} is there already; name another folder.")
    with _aside(folder) as aside:
        aside.mkdir()
        total, done = sum(file.bytes for file in wanted), 0
        for file in wanted:
            _fetch(
                connection, found.run_id, file, aside / Path(file.name).name,
                lambda at, _, before=done: told(before + at, total),  # type: ignore[misc]
            )  # fmt: skip
            done += file.bytes
    return folder


def single(
    connection: ServiceConnection, found: RunFiles, kind: FileKind, file: Path | None, told: Told, *,
    step: int | None = None,
) -> Path:  # fmt: skip
    """The result, or the checkpoint of a step, else the newest. `file`: its name here, or a folder to put it into.

    Raises NoSuchThing, DownloadFailed.
    """
    wanted = _of_kind(found, kind)
    chosen = next((each for each in wanted if step in (None, each.step)), None)
    if chosen is None:
        steps = ", ".join(str(each.step) for each in reversed(wanted))
        raise NoSuchThing(f"Run {found.run_id} has no checkpoint of step {step}; it has those of the steps {steps}.")
    target = file or Path(chosen.save_as)
    target = target / chosen.save_as if target.is_dir() else target
    if target.exists():
        raise DownloadFailed(f"{target} is there already; name another file.")
    with _aside(target) as aside:
        _fetch(connection, found.run_id, chosen, aside, told)
    return target


def _of_kind(found: RunFiles, kind: FileKind) -> Sequence[RunFile]:
    files = [file for file in found.files if file.kind is kind]
    if not files:
        raise NoSuchThing(found.missing[kind])
    return files


@contextmanager
def _aside(target: Path) -> Iterator[Path]:
    """A place beside the target, which takes its name at the end, or is gone. Raises DownloadFailed."""
    aside = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        yield aside
        aside.replace(target)
    except OSError as error:
        raise DownloadFailed(f"{target} cannot be written: {error.strerror or error}. Name another place.") from error
    finally:
        shutil.rmtree(aside) if aside.is_dir() else aside.unlink(missing_ok=True)


def _fetch(connection: ServiceConnection, run_id: str, file: RunFile, target: Path, told: Told) -> None:
    """Raises DownloadFailed, ServiceAway, Refused."""
    digest, done = hashlib.sha256(), 0
    with target.open("wb") as out:
        for piece in _pieces(connection, run_id, file):
            digest.update(piece)
            out.write(piece)
            told(done := done + len(piece), file.bytes)
    if file.sha256 and digest.hexdigest() != file.sha256:
        raise DownloadFailed(
            f"{file.name} of run {run_id} has arrived with sha256 {digest.hexdigest()}; its marker says {file.sha256}. "
            "It was damaged in the store or on the way: fetch it again, or another checkpoint."
        )


def _pieces(connection: ServiceConnection, run_id: str, file: RunFile) -> Iterator[bytes]:
    """All of the file, in order; a transfer that is cut goes on where it was."""
    done, cuts, tag = 0, 0, ""
    while True:
        # What a proxy packs for the way has another length.
        headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={done}-", "If-Range": tag} if done else {})
        cut: McfError | None = None
        try:
            with connection.stream(f"/v1/runs/{run_id}/files/{file.name}", headers) as answer:
                if done and answer.status_code != PARTIAL:
                    raise DownloadFailed(f"{file.name} of run {run_id} has changed meanwhile; fetch it again.")
                tag = answer.headers.get("ETag", "")
                for piece in answer.iter_bytes():
                    done, cuts = done + len(piece), 0
                    yield piece
        except ServiceAway as error:
            cut = error
        except Refused as error:
            if error.status != UNAVAILABLE:
                raise
            cut = error
        if done == file.bytes:
            return
        if cut and not done:
            raise cut
        cuts += 1
        if done > file.bytes or cuts > TRIES:
            raise DownloadFailed(
                f"{file.name} of run {run_id} came to {done} bytes of {file.bytes}; fetch it again."
            ) from cut
        time.sleep(PAUSE_SECONDS)
