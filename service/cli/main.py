"""The `mcf` command: every command is a few calls of service.client, shown for people."""

from enum import StrEnum
from functools import cache
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from typer.core import TyperGroup

from service.cli import acts, complete, data, flags, home, papers, show, store, tokens, webhooks
from service.cli.audit import audit
from service.cli.evaluate import evaluate
from service.cli.export import export
from service.cli.extend import extend
from service.cli.get import get
from service.cli.progress import READS, progress
from service.cli.watch import watch as watch_experiment
from service.client import Client, Experiment, McfError, Refused
from service.schemas.experiments import ExperimentState
from service.schemas.lookup import Kind
from service.specfile import UnreadableSpec
from service.text import first_line
from service.version import VERSION, difference

NOT_DONE, WRONG_REQUEST, INTERRUPTED = 1, 2, 130
# For what is only good to know.
QUICK_SECONDS = 2.0


class Commands(TyperGroup):
    """Turns what goes wrong on purpose into lines for people and an exit code."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except (McfError, UnreadableSpec, home.AlreadyUp) as error:
            for line in _lines(error):
                typer.echo(line, err=True)
            refused_spec = isinstance(error, Refused) and error.status == 422
            raise typer.Exit(WRONG_REQUEST if refused_spec else NOT_DONE) from None


app = typer.Typer(name="mcf", cls=Commands, no_args_is_help=True, pretty_exceptions_enable=False)
app.add_typer(data.app, name="data")
app.add_typer(tokens.app, name="token")
app.add_typer(webhooks.app, name="webhook")


class OutputFormat(StrEnum):
    TABLE = "table"
    MARKDOWN = "md"
    CSV = "csv"
    JSON = "json"
    LATEX = "tex"


Name = Annotated[
    str,
    typer.Argument(
        help="Name or id of an experiment; the beginning of an id is enough.", autocompletion=complete.experiments
    ),
]
RunName = Annotated[str, typer.Argument(help="Id of a run; its beginning is enough.", autocompletion=complete.runs)]


def _print_versions(ctx: typer.Context, wanted: bool) -> None:
    if not wanted or ctx.resilient_parsing:
        return
    typer.echo(f"mcf {VERSION}")
    try:
        client = Client(
            ctx.params.get("url"), ctx.params.get("token"), timeout_seconds=QUICK_SECONDS, warn=lambda told: None
        )
        theirs = client.service_version()
    except McfError as error:
        typer.echo(f"service: {first_line(str(error))}")
    else:
        typer.echo(f"service at {client.url}: mcf {theirs or 'of a release that does not tell its version'}")
        if told := difference(client.url, theirs):
            typer.echo(told, err=True)
    raise typer.Exit


@app.callback()
def main(
    ctx: typer.Context,
    url: Annotated[
        str | None,
        typer.Option(
            is_eager=True,  # --version asks there, wherever it stands
            help="Address of the service; default: MCF_URL, else the `mcf up` of this folder, or the only one.",
        ),
    ] = None,
    token: Annotated[
        str | None, typer.Option(is_eager=True, help="Token of the service, if it asks for one; MCF_TOKEN is safer.")
    ] = None,
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_versions, help="Print the versions of this mcf and of the service, and end."
        ),
    ] = False,
) -> None:
    """Face-representation pretraining: from one request to a comparison."""
    # One for the whole command, so that what is to be told of the service is told once.
    ctx.obj = cache(lambda: Client(url, token, warn=lambda told: typer.echo(told, err=True)))


@app.command()
def up(
    folder: Annotated[Path, typer.Option("--dir", help="Folder for everything that is kept.")] = home.DEFAULT,
    s3: Annotated[str | None, typer.Option(help="Store runs below this s3:// address instead of the folder.")] = None,
) -> None:
    """Run service, MLflow and object store on this machine until Ctrl-C."""
    from service.cli.up import up as run_up

    run_up(home.Home(folder), s3=s3)


@app.command()
def demo(
    data: Annotated[
        Path | None, typer.Option(help="Folder of images to train on; default: 100 faces of scikit-image.")
    ] = None,
    keep: Annotated[bool, typer.Option(help="Keep running after the table, until Ctrl-C.")] = True,
    folder: Annotated[Path, typer.Option("--dir", help="Folder for everything that is kept.")] = home.DEFAULT,
) -> None:
    """Train a small ablation on real faces and show the comparison."""
    from service.cli.demo import demo as run_demo

    raise typer.Exit(run_demo(home.Home(folder), data=data, keep=keep, console=show.terminal()))


@app.command()
def submit(
    ctx: typer.Context,
    file: Annotated[Path, typer.Argument(help="Spec in YAML; relative paths start at its folder.")],
    watch: Annotated[bool, typer.Option("--watch", help="Show progress, then the comparison.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would be done; submit nothing.")] = False,
    project: Annotated[
        str | None, typer.Option(help="Project of the experiment; default: that of the token, else `default`.")
    ] = None,
) -> None:
    """Submit an experiment."""
    client, console = ctx.obj(), show.terminal()
    if dry_run:
        with progress(READS):
            plan = client.plan(file, project=project)
        console.print(show.plan(plan))
        return
    with progress(READS):
        experiment = client.submit(file, project=project)
    detail = experiment.detail
    console.print(f"{detail.name} is {detail.id}: {detail.num_arms} arms, {show.counts(detail)}", soft_wrap=True)
    console.print(f"page: {client.url}/experiments/{detail.id}", soft_wrap=True)
    for warning in detail.warnings:
        console.print(f"warning: {warning}", soft_wrap=True, markup=False)
    if watch:
        raise typer.Exit(_watch(experiment, console))


@app.command("list")
def list_experiments(
    ctx: typer.Context,
    project: Annotated[str | None, typer.Option(help="Show only this project.")] = None,
    states: Annotated[
        list[ExperimentState] | None, typer.Option("--state", help="Show only this state; may be given several times.")
    ] = None,
    name: Annotated[str | None, typer.Option(help="Show only names that hold this, or ids that begin with it.")] = None,
    deleted: Annotated[bool, typer.Option("--deleted", help="Show those that `mcf restore` can bring back.")] = False,
) -> None:
    """List experiments, newest first."""
    found = list(ctx.obj().experiments(project, states=states or (), search=name, deleted=deleted))
    some = "No experiment is like that; `mcf list` lists all." if project or states or name or deleted else ""
    show.terminal().print(show.experiments(found) if found or not some else some)


@app.command("show")
def show_one(
    ctx: typer.Context,
    name: Annotated[
        str, typer.Argument(help="Name or id of an experiment, or id of a run.", autocompletion=complete.things)
    ],
) -> None:
    """Show an experiment with its runs, or a run with its attempts and checkpoints."""
    client, console = ctx.obj(), show.terminal()
    found = client.look_up(name)
    if found.kind is Kind.EXPERIMENT:
        console.print(show.experiment(client.experiment(found.id).detail))
    else:
        run = client.run(found.id)
        console.print(show.run(run, client.checkpoints(run.id).checkpoints))


@app.command()
def pools(ctx: typer.Context) -> None:
    """Show the node pools of the cluster and what is free now."""
    show.terminal().print(show.pools(ctx.obj().pools()))


@app.command()
def watch(ctx: typer.Context, name: Name) -> None:
    """Show the progress of an experiment until it ends, then the comparison."""
    raise typer.Exit(_watch(ctx.obj().experiment(name), show.terminal()))


@app.command()
def logs(
    ctx: typer.Context,
    run: RunName,
    follow: Annotated[bool, typer.Option("-f", "--follow", help="Keep printing until the run ends.")] = False,
) -> None:
    """Print the logs of a run's nodes."""
    client = ctx.obj()
    run_id = client.run(run).id
    if not follow:
        typer.echo(client.logs(run_id), nl=False)
        return
    for line in client.follow_logs(run_id):
        typer.echo(line)


