"""`mcf delete`, `mcf restore`, `mcf store check` and `mcf project`: what is kept, for whom, and how much."""

from datetime import UTC, datetime
from typing import Annotated

import typer
from rich.console import Group, RenderableType
from rich.text import Text

from service.cli import complete, show
from service.schemas.retention import Deletion, Freed, JointDeletion, ProjectView, StoreCheck
from service.text import age, count, size

store = typer.Typer(help="What the store holds. Needs a token of scope admin.", no_args_is_help=True)
project = typer.Typer(help="Limits of projects. Needs a token of scope admin.", no_args_is_help=True)

Names = Annotated[
    list[str],
    typer.Argument(
        metavar="NAME...",
        help="Names or ids of experiments; the beginning of an id is enough.",
        autocompletion=complete.experiments,
    ),
]
MOST = 20


def delete(
    ctx: typer.Context,
    names: Names,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would be removed; delete nothing.")] = False,
    keep_objects: Annotated[
        bool, typer.Option("--keep-objects", help="Leave the directories of its runs in the store.")
    ] = False,
    tracking: Annotated[bool, typer.Option("--mlflow", help="Delete its runs in MLflow, too.")] = False,
    undo_days: Annotated[
        float | None, typer.Option(min=0, help="Days in which `mcf restore` can bring it back; 0 = none.")
    ] = None,
) -> None:
    """Delete experiments that have ended. What others share stays; what several of these share counts once."""
    client = ctx.obj()
    experiments = list({item.id: item for item in map(client.experiment, names)}.values())
    together = client.deletion([item.id for item in experiments]) if len(experiments) > 1 else None
    for item in experiments if together is None or not dry_run else ():
        found = item.delete(dry_run=dry_run, objects=not keep_objects, tracking=tracking, undo_days=undo_days)
    if together is None:
        show.terminal().print(_deletion(found, dry_run=dry_run), soft_wrap=True)
        return
    purge_at = None if dry_run else found.purge_at
    show.terminal().print(
        _joint_deletion(together, objects=not keep_objects, tracking=tracking, purge_at=purge_at), soft_wrap=True
    )


def restore(ctx: typer.Context, experiment: Annotated[str, typer.Argument(help="Id of a deleted experiment.")]) -> None:
    """Bring back a deleted experiment; `mcf list --deleted` shows those that can be."""
    client = ctx.obj()
    before = client.experiment(experiment)
    if before.detail.deleted_at is None:
        typer.echo(f"{before.detail.name} ({before.id}) is not deleted, so there is nothing to restore.")
        return
    found = client.restore(before.id)
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
    gone = _gone(found, objects=found.objects, tracking=found.tracking, dry_run=dry_run)
    lines = [f"{found.name} ({found.experiment_id}): {gone}.", *_rest(found)]
    return Text("\n".join([*lines, _until(None if dry_run else found.purge_at, found.experiment_id)]))


def _joint_deletion(
    found: JointDeletion, *, objects: bool, tracking: bool, purge_at: datetime | None
) -> RenderableType:  # fmt: skip
    gone = _gone(found, objects=objects, tracking=tracking, dry_run=purge_at is None)
    lines = [f"  {item.name} ({item.experiment_id})" for item in found.experiments]
    lines = [f"Together: {gone}; what they share counts once.", *lines, *_rest(found)]
    return Text("\n".join([*lines, _until(purge_at, "EXPERIMENT")]))


def _gone(found: Freed, *, objects: bool, tracking: bool, dry_run: bool) -> str:
    does = "would be" if dry_run else "will be"
    gone = f"{count(len(found.removed_runs), 'run')} {does} removed"
    gone += f", {size(found.bytes)} in the store" if objects else "; their directories stay in the store"
    return gone + ("; their runs in MLflow are deleted, too" if tracking else "; their runs in MLflow stay")


def _rest(found: Freed) -> list[str]:
    lines = [f"  stays: {run.run_id}, {run.because}" for run in found.kept_runs[:MOST]]
    if found.later_runs:
        later = f"{len(found.later_runs)} of these, {size(found.later_bytes)}"
        lines.append(f"  {later}: only deleted experiments use them, too. They go with the last of those.")
    if more := len(found.kept_runs) - MOST:
        lines += [f"  and {more} more that others use"] if more > 0 else []
    return lines


def _until(purge_at: datetime | None, experiment: str) -> str:
    if purge_at is None:
        return "Nothing was deleted."
    if purge_at <= datetime.now(UTC):
        return "It goes within a minute."
    return f"Until {purge_at:%Y-%m-%d %H:%M} UTC `mcf restore {experiment}` brings it back."


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
    if len(found.experiments) > 1:
        parts.append("Experiments that share runs free more together: `mcf delete A B --dry-run` says how much.")
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
