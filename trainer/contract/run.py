"""What a run is: everything that decides its numbers, and how often it saves. Pydantic only; no torch, files or clock.

Where a run goes and on how many processes belongs to `Placement` (experiment.py). The digest of a `RunSpec` names the
run, so equal specs are one run (identity.py).
"""

import math
import re
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, ValidationInfo, model_validator

from trainer.contract import identity
from trainer.contract.checks import misfits
from trainer.contract.code import Code
from trainer.contract.frozen import Asked
from trainer.contract.mask import Mask, with_ratios_in_place
from trainer.contract.problems import SpecError
from trainer.contract.shorthand import shorthand
from trainer.contract.stage import Alignment, Parsing, Stage

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


# What Pillow decodes at most, half a gigabyte of colours.
MAX_PIXELS = 178_956_970


class Data(Asked):
    """The images to train on."""

    uri: str = ""
    """Address of the images: a local path or s3://bucket/prefix."""
    format: Literal["folder", "lmdb", "shards"] = "folder"
    """What is at that address: a folder of images, an LMDB in the published layout, or a folder of tar shards."""
    keys: str | None = None
    """LMDB only: a text file with one image key per line. Default: every key of the database."""
    suffix: str | None = Field(None, min_length=1)
    """Shards only: which file of a webdataset sample is the image, such as `jpg`, or `face.png` of `000.face.png`. `*`:
    every picture is an image of its own. Default: samples have one picture each, and more are refused."""
    index: str | None = None
    """Index that `mcf data index` wrote: a path or s3:// address. Default: the data is listed (docs/data.md)."""
    subset_size: int | None = Field(None, ge=1)
    """Images to train on. Default: all that are not held out. Subsets of one `subset_seed` are nested."""
    subset_seed: Annotated[int, Field(ge=0)] | Literal["run"] = 0
    """Which images a subset takes. A number: the same for every seed. `run`: the run's own seed, so that every seed
    draws images of its own."""
    fit: Literal["crop", "squash"] = "crop"
    """How an image becomes square. `crop`: resize the short side, cut out the centre. `squash`: resize both sides."""
    decoder: Literal["cpu", "nvjpeg"] = "cpu"
    """What decodes the JPEGs to train on. `nvjpeg`: the GPU, for where a GPU has few cores. Its pixels are not quite
    those of `cpu`, so such a run is another run; and it needs an NVIDIA GPU (docs/data.md)."""
    flip: bool = True
    """Mirror each image with probability 0.5."""
    max_undecodable: float = Field(0.001, ge=0, le=1)
    """Share of the subset that may be undecodable. The next image of the subset replaces an undecodable one."""
    max_pixels: int = Field(MAX_PIXELS, ge=1, le=MAX_PIXELS)
    """Most pixels of an image, and of its resized copy before the centre is cut out: 1 x 65000 becomes 224 x 14560000.
    An image with more counts as undecodable. An image of as many takes 0.5 GB of memory."""
    sha256: str | None = Field(None, pattern="^[0-9a-f]{64}$")
    """Digest of the keys and contents of all images. Filled in on submission; if you give it, it is checked."""


class EncoderSpec(Asked):
    """A plain ViT: pre-norm blocks, MLP ratio 4, one cls token (paper: ViT-B/16)."""

    width: int = Field(ge=8, multiple_of=4)
    """Size of a token."""
    depth: int = Field(ge=1)
    """Number of blocks."""
    heads: int = Field(ge=1)
    """Attention heads per block."""
    patch: int = Field(ge=1)
    """Side of a patch in pixels."""


class DecoderSpec(Asked):
    """The trained half (M0) of the decoder. The frozen half (M1) is the teacher."""

    width: int = Field(ge=8, multiple_of=4)
    """Size of a token."""
    depth: int = Field(ge=0)
    """Number of blocks."""
    heads: int = Field(16, ge=1)
    """Attention heads per block."""


# An exported encoder as an architecture: vit-768x12x12-p16.
EXPORTED_ARCH = r"vit-(?P<width>\d+)x(?P<depth>\d+)x(?P<heads>\d+)-p(?P<patch>\d+)"


