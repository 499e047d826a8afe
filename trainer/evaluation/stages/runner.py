"""Stages of evaluation: a head for alignment or parsing is fitted to a benchmark, on any encoder.

In a run they follow its last step. All ranks fit together, each a part of every slice; those that would have no face
of a slice wait (trainer/elastic/waiting.py). A stage saves checkpoints of its own below stages/NAME/, between two
steps; its result replaces them.
"""

import hashlib
import logging
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import NamedTuple, cast

import torch
from torch import Tensor

from trainer.contract import EncoderSpec, RunSpec, records
from trainer.contract.recipe import Recipe, Selection
from trainer.contract.records import Metric, StageResult
from trainer.contract.stage import FACES68, Stage
from trainer.data.manifest import DataError, Images, Split
from trainer.elastic import kills
from trainer.elastic.distributed import World
from trainer.elastic.stop import INTERRUPTED, StopRequest, stop_requests
from trainer.elastic.waiting import on_first
from trainer.evaluation.readers.record import sample
from trainer.evaluation.readers.source import Files, digest_of_faces, local_folder
from trainer.evaluation.stages.benchmarks import BENCHMARKS
from trainer.evaluation.stages.downstream import prepare
from trainer.evaluation.stages.faces68 import check_faces68, write_faces68
from trainer.evaluation.stages.fitting import Epoch, Fit, Fitted
from trainer.method.vit import Encoder
from trainer.state.checkpoint import CheckpointStore
from trainer.store.objects import StorageError, Store, insist, open_store, read_object
from trainer.store.rundir import read_spec, read_stage
from trainer.tracking.report import RankZero

logger = logging.getLogger(__name__)

KEPT = 2
# A state is saved so often at most, and so seldom that it takes this share of the time.
SAVE_SECONDS = 2.0
MAX_SHARE = 0.05
PATIENCE_SECONDS = 600.0

Tell = Callable[[str, Fit, Epoch | None], None]
"""Called with the stage's name when it begins, with None, and after every epoch; again for epochs of before."""


class Stopped(Exception):
    """Somebody has asked the process to end, and the state is saved."""


class Faces(NamedTuple):
    """The images that `faces68` annotates."""

    split: Split
    images: Images


@dataclass(frozen=True)
class Subject:
    """What is evaluated."""

    encoder: EncoderSpec
    weights: Mapping[str, Tensor]
    """Of trainer.method.vit.Encoder."""
    seed: int
    digest: str
    """Names it, and what is asked of it: a state with another one is not gone on with."""


def run_stages(
    run: RunSpec, store: Store, encoder: Encoder, faces: Faces, report: RankZero | None, world: World
) -> tuple[StageResult, ...]:  # fmt: skip
    """All stages of a run that are left, and their numbers, on every rank that has fitted the last one.

    Every rank calls this, `report` is rank 0's. Exits as interrupted when one is asked to stop, then all is saved.
    Raises DataError, Diverged, and StorageError when the last state cannot be saved.
    """

    def tell(name: str, fit: Fit, epoch: Epoch | None) -> None:
        if epoch:
            kills.forget()
        if report is None:
            return
        done = 0 if epoch is None else epoch.epoch + 1
        now = f"{name}, epoch {min(done + 1, fit.recipe.epochs)} of {fit.recipe.epochs}"
        report.journal.update(report.total_steps, report.mean_losses(), None, stage=now)
        if epoch:
            report.log.metrics(done, logged(name, epoch))

    weights = encoder.state_dict()

    def fit(name: str, asked: Stage, team: World) -> StageResult:
        subject = Subject(run.encoder, weights, run.seed, run.measurements[name])
        with stop_requests() as stop:
            try:
                return fit_stage(name, asked, subject, faces, store, team, tell, stop)
            except Stopped as error:
                if report:
                    report.close(str(error))
                raise SystemExit(INTERRUPTED) from error

    results = []
    for name, asked in run.evaluation.stages.items():
        count = min(world.size, _recipe(asked, run.seed).slice)
        results.append(on_first(world, count, partial(fit, name, asked)))
    return tuple(result for result in results if result)


def fit_stage(
    name: str, asked: Stage, subject: Subject, faces: Faces | None, store: Store, team: World, tell: Tell,
    stop: StopRequest,
) -> StageResult:  # fmt: skip
    """The numbers of one stage, from where it was left; every rank of the team calls this, and each is told.

    Raises Stopped, on all when one is asked to end, DataError, Diverged, StorageError.
    """
    if found := team.share(read_stage(store, name) if team.is_first else None):
        return cast(StageResult, found)
    folder = records.stage_folder(name)
    checkpoints = CheckpointStore(
        open_store(f"{store.uri.rstrip('/')}/{folder}"), spec_digest=subject.digest, keep=KEPT,
        is_same=lambda: _asked_there(store, name) == subject.digest,
    )  # fmt: skip
    with _node_folder(team) as scratch:
        root = None
        if team.is_first_of_node:
            check_unchanged(asked, faces)
            root = _laid_out(asked, faces, scratch)
            sample(BENCHMARKS[asked.benchmark].read(root))
        roots = [path for node, path in team.collect((team.node, root)) if path and node == team.node]
        fit = _prepared(asked, subject, roots[0], team)
        saved = checkpoints.restore_latest(team.device) if team.is_first else None
        if state := team.broadcast_state(saved[1] if saved else None, 0):
            fit.load_state_dict(state)
            if team.is_first:
                logger.info("%s goes on in epoch %d of %d", name, len(fit.history) + 1, fit.recipe.epochs)
        tell(name, fit, None)
        for epoch in fit.history:
            tell(name, fit, epoch)
        fitted = fit.run(lambda epoch: tell(name, fit, epoch), _Saver(name, fit, checkpoints, team, stop).tick)
        result = _result(name, asked, fit, fitted)
        if team.is_first:
            text = result.model_dump_json(indent=1).encode()
            insist(lambda: store.put(folder + records.RESULT, text), f"the result of {name}", PATIENCE_SECONDS)
            checkpoints.discard()
    return result


