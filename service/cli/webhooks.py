"""`mcf webhook`: who is told when an experiment has ended, has failed, or waits."""

from collections.abc import Iterable
from typing import Annotated

import typer
from rich.console import RenderableType
from rich.text import Text

from service.cli import show
from service.schemas.webhooks import DeliveryView, WebhookView
from service.states import Event, Form
from service.text import age, first_line

app = typer.Typer(
    help="Tell an address when an experiment has ended, has failed, or waits. Needs a token of scope admin.",
    no_args_is_help=True,
)
Id = Annotated[str, typer.Argument(help="Id of the webhook, as `mcf webhook list` shows it.")]


@app.command()
def create(
    ctx: typer.Context,
    url: Annotated[str, typer.Argument(help="Address that gets a POST for each event.")],
    slack: Annotated[bool, typer.Option("--slack", help="It is an incoming webhook of Slack.")] = False,
    on: Annotated[
        list[Event] | None, typer.Option(help="Event to tell it of; may be repeated; default: all of them.")
    ] = None,
    waits: Annotated[
        float | None, typer.Option(min=0, metavar="MINUTES", help="Tell of runs that wait longer; default: 60.")
    ] = None,
    project: Annotated[str | None, typer.Option(help="The only project to tell of; default: every project.")] = None,
) -> None:
    """Create a webhook. Its secret is printed once, alone on standard output."""
    made = ctx.obj().create_webhook(
        url, project=project, events=on, waits_longer_than_minutes=waits, form=Form.SLACK if slack else Form.JSON
    )
    typer.echo(made.secret)
    typer.echo(
        f"{made.id} tells {made.host} of {_events(made)} in {show.project(made.project)}, and signs it with this "
        f"secret. `mcf webhook test {made.id}` sends a test.",
        err=True,
    )


@app.command("list")
def list_webhooks(
    ctx: typer.Context, project: Annotated[str | None, typer.Option(help="Show only this project.")] = None
) -> None:
    """List webhooks, newest first."""
    show.terminal().print(_webhooks(ctx.obj().webhooks(project)))


@app.command()
def delete(ctx: typer.Context, webhook: Id) -> None:
    """Delete a webhook: it is told nothing any more."""
    gone = ctx.obj().delete_webhook(webhook)
    typer.echo(f"{gone.id} ({gone.host}) is deleted.")


@app.command()
def test(ctx: typer.Context, webhook: Id) -> None:
    """Send a test now, and show what the receiver says. Exits with 1 if it does not take it."""
    tried = ctx.obj().test_webhook(webhook)
    answer = f"The receiver answered {tried.status} after {tried.seconds:.1f} s." if tried.status else tried.error
    typer.echo(f"{answer} It said: {tried.said}" if tried.said else answer)
    raise typer.Exit(0 if tried.ok else 1)


@app.command()
def deliveries(ctx: typer.Context, webhook: Id) -> None:
    """Show what a webhook was told, newest first, and what became of it."""
    show.terminal().print(_deliveries(ctx.obj().deliveries(webhook)))


def _webhooks(found: Iterable[WebhookView]) -> RenderableType:
    table = show.columns("id", "host", "project", "events", "form", "made", "by", "switched off")
    for item in found:
        table.add_row(
            item.id, item.host, show.project(item.project), _events(item), item.form.value, age(item.created_at),
            item.created_by, item.disabled_reason,
        )  # fmt: skip
    return table if table.row_count else Text("No webhooks yet; `mcf webhook create URL` makes one.")


def _deliveries(found: Iterable[DeliveryView]) -> RenderableType:
    table = show.columns("id", "experiment", "event", "happened", "attempts", "state", "answer", "error")
    for item in found:
        table.add_row(
            item.id, item.experiment_id, item.event.value, age(item.created_at), str(item.attempts), item.became,
            str(item.last_status or ""), first_line(item.last_error),
        )  # fmt: skip
    return table if table.row_count else Text("It was told nothing yet.")


def _events(item: WebhookView) -> str:
    words = {Event.WAITING: f"waiting ({item.waits_longer_than_minutes:g} min)"}
    return ", ".join(words.get(event, event.value) for event in item.events)