class Initial(Asked):
    """The weights before the first step."""

    source: str = "none"
    """Weights to start from, by path or s3:// address: a released MCF checkpoint, the `state.pt` or exported encoder of
    an earlier run, or a ViT with timm's names. Or an encoder by name: `models:/NAME@ALIAS` (MLflow) or `run:ID`.
    `none` draws all weights from the seed (published)."""
    sha256: str | None = Field(None, pattern="^[0-9a-f]{64}$")
    """Digest of the file. Filled in on submission; if you give it, it is checked."""
    parts: Literal["all", "encoder"] = "all"
    """What is taken from the file. `all`: everything that is trained, and the target. `encoder`: the online encoder
    only; the rest is drawn from the seed, and the target starts as a copy."""

    @property
    def is_file(self) -> bool:
        return self.source != "none"


class TeacherSpec(Asked):
    """The frozen half (M1) of the decoder. The loss compares its features of the prediction with those of the image."""

    source: str = ""
    """Weights: a path, `s3://...`, `mlflow:models:/NAME/VERSION` (or `/@ALIAS`), `mlflow:runs:/ID/PATH`, or `run:ID`
    (the encoder of an earlier run). `random` is a control: the same network, untrained. `none` predicts the hidden
    pixels instead, as MAE does."""
    sha256: str | None = Field(None, pattern="^[0-9a-f]{64}$")
    """Digest of the weights file. Filled in on submission; if you give it, it is checked."""
    arch: str = "mocov3-vit-b16"
    """The teacher's architecture: the name of a timm ViT, `mocov3-vit-b16`, `face-api` (a small convolutional face
    network), `as-encoder` (same as the run's encoder), `vit-WIDTHxDEPTHxHEADS-pPATCH`, or `code`. The encoder of an
    earlier run brings its own."""
    code: Annotated[Code | None, shorthand(field="uri")] = None
    """Of `arch: code`: a Python file whose `teacher()` makes the network."""
    loss: Annotated[Code | None, shorthand(field="uri")] = None
    """A Python file whose `feature_loss(predicted, wanted)` compares the features of one tap. Default: the published
    comparison."""
    taps: tuple[int, ...] = (2, 5, 8, 11)
    """The blocks whose outputs are compared, counted from 0."""
    tokens: Literal["all", "patches"] = "all"
    """The tokens that are compared: `all`, with cls and registers (published), or `patches` only."""
    input_size: int | None = Field(None, ge=1)
    """Side of the teacher's input in pixels. Default: the run's input size, or that of an earlier run's encoder."""
    resize: Literal["nearest", "bilinear"] = "nearest"
    """How images are resized to `input_size` (published: nearest). If the teacher sees fewer pixels than the run, use
    `bilinear`, which is then antialiased: `nearest` picks one pixel of several, and the others get no gradient."""
    mean: tuple[float, float, float] = IMAGENET_MEAN
    """Mean of the input that the teacher was trained with. An earlier run's encoder and `face-api` bring their own."""
    std: tuple[Annotated[float, Field(gt=0)], Annotated[float, Field(gt=0)], Annotated[float, Field(gt=0)]] = (
        IMAGENET_STD
    )
    """Standard deviation of that input."""
    normalise: Literal["tokens", "channels"] = "tokens"
    """The axis along which features are scaled to length 1 before they are compared (published: tokens)."""
    visible: Literal["predicted", "image"] = "predicted"
    """What the teacher sees at the visible patches: the prediction (`predicted`, published), or the `image` itself, so
    that only hidden patches train the decoder."""
    weight: float = Field(1000.0, ge=0)
    """Weight of the perceptual loss (published: 1000). With 0 it is logged and trains nothing."""
    seed: int = Field(0, ge=0)
    """Seed of a `random` teacher, which is therefore the same network for every seed of the run."""

    @property
    def is_file(self) -> bool:
        return self.source not in ("", "none", "random")

    @property
    def is_name(self) -> bool:
        """Whether the source is a name to look up (trainer.weights.sources); it may bring its own architecture."""
        return self.source.startswith(("run:", "mlflow:"))

    def num_blocks(self, encoder: EncoderSpec) -> int | None:
        """Blocks there are to tap; None where only timm knows."""
        if match := re.fullmatch(EXPORTED_ARCH, self.arch):
            return int(match["depth"])
        return {"mocov3-vit-b16": 12, "face-api": 4, "as-encoder": encoder.depth}.get(self.arch)


