"""`mcf audit`: who asked the service for what."""

import time
from typing import Annotated

import typer

from service.cli import show

POLL_SECONDS = 2.0


def audit(
    ctx: typer.Context,
    limit: Annotated[int, typer.Option(min=1, max=1000, help="How many, newest first.")] = 50,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a line, oldest first.")] = False,
    after: Annotated[int | None, typer.Option(min=0, help="With --json: only entries after this number.")] = None,
    follow: Annotated[bool, typer.Option("-f", "--follow", help="With --json: continue as entries come.")] = False,
) -> None:
    """Show who did what, when, and with what result. Needs a token of scope admin."""
    client = ctx.obj()
    if not as_json:
        if after is not None or follow:
            raise typer.BadParameter("--after and --follow go with --json")
        show.terminal().print(show.audit(client.audit(limit=limit)))
        return
    last = after if after is not None else max((entry.id for entry in client.audit(limit=limit)), default=0) - limit
    while True:
        found = client.audit(limit=1000, after=max(0, last))
        for entry in found:
            typer.echo(entry.model_dump_json())
            last = entry.id
        if not found:
            if not follow:
                return
            time.sleep(POLL_SECONDS)