def check_stage(asked: Stage, faces: Faces | None) -> None:
    """Whether a head can be fitted to the benchmark, before anything is trained: all that is known of its faces, and
    the images and masks of a few. Raises DataError with the file, line or image, StorageError."""
    found = check_unchanged(asked, faces)
    if isinstance(found, Files):
        sample(BENCHMARKS[asked.benchmark].read(found.root()))
    elif faces:
        check_faces68(found, *faces)


def check_unchanged(asked: Stage, faces: Faces | None) -> Files | bytes:
    """The benchmark's files, or for `faces68` its landmarks, as they were asked for. Raises DataError, StorageError."""
    found: Files | bytes
    if asked.benchmark == FACES68:
        if faces is None:
            raise DataError(f"{FACES68} annotates images, and none are named")
        found = read_object(asked.uri)
        digest = digest_of_faces(faces.split.manifest.digest, hashlib.sha256(found).hexdigest())
    else:
        found = Files(asked.uri)
        digest = found.digest
    if asked.sha256 not in (None, digest):
        raise DataError(f"{asked.uri} has changed: digest {digest}, the spec says {asked.sha256}")
    return found


def logged(name: str, epoch: Epoch) -> dict[str, float]:
    """The numbers of one epoch by the names they have in MLflow."""
    validated = {f"{name}/validation/{metric}": value for metric, value in epoch.validation.items()}
    return {
        f"{name}/loss": epoch.loss,
        **{f"{name}/{metric}": value for metric, value in epoch.test.items()},
        **validated,
    }


def _laid_out(asked: Stage, faces: Faces | None, scratch: Path) -> Path:
    """The benchmark's folder on this machine."""
    if asked.benchmark != FACES68:
        return local_folder(asked.uri, scratch)
    assert faces
    write_faces68(read_object(asked.uri), faces.split, faces.images, scratch)
    return scratch


def _prepared(asked: Stage, subject: Subject, root: Path, team: World) -> Fit:
    benchmark = BENCHMARKS[asked.benchmark]
    return prepare(
        replace(benchmark, task=replace(benchmark.task, size=asked.crop_size)), root, subject.encoder, subject.weights,
        recipe=_recipe(asked, subject.seed), device=team.device, input_size=asked.input_size, channels=asked.channels,
        team=team,
    )  # fmt: skip


def _asked_there(store: Store, name: str) -> str | None:
    """Digest of the stage that the run in this directory is asked for."""
    there = read_spec(store)
    return there.measurements.get(name) if there else None


def _recipe(asked: Stage, seed: int) -> Recipe:
    return asked.recipe(BENCHMARKS[asked.benchmark].recipe, seed)


def _result(name: str, asked: Stage, fit: Fit, fitted: Fitted) -> StageResult:
    prefix = f"{name}/{fitted.selection.value}/"
    return StageResult(
        stage=name, benchmark=asked.benchmark, selection=fitted.selection.value, epoch=fitted.epoch + 1,
        epochs=len(fit.history), primary=prefix + fit.task.primary,
        metrics=tuple(_metric(prefix, fitted.selection, metric, value) for metric, value in fitted.metrics.items()),
        note=f"{asked.benchmark}: {fitted.note}",
    )  # fmt: skip


def _metric(prefix: str, selection: Selection, name: str, value: float) -> Metric:
    kind, _, what = name.partition("/")[0].partition("_")
    unit = f"% of {what.replace('_', '-')}" if kind == "nme" else "%"
    if selection is Selection.BEST_ON_TEST:
        # Where a number is shown with its unit alone, it says so, too.
        unit += ", best on test"
    return Metric(name=prefix + name, value=value, unit=unit, higher_is_better=kind not in ("nme", "fr"))


@contextmanager
def _node_folder(team: World) -> Iterator[Path]:
    """Scratch of the first rank of each node, which stays until every rank of the team has done with it."""
    with tempfile.TemporaryDirectory(prefix="mcf-benchmark-") as scratch:
        yield Path(scratch)
        team.collect(None)


class _Saver:
    """Saves a fit's state now and then between two steps, and at once when one of the team is asked to end.

    All have the same state, and rank 0 saves it.
    """

    def __init__(self, name: str, fit: Fit, checkpoints: CheckpointStore, team: World, stop: StopRequest) -> None:
        self.name, self.fit, self.checkpoints, self.team, self.stop = name, fit, checkpoints, team, stop
        self._next = time.monotonic() + SAVE_SECONDS

    def tick(self) -> None:
        """Every rank calls this. Raises Stopped, and StorageError where the last state cannot be saved."""
        asked = torch.tensor(float(self.stop.requested), device=self.team.device)
        if self.team.sum(asked) > 0:
            if self.team.is_first:
                insist(self._save, f"the state of {self.name}", PATIENCE_SECONDS)
                logger.warning("stopped on request in epoch %d of %s", len(self.fit.history) + 1, self.name)
            raise Stopped(self.name)
        if self.team.is_first:
            self._save_now_and_then()

    def _save_now_and_then(self) -> None:
        started = time.monotonic()
        if started < self._next:
            return
        try:
            self._save()
        except StorageError as error:
            logger.warning("the state of %s was not saved, it goes on: %s", self.name, error)
        now = time.monotonic()
        self._next = now + max(SAVE_SECONDS, (now - started) / MAX_SHARE)

    def _save(self) -> None:
        self.checkpoints.save(self.fit.state_dict(), step=self.fit.position, world_size=self.team.size)
