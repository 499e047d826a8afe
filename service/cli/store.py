"""`mcf delete`, `mcf restore`, `mcf store check` and `mcf project`: what is kept, for whom, and how much."""

from datetime import UTC, datetime
from typing import Annotated

import typer
from rich.console import Group, RenderableType
from rich.text import Text

from service.cli import complete, show
from service.schemas.retention import Deletion, ProjectView, StoreCheck
from service.text import age, count, size

store = typer.Typer(help="What the store holds. Needs a token of scope admin.", no_args_is_help=True)
project = typer.Typer(help="Limits of projects. Needs a token of scope admin.", no_args_is_help=True)

Name = Annotated[
    str,
    typer.Argument(
        help="Name or id of an experiment; the beginning of an id is enough.", autocompletion=complete.experiments
    ),
]
MOST = 20


def delete(
    ctx: typer.Context,
    name: Name,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would be removed; delete nothing.")] = False,
    keep_objects: Annotated[
        bool, typer.Option("--keep-objects", help="Leave the directories of its runs in the store.")
    ] = False,
    tracking: Annotated[bool, typer.Option("--mlflow", help="Delete its runs in MLflow, too.")] = False,
    undo_days: Annotated[
        float | None, typer.Option(min=0, help="Days in which `mcf restore` can bring it back; 0 = none.")
    ] = None,
) -> None:
    """Delete an experiment that has ended. What other experiments share stays."""
    client = ctx.obj()
    found = client.experiment(name).delete(
        dry_run=dry_run, objects=not keep_objects, tracking=tracking, undo_days=undo_days
    )
    show.terminal().print(_deletion(found, dry_run=dry_run), soft_wrap=True)


def restore(ctx: typer.Context, experiment: Annotated[str, typer.Argument(help="Id of a deleted experiment.")]) -> None:
    """Bring back a deleted experiment; `mcf list --deleted` shows those that can be."""
    found = ctx.obj().restore(experiment)
    typer.echo(f"{found.detail.name} ({found.id}) is back.")


def rebuild(ctx: typer.Context) -> None:
    """Write the service's lost database anew from the store. Needs an empty one, and a token of scope admin."""
    found = ctx.obj().rebuild()
    typer.echo(
        f"{count(found.experiments, 'experiment')}, {count(found.runs, 'run')} and {count(found.attempts, 'attempt')} "
        "are back. Tokens, webhooks, the audit and limits of projects are not in the store: create them anew."
    )
    for item in found.skipped:
        typer.echo(f"left out: {item.name}: {item.why}", err=True)


@store.command("check")
def check(
    ctx: typer.Context, as_json: Annotated[bool, typer.Option("--json", help="All of it, as JSON.")] = False
) -> None:
    """Show what takes room, by experiment, and what no run of this service has left. Removes nothing."""
    found = ctx.obj().check_store()
    if as_json:
        typer.echo(found.model_dump_json(indent=2))
        return
    show.terminal().print(_store(found))


@project.command("list")
def list_projects(ctx: typer.Context) -> None:
    """List projects with their limits."""
    show.terminal().print(_projects(ctx.obj().projects()))


@project.command("set")
def set_limits(
    ctx: typer.Context,
    name: Annotated[str, typer.Argument(help="Name of the project.")],
    places: Annotated[int | None, typer.Option(min=0, help="Runs in flight at once.")] = None,
    max_queued: Annotated[int | None, typer.Option(min=0, help="Runs that may wait.")] = None,
    max_priority: Annotated[int | None, typer.Option(help="Highest priority of a spec.")] = None,
    delete_after: Annotated[
        float | None, typer.Option(min=0, metavar="DAYS", help="Delete experiments so long after their end.")
    ] = None,
    keep_checkpoints: Annotated[int | None, typer.Option(min=0, help="Checkpoints of a finished run to keep.")] = None,
    no: Annotated[
        list[str] | None,
        typer.Option(metavar="LIMIT", help="Take this limit away, such as max_places; may be repeated."),
    ] = None,
) -> None:
    """Set limits of a project; what is not named stays as it is."""
    asked = {
        "max_places": places, "max_queued": max_queued, "max_priority": max_priority,
        "delete_after_days": delete_after, "keep_checkpoints": keep_checkpoints,
    }  # fmt: skip
    changes = {limit: value for limit, value in asked.items() if value is not None} | dict.fromkeys(no or [])
    if not changes:
        raise typer.BadParameter("nothing to set: give a limit, or --no LIMIT")
    show.terminal().print(_projects([ctx.obj().set_limits(name, **changes)]))


