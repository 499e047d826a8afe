"""What a run asks of its stages of evaluation: the fields of `evaluation.alignment` and `.parsing`. Pydantic only."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Literal

from pydantic import Field

from trainer.contract.frozen import Asked
from trainer.contract.recipe import Recipe, Selection

FACES68 = "faces68"
NUM_LEVELS = 4
"""Of the pyramid: it is fed with the outputs of so many blocks."""
# Blocks whose outputs are read, by depth: ViT-B, L and H.
PUBLISHED_TAPS: Mapping[int, tuple[int, ...]] = {12: (3, 5, 7, 11), 24: (7, 11, 15, 23), 32: (8, 14, 20, 31)}


class Stage(Asked):
    """A head on the trained encoder, fitted to a benchmark (docs/evaluation.md). The default `null` takes the value
    published for the benchmark."""

    benchmark: str
    """Name of the benchmark."""
    uri: str
    """Folder of the benchmark, a path or s3://bucket/prefix. For `faces68`: the landmark file."""
    frozen: bool = False
    """Train only the pyramid and the head; the encoder stays as it was pretrained."""
    epochs: int | None = Field(None, ge=1)
    """Passes over the training faces."""
    batch: int | None = Field(None, ge=2)
    """Faces per optimizer step."""
    slice: int | None = Field(None, ge=2)
    """Faces per forward and backward pass, and per BatchNorm statistic. Default: the whole batch, as published."""
    encoder_lr: float | None = Field(None, gt=0)
    """Learning rate of the encoder."""
    pyramid_lr: float | None = Field(None, gt=0)
    """Learning rate of the pyramid."""
    head_lr: float | None = Field(None, gt=0)
    """Learning rate of the head."""
    decay_epoch: int | None = Field(None, ge=0)
    """The first epoch, counted from 0, that uses a tenth of the learning rates."""
    average_decay: float | None = Field(None, ge=0, lt=1)
    """Decay of the moving average of the weights. The average is what is measured."""
    fraction: float = Field(1.0, gt=0, le=1)
    """Share of the training faces that is used, repeated to the length of a full epoch (few-shot)."""
    selection: Selection = Selection.LAST
    """Which epoch's numbers count. `best_on_test` flatters, and is named wherever its numbers are shown."""
    validation_share: float = Field(0.1, gt=0, lt=1)
    """Share of the training images set aside for validation, if the selection needs it and the benchmark has none."""
    input_size: int = Field(448, ge=1)
    """Side of the encoder's square input in pixels. Position codes are resized to it."""
    crop_size: int = Field(512, ge=1)
    """Side of the crop in pixels. The input is a resized copy of the crop."""
    channels: int = Field(768, ge=1)
    """Width of the head."""
    sha256: str | None = Field(None, pattern="^[0-9a-f]{64}$")
    """Digest of the names and sizes of the benchmark's files; for `faces68`, of contents. Filled in on submission; if
    you give it, it is checked."""

    def recipe(self, published: Recipe, seed: int) -> Recipe:
        """The benchmark's recipe with what is asked otherwise, and the run's seed."""
        asked = {name: value for name, value in self if name in Recipe.model_fields and value is not None}
        asked = {"slice": self.batch or published.batch, **asked, "seed": seed}
        return Recipe.model_validate({**published.model_dump(), **asked})


class Alignment(Stage):
    """Landmarks of the face in a box."""

    benchmark: Literal["aflw19", "300w", "wflw", "faces68"]
    """`aflw19`, `300w`, `wflw`, or `faces68`. The last one is no published benchmark: it takes the images of the run's
    data that a landmark file names, and those held out are its test split."""


class Parsing(Stage):
    """Classes of an image's pixels."""

    benchmark: Literal["lapa", "celebamask-hq"]
    """`lapa` or `celebamask-hq`."""


def misfits(stage: Stage, patch: int, depth: int) -> Iterator[tuple[str, str, str]]:
    """What does not fit together, as (field, asked, possible); patch and depth: the encoder's."""
    batch = stage.batch or Recipe().batch
    if stage.slice and batch % stage.slice:
        yield "slice", str(stage.slice), f"a divisor of batch = {batch}"
    if stage.input_size % patch:
        multiple = max(1, round(stage.input_size / patch)) * patch
        yield "input_size", str(stage.input_size), f"a multiple of encoder.patch = {patch}, such as {multiple}"
    try:
        taps(depth)
    except ValueError as error:
        yield "benchmark", str(error), "an encoder of 4 blocks, or of 6 or more"


def taps(depth: int) -> Sequence[int]:
    """Blocks that are read, counted from 0: published ones, else after 1/3, 1/2, 2/3 and all of the depth.

    Raises ValueError for an encoder of too few blocks.
    """
    found = PUBLISHED_TAPS.get(depth) or tuple(round(depth * share) - 1 for share in (1 / 3, 1 / 2, 2 / 3, 1))
    if len(set(found)) < NUM_LEVELS or found[0] < 0:
        raise ValueError(f"an encoder of {depth} blocks cannot feed a pyramid of {NUM_LEVELS} levels")
    return found
