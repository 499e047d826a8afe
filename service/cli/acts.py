"""`mcf cancel`, `pause`, `resume`, `retry` and `change`: what is done to experiments and runs that are there."""

from typing import Annotated, Any

import typer

from service.cli import complete, show
from service.client import Client, Experiment
from service.schemas.lookup import Kind
from service.schemas.runs import RunDetail

Name = Annotated[
    str,
    typer.Argument(
        help="Name or id of an experiment, or id of a run; the beginning of an id is enough.",
        autocompletion=complete.things,
    ),
]
Arms = Annotated[
    list[str] | None,
    typer.Option(
        "--arm", metavar="ARM", help="Only the runs of this arm; may be repeated.", autocompletion=complete.arms
    ),
]
Runs = Annotated[
    list[str] | None,
    typer.Option("--run", metavar="RUN", help="Only this run; may be repeated.", autocompletion=complete.runs),
]
Of = Annotated[
    str | None,
    typer.Option(
        "--of",
        metavar="EXPERIMENT",
        help="Of a run that several experiments share: for which.",
        autocompletion=complete.experiments,
    ),
]


def cancel(ctx: typer.Context, name: Name, arm: Arms = None, run: Runs = None, of: Of = None) -> None:
    """Stop an experiment, some arms or runs of it, or one run; each run writes a checkpoint first."""
    _act(ctx.obj(), "cancel", name, arm, run, of)


def pause(ctx: typer.Context, name: Name, arm: Arms = None, run: Runs = None, of: Of = None) -> None:
    """Make room: what trains writes a checkpoint and stops, and nothing starts until `mcf resume`."""
    _act(ctx.obj(), "pause", name, arm, run, of)


def resume(ctx: typer.Context, name: Name, arm: Arms = None, run: Runs = None, of: Of = None) -> None:
    """Queue again what is paused; it continues from its checkpoints."""
    _act(ctx.obj(), "resume", name, arm, run, of)


def retry(ctx: typer.Context, name: Name, arm: Arms = None, run: Runs = None, of: Of = None) -> None:
    """Queue the failed runs again; they resume from their last checkpoints.

    With --arm, --run or a run's id also those that were cancelled.
    """
    _act(ctx.obj(), "retry", name, arm, run, of)


def change(
    ctx: typer.Context,
    name: Annotated[
        str,
        typer.Argument(
            help="Name or id of an experiment; the beginning of an id is enough.", autocompletion=complete.experiments
        ),
    ],
    priority: Annotated[int | None, typer.Option(help="Queued runs of higher priority start first.")] = None,
    concurrency: Annotated[int | None, typer.Option(min=1, help="Runs that may train at the same time.")] = None,
    gpu_hours: Annotated[float | None, typer.Option(help="Cap on the GPU-hours of all runs; 0 = no cap.")] = None,
    pool: Annotated[
        list[str] | None,
        typer.Option(help="Node pool; may be repeated, in order of preference. Runs on any other pool move."),
    ] = None,
) -> None:
    """Change priority, concurrency, cap or pool of what has not ended."""
    asked: dict[str, Any] = {"priority": priority, "concurrency": concurrency, "pool": pool}
    changes = {name: value for name, value in asked.items() if value is not None}
    if gpu_hours is not None:
        changes["gpu_hours"] = gpu_hours or None
    if not changes:
        raise typer.BadParameter("nothing to change: give --priority, --concurrency, --gpu-hours or --pool")
    detail = ctx.obj().experiment(name).change(**changes).detail
    cap = f"{detail.gpu_hours_cap:g} GPU-hours" if detail.gpu_hours_cap else "no cap"
    pools = detail.spec["placement"]["pool"]
    typer.echo(
        f"{detail.name} ({detail.id}): priority {detail.priority}, {detail.concurrency} at a time, {cap}, "
        f"pool {pools if isinstance(pools, str) else ', '.join(pools)}"
    )


def _act(client: Client, verb: str, name: str, arms: list[str] | None, runs: list[str] | None, of: str | None) -> None:
    found = _named(client, name)
    if isinstance(found, Experiment):
        if of:
            raise typer.BadParameter("goes with the id of a run", param_hint="--of")
        ids = [client.run(run).id for run in runs] if runs else None
        detail = getattr(found, verb)(arms=arms or None, runs=ids).detail
        typer.echo(f"{detail.name} ({detail.id}): {show.counts(detail)}{_soon(verb)}")
        return
    if arms or runs:
        raise typer.BadParameter("--arm and --run choose runs of an experiment, and this is a run already")
    experiment = client.experiment(of).id if of else None
    run = client.act_on_run(found.id, verb, experiment=experiment)
    others = [use.experiment_id for use in run.used_by if use.experiment_id != experiment]
    typer.echo(f"run {run.id}: {run.state}{_soon(verb)}" + (f"; also of {', '.join(others)}" if of and others else ""))


def _named(client: Client, name: str) -> Experiment | RunDetail:
    found = client.look_up(name)
    return client.experiment(found.id) if found.kind is Kind.EXPERIMENT else client.run(found.id)


def _soon(verb: str) -> str:
    return "; what trains writes a checkpoint first" if verb in ("cancel", "pause") else ""
