"""`mcf evaluate`: an encoder that is there, measured on a benchmark. Needs no service, but for a run's id."""

import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import IO, Annotated, Any

import typer
from pydantic import ValidationError

from k8s.supervisor import temporary_folder
from service.cli import home, show
from service.cli.progress import progress
from service.client import McfError
from trainer.contract.recipe import Recipe, Selection
from trainer.contract.records import StageResult
from trainer.contract.request import KINDS, STAGE_OF, Request
from trainer.contract.stage import FACES68

INTERRUPTED = 143
RUN = re.compile("(run:)?(r[0-9a-f]{3,12})")
NAMES = ("s3://", "models:/", "runs:/", "mlflow:")

Benchmark = StrEnum("Benchmark", {name: name for name in STAGE_OF})  # type: ignore[misc]


def evaluate(
    ctx: typer.Context,
    model: Annotated[
        str,
        typer.Argument(
            help="Id or directory of a run, checkpoint or weights file (MCF, FaRL, any plain ViT; path or s3://), or "
            "models:/NAME@ALIAS, runs:/ID/PATH of MLflow."
        ),
    ],
    benchmark: Annotated[Benchmark, typer.Option(help="Benchmark to measure it on.")],
    data: Annotated[str, typer.Option(help="Folder of the benchmark (faces68: its images); a path or s3:// address.")],
    landmarks: Annotated[str | None, typer.Option(help="faces68 only: the landmark file.")] = None,
    held_out: Annotated[
        int | None, typer.Option(min=2, help="faces68 only: number of images in the test split.")
    ] = None,
    frozen: Annotated[bool, typer.Option("--frozen", help="Freeze the encoder; train only the head.")] = False,
    epochs: Annotated[int | None, typer.Option(min=1, help="Epochs to train; default: as published.")] = None,
    selection: Annotated[Selection, typer.Option(help="Epoch whose numbers count.")] = Selection.LAST,
    seed: Annotated[int, typer.Option(min=0, help="Seed for the head, the order and the noise.")] = 0,
    more: Annotated[
        list[str] | None,
        typer.Option("--set", help="Set any other field of a stage: --set fraction=0.1 (docs/spec.md)."),
    ] = None,
    processes: Annotated[
        int,
        typer.Option(
            min=1,
            help="Processes that share the work, one per GPU; the steps equal those of one process, up to rounding.",
        ),
    ] = 1,
    heads: Annotated[
        int | None, typer.Option(min=1, help="Attention heads of the encoder, if its file does not say.")
    ] = None,
    out: Annotated[
        str | None, typer.Option(help="Where state and result are kept; the same command resumes from there.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Measure an encoder on a face benchmark without pretraining. After an interruption, the same command resumes."""
    from service.cli import datasets

    address = _model(ctx, model)
    home.reach(ctx.obj, address, data, landmarks, out)
    asked: dict[str, Any] = {"benchmark": benchmark.value, "frozen": frozen, "selection": selection.value}
    asked |= _fields(more or ())
    if epochs:
        asked["epochs"] = epochs
    faces = None
    if benchmark.value == FACES68:
        if landmarks is None or held_out is None:
            raise McfError(f"{FACES68} needs --landmarks FILE, and --held-out N images to test on")
        asked["uri"], faces = _address(landmarks), datasets.described(data, None, None, None)
    elif landmarks or held_out:
        raise McfError(f"--landmarks and --held-out are for {FACES68}; {benchmark.value} has its own")
    else:
        asked["uri"] = _address(data)
    stage = STAGE_OF[benchmark.value]
    try:
        kept = KINDS[stage].model_validate(asked)
    except ValidationError as error:
        lines = [f"{'.'.join(map(str, item['loc']))}: {item['msg']}, not {item['input']!r}" for item in error.errors()]
        raise McfError("\n".join(lines)) from error
    most = kept.slice or kept.batch or Recipe().slice
    if processes > most:
        raise McfError(f"--processes: asked for {processes}; possible: at most {most}, the faces of a slice")
    request = Request(
        model=address, stage=stage, asked=kept.model_dump(mode="json"), data=faces, held_out=held_out or 2,
        seed=seed, heads=heads,
    )  # fmt: skip
    place = _address(out) if out else str(Path("evaluations", request.digest[:12]).resolve())
    result = _measured(request, place, processes)
    if as_json:
        typer.echo(json.dumps(result.model_dump(mode="json"), indent=1))
        return
    table = show.columns("metric", "value", "", "better")
    for metric in result.metrics:
        better = "higher" if metric.higher_is_better else "lower"
        table.add_row(metric.name, f"{metric.value:.3f}", metric.unit, better)
    console = show.terminal()
    console.print(table)
    console.print(f"\n{result.note}. Kept in {place}", soft_wrap=True)


def _measured(request: Request, place: str, processes: int) -> StageResult:
    """Raises McfError."""
    # Processes of their own: torch is not for the command line's.
    together = ["torch.distributed.run", "--standalone", "--nproc-per-node", str(processes), "-m"]
    started = [*(together if processes > 1 else []), "trainer.evaluation.measure"]
    command = [sys.executable, "-m", *started, request.model_dump_json(), place]
    with temporary_folder() as temporary:
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ | temporary
        )
        told, code = _told_by(process)
    if code == INTERRUPTED or "interrupted" in told:
        raise McfError("Interrupted; finished work is kept, and the same command resumes from there.")
    if "error" in told:
        raise McfError(told["error"])
    if code:
        raise McfError(f"The measurement did not finish; trainer.evaluation.measure exited with {code}")
    return StageResult.model_validate(told)


def _told_by(process: "subprocess.Popen[str]") -> tuple[dict[str, Any], int]:
    """The last that it has said, and its exit code."""
    assert process.stdout
    told: dict[str, Any] = {}
    with progress("reading the encoder and the benchmark") as line, _passed_on(process.stderr):
        try:
            for text in process.stdout:
                told = json.loads(text)
                if "epoch" in told and "of" in told:
                    numbers = ", ".join(f"{name} {value:.4g}" for name, value in told.items() if "/" in name)
                    line(f"epoch {told['epoch']} of {told['of']}: {numbers}")
        except KeyboardInterrupt:
            # It was interrupted along with this one, and writes down where it is.
            line("interrupted; what is done is being kept")
            process.wait()
        return told, process.wait()


@contextmanager
def _passed_on(log: IO[str] | None) -> Iterator[None]:
    """Lines of a log on standard error, by this process: another's would run into the line of progress."""
    assert log
    thread = threading.Thread(target=lambda: [sys.stderr.write(line) for line in log], daemon=True)
    thread.start()
    yield
    thread.join()


def _model(ctx: typer.Context, model: str) -> str:
    """The address behind a run's id; any other as it is, absolute."""
    match = RUN.fullmatch(model)
    if match and not Path(model).exists():
        return str(ctx.obj().run(match[2]).uri)
    return _address(model)


def _address(text: str) -> str:
    if text.startswith(NAMES):
        return text
    return os.path.abspath(Path(text).expanduser())


def _fields(assignments: list[str] | tuple[str, ...]) -> dict[str, Any]:
    """`name=value`, the value as JSON where it is some. Raises McfError."""
    found: dict[str, Any] = {}
    for text in assignments:
        name, equals, value = text.partition("=")
        if not equals:
            raise McfError(f"--set {text}: give a field and its value, such as fraction=0.1")
        try:
            found[name] = json.loads(value)
        except ValueError:
            found[name] = value
    return found
