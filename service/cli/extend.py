"""`mcf extend`: more arms, seeds or measurements for an experiment."""

from pathlib import Path
from typing import Annotated, Any

import typer

from service import specfile
from service.cli import complete, show
from service.cli.progress import progress
from service.schemas.experiments import ExperimentDetail
from trainer.contract import plain


def extend(
    ctx: typer.Context,
    name: Annotated[
        str,
        typer.Argument(
            help="Name or id of an experiment; the beginning of an id is enough.", autocompletion=complete.experiments
        ),
    ],
    seeds: Annotated[int | None, typer.Option(min=1, help="Number of seeds that every arm will have.")] = None,
    add: Annotated[
        list[str] | None, typer.Option(metavar="FACTOR=LEVEL", help="Level to add to a factor; may be repeated.")
    ] = None,
    evaluation: Annotated[
        Path | None, typer.Option(metavar="FILE", help="YAML file with fields of `evaluation` to set, such as a stage.")
    ] = None,
    gpu_hours: Annotated[float | None, typer.Option(help="New cap on the GPU-hours of all runs.")] = None,
) -> None:
    """Add seeds, levels of factors, or measurements to an experiment. Finished runs are not trained again."""
    if seeds is None and not add and evaluation is None and gpu_hours is None:
        raise typer.BadParameter("nothing to add: give --seeds, --add FACTOR=LEVEL, --evaluation FILE or --gpu-hours")
    experiment = ctx.obj().experiment(name)
    before = _runs(experiment.detail)
    asked = specfile.read_evaluation(evaluation) if evaluation else {}
    factors = _factors(add or [])
    with progress("the service reads the data again"):
        detail = experiment.extend(seeds=seeds or (), factors=factors, evaluation=asked, gpu_hours=gpu_hours).detail
    after = _runs(detail)
    added = len(after.keys() - before.keys())
    news = f"has {added} more run{'s' * (added != 1)}"
    if anew := sum(run != after[trial] for trial, run in before.items()):
        news += f", and measures {anew} anew"
    typer.echo(f"{detail.name} ({detail.id}) {news}: {show.counts(detail)}")


def _runs(detail: ExperimentDetail) -> dict[tuple[str, int], str]:
    """(arm, seed) -> the run of that trial."""
    return {(arm.name, trial.seed): trial.run_id for arm in detail.arms for trial in arm.trials}


def _factors(added: list[str]) -> dict[str, list[Any]]:
    """Factor -> levels, each read as YAML."""
    factors: dict[str, list[Any]] = {}
    for text in added:
        factor, equals, level = text.partition("=")
        try:
            found = plain.from_yaml(level)
        except plain.NotPlain as error:
            raise typer.BadParameter(f"{level!r} is not a level: {error}", param_hint="--add") from error
        if not (factor and equals and level):
            raise typer.BadParameter(f"{text!r} is not FACTOR=LEVEL, as in mask_ratio=0.9", param_hint="--add")
        factors.setdefault(factor, []).append(found)
    resolved: dict[str, list[Any]] = specfile.with_absolute_paths({"factors": factors}, Path.cwd())["factors"]
    return resolved
