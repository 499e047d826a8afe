"""`mcf token`: who else may use a service, for what and how long."""

from typing import Annotated

import typer

from service.cli import show
from service.states import Scope

app = typer.Typer(
    help="Create, list and revoke tokens of a service. Needs a token of scope admin.", no_args_is_help=True
)


@app.command()
def create(
    ctx: typer.Context,
    name: Annotated[str, typer.Argument(help="Who or what uses it.")],
    scope: Annotated[
        Scope, typer.Option(help="What it allows: read, submit or admin; each includes the ones before.")
    ] = Scope.READ,
    project: Annotated[
        str | None, typer.Option(help="The only project it is valid for; default: every project.")
    ] = None,
    expires: Annotated[int | None, typer.Option(min=1, help="Days until it expires; default: never.")] = None,
) -> None:
    """Create a token. Its secret is printed once, alone on standard output."""
    made = ctx.obj().create_token(name, scope, project=project, expires_in_days=expires)
    typer.echo(made.secret)
    until = f"until {made.expires_at:%Y-%m-%d}" if made.expires_at else "until it is revoked"
    typer.echo(
        f"{made.id}: {made.scope.value} in {show.project(made.project)}, {until}. Use it as MCF_TOKEN.", err=True
    )


@app.command("list")
def list_tokens(
    ctx: typer.Context, project: Annotated[str | None, typer.Option(help="Show only this project.")] = None
) -> None:
    """List all tokens, newest first, and when they were last used."""
    show.terminal().print(show.tokens(ctx.obj().tokens(project)))


@app.command()
def revoke(
    ctx: typer.Context, token: Annotated[str, typer.Argument(help="Id of the token, as `mcf token list` shows it.")]
) -> None:
    """Revoke a token: it is refused from now on."""
    gone = ctx.obj().revoke_token(token)
    typer.echo(f"{gone.id} ({gone.name}) is revoked.")
