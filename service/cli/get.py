"""`mcf get`: what a run has left, as files on this machine. Needs the service alone, and no keys of its store."""

from pathlib import Path
from typing import Annotated

import typer

from service.cli import complete
from service.cli.progress import progress
from service.text import size


def get(
    ctx: typer.Context,
    run: Annotated[str, typer.Argument(help="Id of a run; its beginning is enough.", autocompletion=complete.runs)],
    encoder: Annotated[
        bool, typer.Option("--encoder", help="Its encoder: weights, timm's configuration, model card.")
    ] = False,
    checkpoint: Annotated[bool, typer.Option("--checkpoint", help="Its newest checkpoint, or that of --step.")] = False,
    result: Annotated[bool, typer.Option("--result", help="Its numbers, as JSON.")] = False,
    step: Annotated[int | None, typer.Option(min=0, help="With --checkpoint: its step.")] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder of the encoder, or file; default: a name that begins with the run's id.")
    ] = None,
) -> None:
    """Fetch the encoder, a checkpoint or the result of a run through the service."""
    if encoder + checkpoint + result != 1:
        raise typer.BadParameter("give one of --encoder, --checkpoint and --result")
    if step is not None and not checkpoint:
        raise typer.BadParameter("only checkpoints have steps", param_hint="--step")
    client = ctx.obj()
    with progress(f"fetching from {client.url}") as line:

        def told(done: int, of: int) -> None:
            line(f"fetching: {size(done)} of {size(of)}")

        if encoder:
            there = client.get_encoder(run, out, told=told)
        elif checkpoint:
            there = client.get_checkpoint(run, out, step=step, told=told)
        else:
            there = client.get_result(run, out, told=told)
    files = sorted(there.iterdir()) if there.is_dir() else [there]
    fetched = size(sum(file.stat().st_size for file in files))
    typer.echo(f"{there}: {fetched}" + (f" ({', '.join(file.name for file in files)})" if encoder else ""))
