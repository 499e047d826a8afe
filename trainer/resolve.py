"""Checks a request against the world before anything runs: files exist, digests match, subsets fit. No torch.

What is found is written into the spec (digests of data, teacher and annotations), so that a run's digest
covers the contents it saw and not the path they had.
"""

import hashlib
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from trainer.contract import (
    Code,
    Data,
    ExperimentSpec,
    Initial,
    Mask,
    Placement,
    Problem,
    RunSpec,
    SpecError,
    TeacherSpec,
)
from trainer.contract.ablation import Arm, across_arms, expand, parse_experiment
from trainer.contract.frozen import MAX_INTEGER
from trainer.contract.mask import OF_KINDS
from trainer.contract.stage import FACES68, Stage
from trainer.data.manifest import DataError, Manifest, read_manifest
from trainer.evaluation.readers import GLANCERS, READERS
from trainer.evaluation.readers.annotations import read_labels, read_landmarks
from trainer.evaluation.readers.faces68 import read_points
from trainer.evaluation.readers.record import sample
from trainer.evaluation.readers.source import LOOKED_AT, Files, digest_of_faces
from trainer.store.objects import OutOfTime, StorageError, read_object, within
from trainer.usercode import reading
from trainer.usercode.reading import LOSS, MASK, TEACHER, Wanted
from trainer.weights import sources
from trainer.weights.sources import UnknownWeights

Answer = TypeVar("Answer")

# For what a run's digest is of: the listing of a benchmark, a file of annotations.
NAMING_SECONDS = 60.0
# For what is only looked at, of all benchmarks on a store together.
LOOK_SECONDS = 1.5


@dataclass(frozen=True)
class Resolved:
    """A request that can run: the spec as read, and its arms with every digest filled in."""

    spec: ExperimentSpec
    arms: list[Arm]
    num_images: dict[str, int]
    """Run digest -> images of its subset."""
    warnings: tuple[str, ...] = ()
    """What there was no time to look at; the run does before its first step."""


def check_and_resolve(
    payload: Mapping[str, Any], library: sources.Library = sources.FILES_ONLY, no_user_code: str = ""
) -> Resolved:
    """Expand a request and check all of it. `library` knows what `run:` and `mlflow:` mean.

    `no_user_code`: what to do where no user code is allowed, in words; such files are not even read then.

    Raises SpecError with every problem at once; then nothing has happened.
    """
    spec, problems = parse_experiment(payload)
    if spec is None:
        raise SpecError(problems)
    arms, more = expand(spec)
    problems += more
    look = _Look(library, no_user_code)
    found: list[tuple[str, Problem]] = []
    resolved, num_images = [], {}
    for arm in arms:
        runs = {}
        for seed, run in arm.runs.items():
            runs[seed], size = look.resolve(run, spec.placement, partial(_note, found, arm.name))
            num_images[runs[seed].digest] = size
        resolved.append(replace(arm, runs=runs))
    problems += across_arms(found, total=len(arms))
    if problems:
        raise SpecError(list(dict.fromkeys(problems)))
    return Resolved(spec, resolved, num_images, look.warnings)


Report = Callable[[str, str, str], None]
Part = TypeVar("Part", Mask, TeacherSpec)