class Pixels(Asked):
    """The pixel loss: mean squared error of the predicted patches, as in MAE. The published method has none."""

    weight: float | None = Field(None, ge=0)
    """Weight of the pixel loss. Default: 1 without a teacher, 0 with one. A number beside a teacher trains on both."""
    normalise: Literal["image", "patch"] = "image"
    """How target pixels are scaled. `image`: by ImageNet's mean and deviation. `patch`: each patch by its own (MAE's
    --norm_pix_loss); the prediction is then not an image, so pictures and PSNR restore the true patch's statistics."""
    patches: Literal["hidden", "all"] = "hidden"
    """The patches whose error counts (MAE: hidden)."""


class Batch(Asked):
    """The grid of one optimizer step (docs/method.md). It depends on the spec only, never on the number of GPUs."""

    slice: int = Field(64, ge=2)
    """Images per forward and backward pass, and per BatchNorm statistic."""
    contrastive_group: int = Field(512, ge=2)
    """Images that are each other's negatives."""
    global_batch: int = Field(4096, ge=2)
    """Images per optimizer step."""

    @property
    def slices_per_group(self) -> int:
        return self.contrastive_group // self.slice

    @property
    def num_groups(self) -> int:
        return self.global_batch // self.contrastive_group

    @property
    def num_cells(self) -> int:
        return self.global_batch // self.slice


class Contrastive(Asked):
    """Contrastive learning between two random masks of an image."""

    weight: float = Field(1.0, ge=0)
    """Weight of the contrastive loss; 0 removes the branch."""
    temperature: float = Field(0.2, gt=0)
    """Temperature of the InfoNCE loss."""
    hidden: int = Field(4096, ge=1)
    """Width of projector and predictor."""
    dim: int = Field(256, ge=1)
    """Length of queries and keys."""
    target_mask_ratio: float | None = None
    """Share of patches hidden from the target, which makes the keys. Default: mask_ratio (published). 0: none."""
    target_mask: Annotated[Mask | None, shorthand(field="kind")] = None
    """Which patches are hidden from the target: the fields of `mask`. Default: as from the encoder (published), by a
    draw of its own."""


class Ema(Asked):
    """The target's moving average: target <- m * target + (1 - m) * online."""

    momentum: float = Field(0.99, ge=0, le=1)
    """m in the first step (published: 0.99 throughout)."""
    ramp: Literal["constant", "cosine"] = "constant"
    """`cosine` raises m to 1 over the run. The released code defines this and never calls it."""
    per: Literal["group", "step"] = "group"
    """How often the target moves (published: once per contrastive group)."""


class Optimizer(Asked):
    """AdamW with lr = base_lr * global_batch / 256. Biases and tensors with one axis have no weight decay."""

    base_lr: float = Field(1.5e-4, gt=0)
    """Learning rate for a global batch of 256 images."""
    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = (0.9, 0.95)
    eps: float = Field(1e-8, gt=0)
    weight_decay: float = Field(0.05, ge=0)
    clip_norm: float | None = Field(None, gt=0)
    """Largest L2 norm of the whole gradient; a larger one is scaled down. Default: never (published)."""


class Schedule(Asked):
    """Linear warm-up, then half a cosine down to min_lr, per step."""

    unit: Literal["epochs", "steps"] = "epochs"
    """What `length` and `warmup` count."""
    length: float = Field(16, gt=0)
    """Length of training."""
    warmup: float = Field(1, ge=0)
    """Length of the warm-up, which is part of `length`."""
    min_lr: float = Field(0.0, ge=0)
    """Learning rate at the end."""


class Cadence(Asked):
    """How often a run saves and logs, in steps."""

    checkpoint_steps: int = Field(500, ge=1)
    """Steps between two checkpoints."""
    keep_checkpoints: int = Field(3, ge=1)
    """How many of the newest checkpoints are kept."""
    log_steps: int = Field(10, ge=1)
    """Steps between two points of a loss curve."""
    picture_steps: int = Field(500, ge=1)
    """Steps between two pictures of reconstructions."""


