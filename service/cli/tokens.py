"""`mcf token`: who else may use a service, for what and how long."""

from typing import Annotated

import typer

from service.cli import show
from service.states import Scope

app = typer.Typer(help="Tokens of a service: create, list, revoke. Needs one of scope admin.", no_args_is_help=True)


@app.command()
def create(
    ctx: typer.Context,
    name: Annotated[str, typer.Argument(help="Whose it is, or what for.")],
    scope: Annotated[Scope, typer.Option(help="Each includes the ones before: read, submit, admin.")] = Scope.READ,
    project: Annotated[str | None, typer.Option(help="The one project it is good for; else every project.")] = None,
    expires: Annotated[int | None, typer.Option(min=1, help="Days from now; else never.")] = None,
) -> None:
    """Make a token. The secret is printed here, alone on standard output, and never again."""
    made = ctx.obj().create_token(name, scope, project=project, expires_in_days=expires)
    typer.echo(made.secret)
    until = f"until {made.expires_at:%Y-%m-%d}" if made.expires_at else "until it is revoked"
    typer.echo(
        f"{made.id}: {made.scope.value} in {show.project(made.project)}, {until}. Use it as MCF_TOKEN.", err=True
    )


@app.command("list")
def list_tokens(
    ctx: typer.Context, project: Annotated[str | None, typer.Option(help="Only those of this project.")] = None
) -> None:
    """All tokens, newest first, with when they were last used."""
    show.terminal().print(show.tokens(ctx.obj().tokens(project)))


@app.command()
def revoke(
    ctx: typer.Context, token: Annotated[str, typer.Argument(help="Its id, as `mcf token list` shows.")]
) -> None:
    """Refuse a token from now on."""
    gone = ctx.obj().revoke_token(token)
    typer.echo(f"{gone.id} ({gone.name}) is revoked.")