class _Look:
    """Checks runs against the world, reading every file once however many runs name it."""

    def __init__(self, library: sources.Library, no_user_code: str) -> None:
        self._library, self._no_user_code = library, no_user_code
        self._seen: dict[tuple[object, ...], object] = {}
        self._until: float | None = None
        """Of all looks into benchmarks on a store, from the first."""
        self._warnings: list[str] = []

    @property
    def warnings(self) -> tuple[str, ...]:
        return tuple(self._warnings)

    def resolve(self, run: RunSpec, placement: Placement, report: Report) -> tuple[RunSpec, int]:
        """The run with its digests, and the size of its subset in images; problems go to `report`."""
        _check_cells(run, placement, report)
        updates: dict[str, Any] = {}
        size = 0
        if run.data.uri and (manifest := self._manifest(run, report)):
            size = _check_subset(run, manifest, report)
            if run.data.sha256 not in (None, manifest.digest):
                report("data.sha256", str(run.data.sha256), f"{manifest.digest}, the digest of {run.data.uri} today")
            updates["data"] = run.data.model_copy(update={"sha256": manifest.digest})
        if (steps := run.total_steps(size)) > MAX_INTEGER:
            asked = f"{run.schedule.length:g} {run.schedule.unit}, which is {steps:.3g} steps"
            report("schedule.length", asked, f"at most {MAX_INTEGER} steps")
        if run.teacher.is_file and (teacher := self._teacher(run, report)):
            updates["teacher"] = teacher
        if run.initial.is_file and (initial := self._initial(run, report)):
            updates["initial"] = initial
        updates["teacher"] = self._with_code("teacher", updates.get("teacher", run.teacher), report)
        updates |= self._masks(run, report)
        measured: dict[str, Any] = {}
        if digest := self._annotations(run, report):
            measured["sha256"] = digest
        for name, stage in run.evaluation.stages.items():
            if digest := self._benchmark(f"evaluation.{name}", run, stage, report):
                measured[name] = stage.model_copy(update={"sha256": digest})
        if measured:
            updates["evaluation"] = run.evaluation.model_copy(update=measured)
        return run.model_copy(update=updates), size

    def _manifest(self, run: RunSpec, report: Report) -> Manifest | None:
        data = run.data
        if data.keys and not _absolute(data.keys):
            report("data.keys", data.keys, "an absolute path")
            return None
        if data.index and not _absolute(data.index):
            report("data.index", data.index, "an absolute path or s3://bucket/key")
            return None
        return self._images("data.uri", data, report)

    def _images(self, field: str, data: Data, report: Report) -> Manifest | None:
        if not _absolute(data.uri):
            report(field, data.uri, "an absolute path or s3://bucket/prefix")
            return None
        return self._once(
            ("images", data.uri, data.format, data.keys, data.suffix, data.index),
            lambda: read_manifest(data),
            lambda error: report(field, data.uri, f"an address that can be read: {error}"),
        )

    def _teacher(self, run: RunSpec, report: Report) -> TeacherSpec | None:
        """The teacher as a file that every worker can read, with its digest."""
        if not (run.teacher.is_name or _absolute(run.teacher.source)):
            report(
                "teacher.source", run.teacher.source,
                "none, random, run:ID, mlflow:..., an absolute path or s3://bucket/key",
            )  # fmt: skip
            return None

        def fail(error: Exception) -> None:
            if isinstance(error, UnknownWeights):
                report(f"teacher.{error.field}", error.asked, error.possible)
            else:
                report("teacher.source", run.teacher.source, f"a weights file that can be read: {error}")

        teacher: TeacherSpec | None = self._once(
            ("teacher", run.teacher), lambda: sources.settled(run.teacher, self._library), fail
        )
        if teacher is None:
            return None
        depth = teacher.num_blocks(run.encoder)
        if depth and teacher.taps[-1] >= depth:
            report("teacher.taps", str(list(teacher.taps)), f"blocks 0 to {depth - 1} of {teacher.arch}")
        source = teacher.source
        digest = self._once(("weights", source), lambda: sources.digest_of(source, self._library), fail)
        if digest and teacher.sha256 not in (None, digest):
            report("teacher.sha256", str(teacher.sha256), f"{digest}, the digest of {source}")
        return teacher.model_copy(update={"sha256": digest})

    def _initial(self, run: RunSpec, report: Report) -> Initial | None:
        """The weights as a file that every worker can read, with its digest."""
        initial = run.initial

        def fail(error: Exception) -> None:
            report("initial.source", initial.source, f"a weights file that can be read: {error}")

        source: str | None = self._once(
            ("file", initial.source), lambda: sources.weights_file(initial.source, self._library), fail
        )
        if source is None:
            return None
        if not (source.startswith(sources.MLFLOW) or _absolute(source)):
            possible = "none, run:ID, models:/NAME@ALIAS, an absolute path or s3://bucket/key"
            report("initial.source", initial.source, possible)
            return None
        if source.endswith(".npz"):
            report("initial.source", initial.source, "*.safetensors, or a file of torch.save; *.npz is for teachers")
            return None
        digest = self._once(("weights", source), lambda: sources.digest_of(source, self._library), fail)
        if digest and initial.sha256 not in (None, digest):
            report("initial.sha256", str(initial.sha256), f"{digest}, the digest of {source}")
        return initial.model_copy(update={"source": source, "sha256": digest})

    def _masks(self, run: RunSpec, report: Report) -> dict[str, Any]:
        """What changes in the run when the digests of its masks' landmarks are filled in."""
        mask, theirs = self._mask("mask", run.mask, run, report), run.contrastive.target_mask
        if theirs is None:
            return {"mask": mask}
        theirs = self._mask("contrastive.target_mask", theirs, run, report)
        # Equal runs are equal specs, also where one of the two digests was given.
        changed = {"target_mask": None if theirs == mask else theirs}
        return {"mask": mask, "contrastive": run.contrastive.model_copy(update=changed)}

    def _mask(self, field: str, mask: Mask, run: RunSpec, report: Report) -> Mask:
        """The mask with the digests of its landmarks and its code, where it has any."""
        mask = self._with_code(field, mask, report)
        if not mask.landmarks or mask.kind not in OF_KINDS["landmarks"]:
            return mask
        if not _absolute(mask.landmarks):
            report(f"{field}.landmarks", mask.landmarks, "an absolute path or s3://bucket/key")
            return mask
        annotated = self._annotated(f"{field}.landmarks", mask.landmarks, _landmarked, report)
        manifest = self._manifest(run, report) if run.data.uri else None
        if not (annotated and manifest):
            return mask
        if all(manifest.find(key) is None for key in annotated.keys):
            asked = f"{mask.landmarks}, which names none of the images, but {annotated.keys[0]!r}"
            report(f"{field}.landmarks", asked, f"landmarks of images of {run.data.uri}")
        if mask.sha256 not in (None, annotated.sha256):
            report(f"{field}.sha256", str(mask.sha256), f"{annotated.sha256}, the digest of {mask.landmarks} today")
        return mask.model_copy(update={"sha256": annotated.sha256})

    def _with_code(self, field: str, part: Part, report: Report) -> Part:
        """The mask or teacher with the digests of its user code, which is looked at and not executed."""
        if isinstance(part, Mask):
            named = {"code": (part.code, MASK)} if part.kind == "code" else {}
        else:
            named = {"code": (part.code, TEACHER)} if part.arch == "code" else {}
            named = {**named, "loss": (part.loss, LOSS)} if part.source != "none" else {}
        found = {
            name: self._code(f"{field}.{name}", code, wanted, report) for name, (code, wanted) in named.items() if code
        }
        return part.model_copy(update=found)

    def _code(self, field: str, code: Code, wanted: Wanted, report: Report) -> Code:
        if self._no_user_code:
            report(field, "user code, which is not allowed here", self._no_user_code)
            return code
        if not _absolute(code.uri):
            report(field, code.uri, "an absolute path or s3://bucket/key")
            return code

        def look() -> str:
            text, digest = within(NAMING_SECONDS, lambda: reading.read(code), f"reading {code.uri}")
            reading.check(text, reading.file_name(code), wanted)
            return digest

        def fail(error: Exception) -> None:
            report(field, code.uri, f"user code that can be used: {error}")

        digest: str | None = self._once(("code", code.uri, wanted), look, fail)
        if digest and code.sha256 not in (None, digest):
            report(f"{field}.sha256", str(code.sha256), f"{digest}, the digest of {code.uri} today")
        return code.model_copy(update={"sha256": digest})

    def _annotations(self, run: RunSpec, report: Report) -> str | None:
        """Digest of the probe's images and annotations; None where the run has no probe."""
        evaluation = run.evaluation
        field = "evaluation.landmarks" if evaluation.landmarks else "evaluation.labels"
        source = evaluation.landmarks or evaluation.labels
        if source is None:
            return None
        if not _absolute(source):
            report(field, source, "an absolute path or s3://bucket/key")
        images = evaluation.images or run.data.uri
        if evaluation.images:
            manifest = self._images("evaluation.images", Data(uri=images), report)
        else:
            manifest = self._manifest(run, report) if run.data.uri else None
        read = read_labels if evaluation.labels else _landmarked
        annotated = self._annotated(field, source, read, report) if _absolute(source) else None
        if not (manifest and annotated):
            return None
        if unknown := [key for key in annotated.keys if manifest.find(key) is None]:
            report(field, f"{len(unknown)} images that {images} lacks, such as {unknown[0]!r}", "images of that folder")
            return None
        if len(annotated.keys) < 2 * evaluation.folds:
            report("evaluation.folds", str(evaluation.folds), f"at most half of {len(annotated.keys)} annotated images")
        digest = digest_of_faces(manifest.digest, annotated.sha256)
        if evaluation.sha256 not in (None, digest):
            report("evaluation.sha256", str(evaluation.sha256), f"{digest}, the digest of images and annotations today")
        return digest

    def _annotated(self, field: str, source: str, read: "_Reader", report: Report) -> "_Annotated | None":
        """What a file of annotations says, all of which is looked at."""
        return self._once(
            ("annotations", read, source),
            lambda: _Annotated.of(within(NAMING_SECONDS, lambda: read_object(source), f"reading {source}"), read),
            lambda error: report(field, source, f"a file of annotations that can be used: {error}"),
        )

    def _benchmark(self, field: str, run: RunSpec, stage: Stage, report: Report) -> str | None:
        """Digest of the files of a stage."""
        if not _absolute(stage.uri):
            report(f"{field}.uri", stage.uri, "an absolute path or s3://bucket/prefix")
            return None

        def fail(error: Exception) -> None:
            report(f"{field}.uri", stage.uri, f"{stage.benchmark} at an address that can be read: {error}")

        digest: str | None
        if stage.benchmark == FACES68:
            manifest = self._manifest(run, report) if run.data.uri else None
            annotated = self._annotated(f"{field}.uri", stage.uri, read_points, report)
            if not (manifest and annotated):
                return None
            if unknown := [key for key in annotated.keys if manifest.find(key) is None]:
                possible = f"images of {run.data.uri}"
                report(f"{field}.uri", f"{len(unknown)} images that are not there, such as {unknown[0]!r}", possible)
                return None
            self._check_sides(field, run, manifest, annotated, report)
            digest = digest_of_faces(manifest.digest, annotated.sha256)
        else:
            files = self._once(
                ("files", stage.uri), lambda: within(NAMING_SECONDS, lambda: Files(stage.uri), f"listing {stage.uri}"),
                fail,
            )  # fmt: skip
            digest = files and files.digest
            if files:
                self._once(("benchmark", stage.benchmark, stage.uri), lambda: self._look_into(stage, files), fail)
        if digest and stage.sha256 not in (None, digest):
            report(f"{field}.sha256", str(stage.sha256), f"{digest}, the digest of {stage.uri} today")
        return digest

    def _look_into(self, stage: Stage, files: Files) -> None:
        """The contents of a benchmark, the same way the run does. Raises DataError, StorageError."""
        if not files.is_remote:
            sample(READERS[stage.benchmark](files.root()))
            return
        until = self._until = self._until or time.monotonic() + LOOK_SECONDS
        look = partial(GLANCERS[stage.benchmark], files.root(until))
        try:
            within(until - time.monotonic(), lambda: sample(look(), LOOKED_AT), f"looking into {stage.uri}")
        except OutOfTime:
            self._warnings.append(
                f"{stage.uri}: its store gave no answer within {LOOK_SECONDS:g} s, so not all that can be wrong with "
                f"{stage.benchmark} was looked for. Each run looks before its first step."
            )

    def _check_sides(
        self, field: str, run: RunSpec, manifest: Manifest, annotated: "_Annotated", report: Report
    ) -> None:
        """Faces to train a head on, and faces to test it on: those held out."""
        held_out = run.evaluation.held_out
        if held_out >= len(manifest):
            return  # told already
        tested = self._once(
            ("held out", manifest.digest, held_out, annotated.sha256),
            lambda: set(manifest.split(held_out=held_out, subset_size=1, subset_seed=0).held_out.keys()).intersection(
                annotated.keys
            ),
            lambda error: report(f"{field}.uri", run.data.uri, str(error)),
        )
        if not 0 < len(tested) < len(annotated.keys):
            report(
                f"{field}.uri", f"{len(annotated.keys)} annotated images, of which {len(tested)} are held out",
                "landmarks of held-out images, which are the test split, and of others",
            )  # fmt: skip

    def _once(self, key: tuple[object, ...], read: Callable[[], Answer], fail: Callable[[Exception], object]) -> Any:
        if key not in self._seen:
            try:
                self._seen[key] = read()
            except (DataError, UnknownWeights, StorageError, ValueError, OSError) as error:
                self._seen[key] = error
        answer = self._seen[key]
        if isinstance(answer, Exception):
            fail(answer)
            return None
        return answer