class Every(Asked):
    """How often a run is measured while it trains. Decides nothing that it trains or is measured to be at the end."""

    steps: int | None = Field(None, ge=1)
    """Optimizer steps between two readings; `every: 500` for short."""
    images: int | None = Field(None, ge=1)
    """Images seen between two readings, instead of steps."""
    share: float = Field(0.03, gt=0, le=1)
    """Most of the run's time that readings may take. If they would take more, only every second, fourth, ... of them is
    made, and the run says so."""
    stalled_after: float = Field(0.5, gt=0, le=1)
    """From this share of the schedule on, a run that is no better than before its first step is said to be stalled."""

    @model_validator(mode="after")
    def _one_of_the_two(self) -> Self:
        if (self.steps is None) == (self.images is None):
            asked = "neither" if self.steps is None else "both"
            raise ValueError(f"steps or images, one of the two ({asked} given), such as 500 or {{images: 1000000}}")
        return self

    def in_steps(self, global_batch: int) -> int:
        """Optimizer steps between two readings."""
        return self.steps or max(1, math.ceil((self.images or 0) / global_batch))


def _steps(value: Any) -> Any:
    """Lets a number stand for so many steps."""
    if type(value) is int:
        return {"steps": value}
    if value is None or isinstance(value, Mapping | Every):
        return value
    raise ValueError("a number of steps, such as 500, or {images: 1000000}")


class Evaluation(Asked):
    """What is measured at the end of a run, and while it trains. All arms share the held-out images and the folds."""

    held_out: int = Field(1000, ge=2)
    """Number of images that are never trained on; the sanity metrics (reconstruction PSNR, view retrieval) use them."""
    mask_ratio: float = 0.75
    """Share of patches hidden in the sanity metrics, whatever ratio the arm trains with."""
    images: str | None = None
    """Folder of images for the probe. Default: the training data."""
    landmarks: str | None = None
    """Makes the probe a ridge regression of landmarks (NME in %): a JSON file {image key: {"points68": [[x, y], ...],
    "landmarks_ok": bool}}."""
    labels: str | None = None
    """Makes the probe a linear classifier (accuracy in %): a CSV file with the columns file,label."""
    folds: int = Field(5, ge=2)
    """Folds of the probe's cross-validation."""
    sha256: str | None = Field(None, pattern="^[0-9a-f]{64}$")
    """Digest of the probe's images and annotations. Filled in on submission; if you give it, it is checked."""
    every: Annotated[Every | None, BeforeValidator(_steps)] = None
    """Measures probe and sanity metrics while the run trains, too (docs/comparison.md). Default: at the end only."""
    alignment: Alignment | None = None
    """Face alignment on a benchmark, as a stage after the last step. Default: no such stage."""
    parsing: Parsing | None = None
    """Face parsing on a benchmark, as a stage after the last step. Default: no such stage."""
    rank_by: str | None = None
    """The metric that ranks arms, such as `sanity/retrieval_top1` or `alignment/nme_diag`; the same in every arm.
    Default: the probe, else the first stage. It is in no digest: another one trains and measures nothing again."""

    @property
    def stages(self) -> dict[str, Stage]:
        """The stages that are asked for, by name, in the order they run in."""
        asked = {"alignment": self.alignment, "parsing": self.parsing}
        return {name: stage for name, stage in asked.items() if stage}


ENCODERS = {
    "vit-tiny8": {"width": 96, "depth": 4, "heads": 3, "patch": 8},
    "vit-s16": {"width": 384, "depth": 12, "heads": 6, "patch": 16},
    "vit-b16": {"width": 768, "depth": 12, "heads": 12, "patch": 16},
    "vit-l16": {"width": 1024, "depth": 24, "heads": 16, "patch": 16},
    "vit-h14": {"width": 1280, "depth": 32, "heads": 16, "patch": 14},
}


