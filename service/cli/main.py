"""The `mcf` command: every command here is a few calls of service.client, shown for people."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from service.cli import home

app = typer.Typer(name="mcf", no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)


@app.callback()
def main() -> None:
    """Face-representation pretraining: experiments from one request to a comparison."""


@app.command()
def up(
    folder: Annotated[Path, typer.Option("--dir", help="Where everything is kept.")] = home.DEFAULT,
    s3: Annotated[str | None, typer.Option(help="Keep runs below this s3:// address instead of in the folder.")] = None,
) -> None:
    """Run service, MLflow and object store on this machine until Ctrl-C."""
    from service.cli.up import up as run_up

    run_up(home.Home(folder), s3=s3, console=Console())


if __name__ == "__main__":
    app()
