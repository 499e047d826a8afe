"""`mcf report`, `mcf reproduce` and `mcf compare ONE OTHER`: results that leave the service, and come back."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Group, RenderableType
from rich.text import Text

from service.cli import complete, show
from service.cli.progress import READS, progress
from service.cli.watch import watch
from service.client import Client, Experiment, McfError
from service.compare.columns import mean, signed, signed_interval

if TYPE_CHECKING:
    from service.compare.across import Across
    from service.compare.reproduce import Number
    from service.schemas.comparison import Report

MOVED, INTERRUPTED = 1, 130


def report(
    ctx: typer.Context,
    name: Annotated[
        str,
        typer.Argument(
            help="Name or id of an experiment; the beginning of an id is enough.", autocompletion=complete.experiments
        ),
    ],
    out: Annotated[
        Path | None, typer.Option(help="File to write; default: NAME.html in this folder. `-` prints it.")
    ] = None,
) -> None:
    """Write everything about an experiment into one HTML file that needs no network."""
    experiment = ctx.obj().experiment(name)
    with progress("the service draws the report"):
        text = experiment.report()
    if out == Path("-"):
        typer.echo(text, nl=False)
        return
    file = out or Path(f"{experiment.detail.name}.html")
    try:
        file.write_text(text)
    except OSError as error:
        raise McfError(f"{file} cannot be written: {error.strerror}. Name another with --out.") from error
    typer.echo(f"{file}: {len(text) / 1000:.0f} kB. `mcf reproduce {file}` trains it again and shows what moved.")


def reproduce(
    ctx: typer.Context,
    file: Annotated[Path, typer.Argument(metavar="REPORT", help="File written by `mcf report`.")],
    against: Annotated[
        str | None,
        typer.Option(
            "--with",
            help="Experiment that has trained it again; nothing is submitted.",
            autocompletion=complete.experiments,
        ),
    ] = None,
    tolerance: Annotated[
        float, typer.Option(min=0.0, max=1.0, help="Relative tolerance; a number that moved by less has not moved.")
    ] = 0.0,
    project: Annotated[
        str | None, typer.Option(help="Project of the experiment; default: that of the token, else `default`.")
    ] = None,
) -> None:
    """Train the experiment of a report again and show which numbers moved. Exit code 0: none."""
    from service.compare.paper import read_back
    from service.compare.reproduce import numbers, other_digests

    client, console, was = ctx.obj(), show.terminal(), _read(file)
    experiment = client.experiment(against) if against else _submit(client, was, project)
    try:
        watch(experiment)
    except KeyboardInterrupt:
        again = f"mcf reproduce {file} --with {experiment.id}"
        console.print(f"\nStopped watching; {experiment.id} keeps running. `{again}` shows it again.", soft_wrap=True)
        raise typer.Exit(INTERRUPTED) from None
    with progress("the service draws today's report"):
        now = read_back(experiment.report())
    for difference in other_digests(was.digests, now.digests):
        console.print(f"not the same input: {difference}", soft_wrap=True)
    for name in sorted(was.trained_with.keys() | now.trained_with.keys()):
        before, today = (" and ".join(found.trained_with.get(name, ["unknown"])) for found in (was, now))
        if before != today:
            console.print(f"not the same version: {name} {before}, today {today}", soft_wrap=True)
    found = numbers(was.comparison, now.comparison, tolerance)
    moved = [number for number in found if number.has_moved]
    console.print(_numbers(found))
    within = f" by more than {tolerance:g} of it" if tolerance else ""
    console.print(
        f"\n{len(moved)} of {len(found)} numbers moved{within}: {file} against {experiment.id}.", soft_wrap=True
    )
    raise typer.Exit(MOVED if moved or not found else 0)


def across(client: Client, name: str, other: str, metric: str | None, *, as_json: bool) -> None:
    """Two experiments, arm by arm."""
    from service.compare.across import across as side_by_side
    from service.compare.across import dotted

    one, two = client.experiment(name), client.experiment(other)
    specs, other_specs = (
        {arm: dotted(spec) for arm, spec in experiment.specs().items()} for experiment in (one, two)
    )  # fmt: skip
    found = side_by_side(one.table(metric), two.table(metric), specs, other_specs)
    if as_json:
        typer.echo(found.model_dump_json(indent=2))
    else:
        show.terminal().print(_across(found))


def _read(file: Path) -> "Report":
    from service.compare.paper import NoReport, read_back

    try:
        return read_back(file.read_text())
    except OSError as error:
        raise McfError(f"{file} cannot be read: {error.strerror}") from error
    except (UnicodeDecodeError, NoReport) as error:
        raise McfError(f"{file}: {error}. `mcf report EXPERIMENT` writes one.") from error


def _submit(client: Client, was: "Report", project: str | None) -> Experiment:
    from service.compare.reproduce import other_runs

    console = show.terminal()
    with progress(READS):
        plan = client.plan(was.spec, project=project)
    if others := other_runs(was, plan):
        console.print(
            f"{len(others)} runs will not be those of the report, because the data, a teacher or the defaults of mcf "
            f"have changed since: {'; '.join(others[:4])}{' ...' if len(others) > 4 else ''}.",
            soft_wrap=True,
        )
    with progress(READS):
        experiment = client.submit({**was.spec, "share": False}, project=project)
    console.print(
        f"{was.comparison.experiment_id} is trained again as {experiment.id}: {show.counts(experiment.detail)}",
        soft_wrap=True,
    )
    return experiment


def _numbers(found: "list[Number]") -> RenderableType:
    table = show.columns("arm", "number", "report", "today", "moved by")
    for number in found:
        by = number.now - number.was if number.now is not None and number.was is not None else None
        told = f"{by:+.3g}" if by else "" if not number.has_moved else "missing"
        table.add_row(
            number.arm, number.name, _value(number.was), _value(number.now), told,
            style="yellow" if number.has_moved else "",
        )  # fmt: skip
    return table


def _across(found: "Across") -> RenderableType:
    from service.compare.across_words import NOTHING_IN_COMMON, words

    one, other = (f"{item.name} ({item.experiment_id})" for item in (found.one, found.other))
    table = show.columns(
        "arm", one, other, "difference", "95 % interval", "over common seeds", "n", "95 % interval", "runs"
    )
    for pair in found.pairs:
        same = f"{pair.same_runs} shared" if pair.same_runs else ""
        table.add_row(
            pair.one, mean(pair.probe), mean(pair.other_probe), signed(pair.unpaired), signed_interval(pair.unpaired),
            signed(pair.paired), str(pair.paired.n) if pair.paired else "", signed_interval(pair.paired), same,
        )  # fmt: skip
    filled = table if table.row_count else Text(NOTHING_IN_COMMON)
    return Group(filled, *(Text(f"* {word}") for word in words(found)))


def _value(value: float | None) -> str:
    return "missing" if value is None else repr(value)
