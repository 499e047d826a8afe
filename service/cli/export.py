"""`mcf export`: the encoder that a run has trained, as files on this machine."""

import subprocess
import sys
from pathlib import Path
from typing import Annotated

import typer

from service.cli import complete, home
from service.cli.progress import progress
from service.client import McfError
from trainer.contract.records import EXPORT


def export(
    ctx: typer.Context,
    run: Annotated[str, typer.Argument(help="Id of a run; its beginning is enough.", autocompletion=complete.runs)],
    out: Annotated[Path, typer.Option(help="Folder for weights, timm's configuration and model card.")] = Path(EXPORT),
    published: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write its newest checkpoint in the released format instead.")
    ] = None,
    like: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="With --published: released checkpoint that the run started from."),
    ] = None,
) -> None:
    """Copy the encoder of a finished run to this machine, as files that timm loads."""
    from trainer.store.objects import StorageError, open_store

    found = ctx.obj().run(run)
    home.reach(ctx.obj, found.uri)
    if published:
        _publish(found.uri, published, like)
        return
    if like:
        raise McfError("--like is for --published, whose file it completes")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise McfError(f"{out} is there already; name another folder with --out")
    store = open_store(found.uri)
    try:
        names = [entry.name for entry in store.list(EXPORT)]
        if not names:
            raise McfError(f"{found.id} is {found.state} and has no encoder yet; a run exports it when it succeeds")
        with progress(f"copying {found.uri}/{EXPORT}"):
            out.mkdir(parents=True, exist_ok=True)
            for name in names:
                store.get_file(name, out / name.removeprefix(EXPORT))
    except StorageError as error:
        raise McfError(str(error)) from error
    typer.echo(f"{out}: {', '.join(sorted(name.removeprefix(EXPORT) for name in names))}")


def _publish(uri: str, file: Path, like: Path | None) -> None:
    # A process of its own: torch is not for the command line's.
    command = [
        sys.executable,
        "-m",
        "trainer.weights.published",
        uri,
        str(file),
        *(["--like", str(like)] if like else []),
    ]
    with progress(f"writing {file}"):
        done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise McfError(done.stderr.strip().rpartition("error: ")[2])
    typer.echo(str(file))