_Reader = Callable[[bytes], Mapping[str, object]]
"""The content of a file of annotations -> what is known of each image. Raises DataError."""


@dataclass(frozen=True)
class _Annotated:
    """What a submission needs of a file of annotations."""

    keys: tuple[str, ...]
    """Images that can be used."""
    sha256: str

    @classmethod
    def of(cls, text: bytes, read: "_Reader") -> "_Annotated":
        """Raises DataError where `read` does."""
        return cls(tuple(read(text)), hashlib.sha256(text).hexdigest())


def _landmarked(text: bytes) -> Mapping[str, object]:
    return read_landmarks(text).points


def _check_cells(run: RunSpec, placement: Placement, report: Report) -> None:
    cells, nodes, processes = run.batch.num_cells, placement.max_nodes, placement.processes_per_node
    if 0 < cells < nodes * processes:
        report(
            "placement.max_nodes",
            f"{nodes} nodes x {processes} processes = {nodes * processes} workers",
            f"at most {cells} workers, the cells of a step (global_batch / slice)",
        )


def _check_subset(run: RunSpec, manifest: Manifest, report: Report) -> int:
    """Images the run trains on; 0 when there are not enough."""
    total, held_out = len(manifest), run.evaluation.held_out
    largest = total - held_out
    if largest < 1:
        report("evaluation.held_out", str(held_out), f"2 to {total - 1} of the {total} images")
        return 0
    size = run.data.subset_size or largest
    if size > largest:
        report("data.subset_size", str(size), f"1 to {largest} ({total} images less {held_out} held out)")
        return 0
    return size


def _absolute(address: str) -> bool:
    # A relative path means one folder to who wrote it and another to the service and to every node.
    return address.startswith("s3://") or Path(address).is_absolute()


def _note(found: list[tuple[str, Problem]], arm: str, field: str, asked: str, possible: str) -> None:
    found.append((arm, Problem(field=field, asked=asked, possible=possible)))