def _deletion(found: Deletion, *, dry_run: bool) -> RenderableType:
    does = "would be" if dry_run else "will be"
    gone = f"{count(len(found.removed_runs), 'run')} {does} removed"
    gone += f", {size(found.bytes)} in the store" if found.objects else "; their directories stay in the store"
    gone += "; their runs in MLflow are deleted, too" if found.tracking else "; their runs in MLflow stay"
    lines = [f"{found.name} ({found.experiment_id}): {gone}."]
    lines += [f"  stays: {run.run_id}, {run.because}" for run in found.kept_runs[:MOST]]
    if more := len(found.kept_runs) - MOST:
        lines += [f"  and {more} more that others use"] if more > 0 else []
    if dry_run:
        lines.append("Nothing was deleted.")
    elif found.purge_at and found.purge_at <= datetime.now(UTC):
        lines.append("It goes within a minute.")
    elif found.purge_at:
        lines.append(
            f"Until {found.purge_at:%Y-%m-%d %H:%M} UTC `mcf restore {found.experiment_id}` brings it back."
        )  # fmt: skip
    return Text("\n".join(lines))


def _store(found: StoreCheck) -> RenderableType:
    table = show.columns("experiment", "name", "project", "state", "runs", "takes", "frees if deleted", "submitted")
    for item in found.experiments[:MOST]:
        state = f"{item.state}, deleted" if item.deleted_at else item.state
        table.add_row(
            item.experiment_id, item.name, item.project, state, str(item.runs), size(item.bytes), size(item.own_bytes),
            age(item.created_at),
        )  # fmt: skip
    parts: list[RenderableType] = [f"{found.uri}: {size(found.bytes)}, of that {size(found.run_bytes)} of runs", table]
    if (more := len(found.experiments) - MOST) > 0:
        parts.append(f"and {more} more experiments (--json has all)")
    for title, things in (
        ("Directories of runs that this service does not know", found.orphans),
        ("What else lies there", found.others),
    ):
        if things:
            parts += ["", f"{title} ({size(sum(thing.bytes for thing in things))}):"]
            parts += [f"  {thing.name}  {size(thing.bytes)}" for thing in things[:MOST]]
    if found.missing:
        some = ", ".join(found.missing[:MOST])
        parts += ["", Text(f"Runs whose directories are missing: {len(found.missing)}: {some}", style="red")]
    if found.being_removed:
        parts += ["", f"{count(found.being_removed, 'run')} of deleted experiments are being removed."]
    return Group(*parts)


def _projects(found: list[ProjectView]) -> RenderableType:
    table = show.columns(
        "project", "experiments", "in flight", "places", "queued", "most queued", "top priority", "deleted after",
        "checkpoints",
    )  # fmt: skip
    for item in found:
        days = f"{item.delete_after_days:g} days" if item.delete_after_days is not None else "never"
        table.add_row(
            item.name, str(item.experiments), str(item.in_flight), _limit(item.max_places), str(item.queued),
            _limit(item.max_queued), _limit(item.max_priority), days, _limit(item.keep_checkpoints),
        )  # fmt: skip
    return table if table.row_count else Text("No projects yet.")


def _limit(value: int | None) -> str:
    return "" if value is None else str(value)
