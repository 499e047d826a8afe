"""Every variant of the method is a field: sizes are the published ones, and no field is without effect."""

from collections.abc import Iterator, Mapping
from typing import Any

import pytest
import torch
from pydantic import BaseModel, ValidationError
from torch import Tensor

from trainer import teachers
from trainer.contract import RunSpec
from trainer.contract.presets import PRESETS
from trainer.data.batches import Slice
from trainer.elastic.distributed import World, joined_world
from trainer.loop import Parts, fit
from trainer.method import mcf, optim
from trainer.method.grid import step_plan, teams
from trainer.method.mcf import Mcf, Target
from trainer.tracking.report import Silent

# Parameters of timm's models of these names without a head, patches, and values of one predicted patch.
ENCODERS = {
    "vit-s16": (21_665_664, 196, 768), "vit-b16": (85_798_656, 196, 768), "vit-l16": (303_301_632, 196, 768),
    "vit-h14": (630_764_800, 256, 588),
}  # fmt: skip
DECODERS = ["512x8", "512x4", "512x2", "512x1", "256x2"]


@pytest.mark.parametrize("decoder", [None, *DECODERS])
@pytest.mark.parametrize("preset", ENCODERS)
def test_encoders_and_decoders_have_the_published_sizes(preset: str, decoder: str | None) -> None:
    shape = {"decoder": decoder} if decoder else {}
    run = RunSpec.model_validate({**PRESETS[preset], "data": {"uri": "/d"}, "teacher": "none", **shape})
    with torch.device("meta"):
        model = Mcf(run)
        noise = torch.rand(2, run.num_patches)
        token = model.encoder(torch.zeros(2, 3, 224, 224), noise, run.visible_patches())
        patch = model.decoder(token, noise)
    size, patches, values = ENCODERS[preset]
    assert num_values(model.encoder) == size
    assert token.shape == (2, 1 + patches // 4, run.encoder.width)
    assert patch.shape == (2, patches, values)

    width, depth = map(int, (decoder or ("256x2" if preset == "vit-s16" else "512x8")).split("x"))
    block = 12 * width**2 + 13 * width
    outside = (run.encoder.width + 1) * width + width + (1 + patches) * width + 2 * width + (width + 1) * values
    assert num_values(model.decoder) == depth * block + outside
    assert run.decoder.heads == 16


def num_values(module: torch.nn.Module) -> int:
    return sum(weight.numel() for weight in module.parameters())


# ---------------------------------------------------------------- every field, in a run of the real loop

SMALL: dict[str, Any] = {
    "data": {"uri": "/d"}, "input_size": 32, "encoder": {"width": 24, "depth": 2, "heads": 2, "patch": 8},
    "decoder": {"width": 16, "depth": 1, "heads": 2}, "contrastive": {"hidden": 20, "dim": 12},
    "teacher": {"source": "random", "arch": "as-encoder", "taps": [0, 1]},
    "batch": {"slice": 4, "contrastive_group": 8, "global_batch": 16}, "ema": {"momentum": 0.9},
    "optimizer": {"base_lr": 0.05}, "schedule": {"unit": "steps", "length": 3, "warmup": 0}, "precision": "float64",
}  # fmt: skip
P, C, ALL = {"perceptual"}, {"contrastive"}, {"perceptual", "contrastive"}
SEEN_SMALLER, PIXELS, MAE = {"teacher.input_size": 16}, {"pixels.weight": 1.0}, {"teacher.source": "none"}
# Field, its other value, what it needs beside it, and which of the first step's losses it changes. Those that change
# none of them say how the step is taken, and show in the weights.
FIELDS: list[tuple[str, Any, dict[str, Any], set[str]]] = [
    ("input_size", 48, {}, ALL),
    ("mask_ratio", 0.5, {}, ALL),
    ("seed", 1, {}, ALL),
    ("encoder.width", 32, {}, ALL),
    ("encoder.depth", 3, {}, ALL),
    ("encoder.heads", 3, {}, ALL),
    ("encoder.patch", 4, {}, ALL),
    ("decoder.width", 32, {}, P),
    ("decoder.depth", 2, {}, P),
    ("decoder.heads", 4, {}, P),
    ("teacher.taps", [1], {}, P),
    ("teacher.tokens", "patches", {}, P),
    ("teacher.input_size", 16, {}, P),
    ("teacher.resize", "bilinear", SEEN_SMALLER, P),
    ("teacher.mean", [0.5, 0.5, 0.5], {}, P),
    ("teacher.std", [0.5, 0.5, 0.5], {}, P),
    ("teacher.normalise", "channels", {}, P),
    ("teacher.visible", "image", {}, P),
    ("teacher.weight", 10.0, {}, {"total"}),
    ("teacher.seed", 1, {}, P),
    ("pixels.weight", 1.0, {}, {"pixel"}),
    ("pixels.normalise", "patch", MAE, {"pixel"}),
    ("pixels.patches", "all", PIXELS, {"pixel"}),
    ("batch.slice", 2, {}, C),
    ("batch.contrastive_group", 16, {}, C),
    ("batch.global_batch", 32, {}, ALL),
    ("contrastive.weight", 0.5, {}, {"total"}),
    ("contrastive.weight", 0.0, {}, C),
    ("contrastive.temperature", 0.1, {}, C),
    ("contrastive.hidden", 28, {}, C),
    ("contrastive.dim", 16, {}, C),
    ("contrastive.target_mask_ratio", 0.5, {}, C),
    ("contrastive.target_mask_ratio", 0.0, {}, C),
    ("ema.momentum", 0.5, {}, set()),
    ("ema.ramp", "cosine", {}, set()),
    ("ema.per", "step", {}, set()),
    ("optimizer.base_lr", 0.01, {}, set()),
    ("optimizer.betas", [0.5, 0.95], {}, set()),
    ("optimizer.eps", 1e-2, {}, set()),
    ("optimizer.weight_decay", 0.5, {}, set()),
    ("optimizer.clip_norm", 1e-3, {}, set()),
    ("schedule.unit", "epochs", {}, set()),
    ("schedule.length", 4, {}, set()),
    ("schedule.warmup", 2, {}, set()),
    ("schedule.min_lr", 1e-3, {}, set()),
]
# Where the data and the weights come from, what is written down and measured, and in which numbers is computed. Which
# patches are hidden, and what user code does, have tests of their own: the noise of this file's slices is drawn.
ELSEWHERE = {
    "data",
    "initial",
    "cadence",
    "evaluation",
    "precision",
    "teacher.source",
    "teacher.sha256",
    "teacher.arch",
    "mask",
    "contrastive.target_mask",
    "teacher.code",
    "teacher.loss",
}


def named(part: object) -> str:
    """The same in every process, which the order of a set is not."""
    return str(sorted(part) if isinstance(part, set) else part)


@pytest.mark.parametrize(
    ("field", "value", "beside", "changed"),
    FIELDS,
    ids=named,
)
def test_every_field_changes_the_losses_it_names_and_the_result(
    world: World, field: str, value: Any, beside: dict[str, Any], changed: set[str]
) -> None:
    plain, other = train(small(beside), world), train(small({**beside, field: value}), world)
    names = plain.losses | other.losses
    same = {
        name for name in names if plain.losses.get(name, 0.0) == pytest.approx(other.losses.get(name, 0.0), rel=1e-9)
    }
    assert names.keys() - same == (changed | {"total"} if changed else set())
    assert plain.weights.shape != other.weights.shape or not torch.allclose(plain.weights, other.weights, rtol=1e-6)


@pytest.mark.parametrize("ratio", [-0.1, 0.99, 1.0])
def test_a_target_that_would_see_no_patch_is_refused(ratio: float) -> None:
    with pytest.raises(ValidationError, match=r"contrastive\.target_mask_ratio: asked for .* of 16 patches; possible"):
        small({"contrastive.target_mask_ratio": ratio})


def test_the_same_spec_gives_the_same_result_bit_for_bit(world: World) -> None:
    one, again = train(small({}), world), train(small({}), world)
    assert one.losses == again.losses
    assert torch.equal(one.weights, again.weights)


def test_no_field_is_left_out() -> None:
    there = {name for name in leaves(RunSpec) if name not in ELSEWHERE and name.split(".")[0] not in ELSEWHERE}
    assert there == {field for field, *_ in FIELDS}


def leaves(part: type[BaseModel], prefix: str = "") -> Iterator[str]:
    for name, field in part.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from leaves(field.annotation, f"{prefix}{name}.")
        else:
            yield prefix + name


def small(fields: Mapping[str, Any]) -> RunSpec:
    spec = {**SMALL}
    for name, value in fields.items():
        part, _, field = name.partition(".")
        spec[part] = {**spec.get(part, {}), field: value} if field else value
    return RunSpec.model_validate(spec)


class Result(Silent):
    """The first step's losses, and the weights after the second: the first's cannot show what moves the target."""

    def __init__(self, model: Mcf) -> None:
        self.model = model
        self.losses: dict[str, float] = {}
        self.weights = torch.empty(0)

    def step(self, step: int, losses: Mapping[str, float], **more: float) -> None:
        if step == 1:
            self.losses = dict(losses)
        if step == 2:
            self.weights = torch.cat([weight.detach().flatten() for weight in self.model.encoder.parameters()])


class Forgetful:
    """Keeps no state of a run."""

    def due(self, step: int) -> bool:
        return False

    def finish(self, step: int, state: Mapping[str, Any]) -> None:
        pass


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    with joined_world() as world:
        yield world


def train(run: RunSpec, world: World) -> Result:
    model = mcf.build(run).to(world.device)
    parts = Parts(
        model=model, target=Target(run, model) if run.contrastive.weight else None,
        teacher=teachers.build(run, world.device), optimizer=optim.adamw(model, run), num_images=32,
    )  # fmt: skip
    world.form_teams(teams(run.batch, 1))
    result = Result(model)
    fit(run, parts, step_plan(run.batch, 0, 1), drawn_slices(run, world.device), world, Forgetful(), result)
    return result


def drawn_slices(run: RunSpec, device: torch.device) -> Iterator[Slice]:
    """Images of a step that are the same however it is divided."""
    for step in range(run.total_steps(32)):
        generator = torch.Generator().manual_seed(step)
        noise = torch.rand(2, run.batch.global_batch, run.num_patches, generator=generator)
        side = run.input_size
        image = torch.randint(256, (run.batch.global_batch, 3, side, side), generator=generator, dtype=torch.uint8)
        nothing = torch.zeros(run.batch.slice, dtype=torch.long)
        cells: list[tuple[Tensor, ...]] = [part.split(run.batch.slice) for part in (image, *noise)]
        for own, online, target in zip(*cells, strict=True):
            yield Slice(own.to(device), online.to(device), target.to(device), nothing, nothing.bool(), {})