class RunSpec(Asked):
    """Everything that decides a run's numbers. The defaults are the published recipe."""

    data: Data = Data()
    input_size: int = Field(224, ge=1)
    """Side of the square input in pixels."""
    mask_ratio: float = 0.75
    """Share of patches hidden from the encoder. It sees floor(L * (1 - ratio)) of the L patches."""
    mask: Annotated[Mask, shorthand(field="kind")] = Mask()
    encoder: Annotated[EncoderSpec, shorthand(names=ENCODERS)] = EncoderSpec(**ENCODERS["vit-b16"])
    decoder: Annotated[
        DecoderSpec, shorthand(pattern=r"(?P<width>\d+)x(?P<depth>\d+)(x(?P<heads>\d+))?", example="512x8, 256x2x16")
    ] = DecoderSpec(width=512, depth=8)
    teacher: Annotated[TeacherSpec, shorthand(field="source")] = TeacherSpec()
    pixels: Pixels = Pixels()
    initial: Initial = Initial()
    batch: Batch = Batch()
    contrastive: Contrastive = Contrastive()
    ema: Ema = Ema()
    optimizer: Optimizer = Optimizer()
    schedule: Schedule = Schedule()
    precision: Literal["bf16", "float32", "float64"] = "bf16"
    """`bf16` is autocast on a GPU. On a CPU such a run computes in float32 and logs a warning."""
    seed: int = Field(0, ge=0)
    """Seed of the initial weights, the data order, flips and masks."""
    cadence: Cadence = Cadence()
    evaluation: Evaluation = Evaluation()

    @property
    def subset_seed(self) -> int:
        """The number that decides which images a subset takes."""
        asked = self.data.subset_seed
        return self.seed if asked == "run" else asked

    @property
    def num_patches(self) -> int:
        """L: patches of one image."""
        return (self.input_size // self.encoder.patch) ** 2

    def visible_patches(self, ratio: float | None = None) -> int:
        """Patches kept at a mask ratio, with the published floating-point floor."""
        return int(self.num_patches * (1 - (self.mask_ratio if ratio is None else ratio)))

    @property
    def target_mask(self) -> Mask:
        """What hides patches from the target."""
        return self.contrastive.target_mask or self.mask

    @property
    def learning_rate(self) -> float:
        return self.optimizer.base_lr * self.batch.global_batch / 256

    @property
    def loss_weights(self) -> dict[str, float]:
        """The losses the run computes, by name, and what each counts in the total."""
        taught, weights = self.teacher.source != "none", {}
        if taught:
            weights["perceptual"] = self.teacher.weight
        # Without a teacher it is computed whatever it weighs: it is then all there is to say of the decoder.
        if self.pixels.weight or not taught:
            weights["pixel"] = 1.0 if self.pixels.weight is None else self.pixels.weight
        if self.contrastive.weight:
            weights["contrastive"] = self.contrastive.weight
        return weights

    def total_steps(self, num_images: int) -> int:
        """Optimizer steps of the run; a partial global batch at an epoch's end is carried into the next epoch."""
        if self.schedule.unit == "steps":
            return math.ceil(self.schedule.length)
        return max(1, int(self.schedule.length * num_images // self.batch.global_batch))

    @property
    def digest(self) -> str:
        """What makes a run this run: its pretraining, and what is measured of it."""
        return identity.run(self)

    @property
    def pretraining(self) -> str:
        """Digest of what decides the weights, and of nothing else."""
        return identity.pretraining(self)

    @property
    def measurements(self) -> dict[str, str]:
        """Digest of each measurement that is asked for, by name."""
        return identity.measurements(self)

    def is_read_as(self, other: "RunSpec") -> bool:
        """Whether probe and sanity metrics of the one are those of the other: of equal weights, measured alike."""
        mine, theirs = self.measurements, other.measurements
        return all(mine.get(name) == theirs.get(name) for name in ("sanity", "probe"))

    @model_validator(mode="before")
    @classmethod
    def _ratios_are_kept_in_one_place(cls, asked: Any) -> Any:
        return with_ratios_in_place(asked)

    @model_validator(mode="after")
    def _parts_fit_together(self, info: ValidationInfo) -> Self:
        # Checks that want every problem at once pass a list to collect them; everybody else gets the exception.
        found = list(misfits(self))
        if isinstance(info.context, dict) and "problems" in info.context:
            info.context["problems"].extend(found)
        elif found:
            raise SpecError(found)
        return self


def asked_subset_seed(specs: Iterable[Mapping[str, Any]]) -> int | Literal["run"]:
    """What an arm asks of `data.subset_seed`, by the specs of its runs.

    One does not tell: an equal run of another experiment is shared, and may say 3 where this arm says `run`.
    """
    runs = {spec["seed"]: spec["data"].get("subset_seed", 0) for spec in specs}
    asked: int | Literal["run"] = next(iter(runs.values()))
    if len(runs) < 2:
        return asked
    own = all(number in ("run", seed) for seed, number in runs.items())
    return "run" if own else next(number for number in runs.values() if number != "run")