@app.command()
def compare(
    ctx: typer.Context,
    name: Name,
    other: Annotated[
        str | None, typer.Argument(help="A second experiment to show beside it.", autocompletion=complete.experiments)
    ] = None,
    form: Annotated[OutputFormat, typer.Option("--format", help="Output format.")] = OutputFormat.TABLE,
    metric: Annotated[
        str | None,
        typer.Option(help="Metric to rank by, such as alignment/nme_diag; default: evaluation.rank_by, or the probe."),
    ] = None,
    at: Annotated[
        int | None, typer.Option(min=0, help="Show the table as of this step of training (evaluation.every).")
    ] = None,
    forecast: Annotated[
        int | None, typer.Option(min=1, help="Forecast the arms at so many images, from the sizes of data.subset_size.")
    ] = None,
) -> None:
    """Compare the arms of an experiment, finished or not; or two experiments, arm by arm."""
    if other is not None and forecast is not None:
        raise typer.BadParameter("two experiments are compared without forecasts", param_hint="--forecast")
    if other is not None and at is not None:
        raise typer.BadParameter("two experiments are compared at their ends", param_hint="--at")
    if other is not None:
        papers.across(ctx.obj(), name, other, metric, as_json=_is_json(form))
        return
    found = ctx.obj().experiment(name).table(metric, at=at, forecast=forecast)
    if form is OutputFormat.TABLE:
        show.terminal().print(show.comparison(found))
    elif form is OutputFormat.JSON:
        typer.echo(found.model_dump_json(indent=2))
    else:
        texts = {
            OutputFormat.MARKDOWN: found.to_markdown,
            OutputFormat.CSV: found.to_csv,
            OutputFormat.LATEX: found.to_latex,
        }
        typer.echo(texts[form](), nl=False)


for act in acts.cancel, acts.pause, acts.resume, acts.retry, acts.change:
    app.command()(act)
app.command()(store.delete)
app.command()(store.restore)
app.command()(store.rebuild)
app.add_typer(store.store, name="store")
app.add_typer(store.project, name="project")
app.command()(audit)
app.command()(extend)
app.command()(evaluate)
app.command()(export)
app.command()(get)
app.command("report")(papers.report)
app.command("reproduce")(papers.reproduce)
app.command("import-flags", context_settings={"ignore_unknown_options": True})(flags.import_flags)


def _is_json(form: OutputFormat) -> bool:
    if form not in (OutputFormat.TABLE, OutputFormat.JSON):
        raise typer.BadParameter("two experiments are shown as table or json", param_hint="--format")
    return form is OutputFormat.JSON


def _watch(experiment: Experiment, console: Console) -> int:
    """Exit code: 0 when every run succeeded."""
    try:
        watch_experiment(experiment)
    except KeyboardInterrupt:
        console.print(
            f"\nStopped watching; {experiment.id} keeps running. `mcf watch {experiment.id}` shows it "
            f"again, `mcf cancel {experiment.id}` stops it.",
            soft_wrap=True,
        )
        return INTERRUPTED
    console.print()
    console.print(show.comparison(experiment.table()))
    return 0 if experiment.detail.state == "succeeded" else NOT_DONE


def _lines(error: Exception) -> list[str]:
    if isinstance(error, Refused) and error.problems:
        count = len(error.problems)
        return [
            f"{count} problem{'s' * (count != 1)}; nothing was submitted:",
            *(f"  {item}" for item in error.problems),
        ]
    return str(error).splitlines()


if __name__ == "__main__":
    app()
