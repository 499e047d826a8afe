"""Where weights are: names become files that every worker can read. No torch, and no MLflow.

    UnknownWeights    there are no such weights, or they cannot be this teacher; says what is possible
    NoWeights         there is a file, and it holds something else

`run:ID` and an MLflow artifact that points to a run's export become the address of the exported file, with the
architecture, input size and statistics from its config.json. Any other MLflow artifact stays a name, of one file.
"""

import hashlib
import json
import tempfile
from pathlib import Path
from typing import Any, Protocol

from trainer.contract import IMAGENET_MEAN, IMAGENET_STD, TeacherSpec
from trainer.contract.records import CONFIG, POINTER, WEIGHTS
from trainer.store.objects import ObjectMissing, open_store, split_uri
from trainer.weights.kinds import why_no_weights

RUN, MLFLOW = "run:", "mlflow:"
IN_MLFLOW = ("models:/", "runs:/")


class UnknownWeights(Exception):
    """There are no such weights, or they cannot be this teacher."""

    def __init__(self, asked: str, possible: str, field: str = "source") -> None:
        super().__init__(f"{asked}; possible: {possible}")
        self.asked, self.possible, self.field = asked, possible, field


class NoWeights(ValueError):
    """There is a file, and it holds something else."""


class Library(Protocol):
    """What knows the names. Every method raises UnknownWeights, and StorageError where nobody answers."""

    def export_of(self, run: str) -> str:
        """Address of the export folder of a run that has succeeded, by its id or the beginning of it."""

    def find(self, name: str) -> str:
        """The one file behind an MLflow name, aliases turned into versions: `models:/NAME/3/model.safetensors`."""

    def fetch(self, name: str, folder: Path) -> Path:
        """Download what `find` has found."""


class FilesOnly:
    """A library that knows no names."""

    def export_of(self, run: str) -> str:
        raise UnknownWeights(
            f"{RUN}{run}, a name that the service looks up",
            "a submission to the service that has the run, or the address of its export/model.safetensors",
        )

    def find(self, name: str) -> str:
        raise UnknownWeights(f"{MLFLOW}{name}, without an MLflow server", "a weights file by its path or s3:// address")

    def fetch(self, name: str, folder: Path) -> Path:
        raise UnknownWeights(f"{MLFLOW}{name}, without an MLflow server", "a weights file by its path or s3:// address")


FILES_ONLY = FilesOnly()


def settled(teacher: TeacherSpec, library: Library) -> TeacherSpec:
    """The teacher with its source a file that every worker can read. Raises UnknownWeights, StorageError."""
    if teacher.source.startswith(RUN):
        return _exported(teacher, library.export_of(teacher.source.removeprefix(RUN)))
    if not teacher.source.startswith(MLFLOW):
        return teacher
    name = library.find(teacher.source.removeprefix(MLFLOW))
    if name.rpartition("/")[2] != POINTER:
        return teacher.model_copy(update={"source": MLFLOW + name})
    pointer = _pointer(name, library)
    given = teacher.model_copy(update={"sha256": teacher.sha256 or pointer["sha256"]})
    return _exported(given, pointer["uri"])


def weights_file(source: str, library: Library) -> str:
    """A file that every worker can read: a path or address as it is, or what a name means today; of a run, its encoder.

    Also `models:/...` and `runs:/...` as MLflow says it. Raises UnknownWeights, StorageError.
    """
    if source.startswith(RUN):
        return f"{library.export_of(source.removeprefix(RUN))}/{WEIGHTS}"
    if not source.startswith((MLFLOW, *IN_MLFLOW)):
        return source
    name = library.find(source.removeprefix(MLFLOW))
    if name.rpartition("/")[2] != POINTER:
        return MLFLOW + name
    return f"{_pointer(name, library)['uri'].rstrip('/')}/{WEIGHTS}"


def _pointer(name: str, library: Library) -> dict[str, Any]:
    """What an MLflow artifact says of the export it points to: trainer/weights/export.py writes it."""
    with tempfile.TemporaryDirectory(prefix="mcf-pointer-") as scratch:
        pointer: dict[str, Any] = json.loads(library.fetch(name, Path(scratch)).read_bytes())
        return pointer


def local_copy(source: str, folder: Path, library: Library) -> Path:
    """The file on this machine: itself where it is, else fetched into `folder`.

    Raises ObjectMissing, UnknownWeights; StorageError where nobody answers.
    """
    if source.startswith(MLFLOW):
        return library.fetch(source.removeprefix(MLFLOW), folder)
    parent, name = split_uri(source)
    if source.startswith("s3://"):
        open_store(parent).get_file(name, folder / name)
        return folder / name
    if not Path(source).is_file():
        raise ObjectMissing(f"{source} does not exist")
    return Path(source)


def digest_of(source: str, library: Library) -> str:
    """sha256 of a file of weights. Raises as local_copy; NoWeights where it is another file, or was cut short."""
    with tempfile.TemporaryDirectory(prefix="mcf-teacher-") as scratch:
        path = local_copy(source, Path(scratch), library)
        if why := why_no_weights(path):
            raise NoWeights(f"{source} holds no weights: {why}")
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()


def _exported(teacher: TeacherSpec, folder: str) -> TeacherSpec:
    """The teacher as an encoder of ours in an export folder: trainer/weights/export.py writes what is read here."""
    try:
        config = json.loads(open_store(folder).get(CONFIG))
        sizes, statistics = config["model_args"], config["pretrained_cfg"]
        theirs: dict[str, Any] = {
            "input_size": sizes["img_size"], "mean": tuple(statistics["mean"]), "std": tuple(statistics["std"])
        }  # fmt: skip
        arch = f"vit-{sizes['embed_dim']}x{sizes['depth']}x{sizes['num_heads']}-p{sizes['patch_size']}"
    except (ObjectMissing, KeyError, TypeError, ValueError) as error:
        raise UnknownWeights(
            f"{teacher.source}, whose export at {folder} cannot be read ({error})", "the export of a run that succeeded"
        ) from error
    # Its own view of the input, unless the spec insists on another: then somebody is mistaken.
    for field, unsaid in ("input_size", None), ("mean", IMAGENET_MEAN), ("std", IMAGENET_STD):
        asked = getattr(teacher, field)
        if asked not in (unsaid, theirs[field]):
            raise UnknownWeights(str(asked), f"{theirs[field]}, which {teacher.source} was trained with", field)
    if teacher.taps[-1] >= sizes["depth"]:
        raise UnknownWeights(str(list(teacher.taps)), f"blocks 0 to {sizes['depth'] - 1} of {teacher.source}", "taps")
    return teacher.model_copy(update={"source": f"{folder.rstrip('/')}/{WEIGHTS}", "arch": arch, **theirs})
