"""Every variant of the method is a field: sizes are the published ones, and each field changes what it names."""

from typing import Any

import pytest
import torch

from trainer import mcf, optim, teachers
from trainer.ablation import expand, parse_experiment
from trainer.mcf import Mcf, Target
from trainer.spec import RunSpec

CPU = torch.device("cpu")
# Parameters of timm's models of these names without a head, patches, and values of one predicted patch.
ENCODERS = {
    "vit-s16": (21_665_664, 196, 768), "vit-b16": (85_798_656, 196, 768), "vit-l16": (303_301_632, 196, 768),
    "vit-h14": (630_764_800, 256, 588),
}  # fmt: skip


def run_of(preset: str, **fields: Any) -> RunSpec:
    spec, problems = parse_experiment({
        "name": "v", "base": {"preset": preset, "data": {"uri": "/d"}, "teacher": "none", **fields}, "seeds": 1,
    })  # fmt: skip
    assert spec, problems
    return expand(spec)[0][0].runs[0]


@pytest.mark.parametrize("preset", ENCODERS)
def test_encoders_have_the_published_sizes(preset: str) -> None:
    run = run_of(preset)
    with torch.device("meta"):
        model = Mcf(run)
        noise = torch.rand(2, run.num_patches)
        token = model.encoder(torch.zeros(2, 3, 224, 224), noise, run.visible_patches())
        patch = model.decoder(token, noise)
    size, patches, values = ENCODERS[preset]
    assert sum(weight.numel() for weight in model.encoder.parameters()) == size
    assert token.shape == (2, 1 + patches // 4, run.encoder.width)
    assert patch.shape == (2, patches, values)
    small = (256, 2) if preset == "vit-s16" else (512, 8)
    assert (run.decoder.width, run.decoder.depth, run.decoder.heads) == (*small, 16)


@pytest.mark.parametrize("decoder", ["512x8", "512x4", "512x2", "512x1", "256x2"])
def test_decoders_have_as_many_blocks_and_channels_as_they_say(decoder: str) -> None:
    width, depth = map(int, decoder.split("x"))
    with torch.device("meta"):
        found = Mcf(run_of("vit-b16", decoder=decoder)).decoder
    assert len(found.blocks) == depth
    block = 12 * width**2 + 13 * width
    outside = 768 * width + width + width + 197 * width + 2 * width + width * 768 + 768
    assert sum(weight.numel() for weight in found.parameters()) == depth * block + outside


# What is changed -> which of the first step's numbers have to change, all others being equal.
CHANGES: list[tuple[dict[str, Any], set[str]]] = [
    ({"mask_ratio": 0.5}, {"perceptual", "contrastive"}),
    ({"teacher.normalise": "channels"}, {"perceptual"}),
    ({"teacher.tokens": "patches"}, {"perceptual"}),
    ({"teacher.visible": "image"}, {"perceptual"}),
    ({"teacher.taps": [0, 1, 2, 3]}, {"perceptual"}),
    ({"teacher.input_size": 32}, {"perceptual"}),
    ({"teacher.seed": 1}, {"perceptual"}),
    ({"teacher.weight": 10.0}, {"total"}),
    ({"contrastive.weight": 0.5}, {"total"}),
    ({"contrastive.temperature": 0.1}, {"contrastive"}),
    ({"contrastive.weight": 0.0}, {"contrastive"}),
    ({"contrastive.target_mask_ratio": 0.5}, {"contrastive"}),
    ({"contrastive.target_mask_ratio": 0.0}, {"contrastive"}),
    ({"pixels.weight": 1.0}, {"pixel"}),
    ({"pixels.weight": 1.0, "pixels.patches": "all"}, {"pixel"}),
    ({"decoder": {"width": 32, "depth": 1, "heads": 4}}, {"perceptual"}),
    ({"ema.momentum": 0.5}, {"contrastive"}),
    ({"ema.per": "step"}, {"contrastive"}),
]


def first_losses(run: RunSpec) -> dict[str, float]:
    """Of the last group of the first step, whose target has moved."""
    torch.manual_seed(0)
    image, noise = torch.randn(16, 3, 64, 64), torch.rand(16, run.num_patches)
    model, online = mcf.build(run), mcf.build(run.model_copy(update={"seed": 3}))
    keys = None
    if run.contrastive.weight:
        target = Target(run, model)
        target.advance_to_group(1, online)
        keys = target.keys(image, noise.flip(0))
    return {n: v.item() for n, v in model(image, noise, keys, 0, teachers.build(run, CPU))._asdict().items()}


@pytest.fixture(scope="module")
def published(tiny_faces: object) -> dict[str, float]:
    return first_losses(tiny({}))


def tiny(fields: dict[str, Any]) -> RunSpec:
    base: dict[str, Any] = {"teacher": {"source": "random"}}
    for name, value in fields.items():
        part, _, field = name.partition(".")
        base[part] = {**base.get(part, {}), field: value} if field else value
    return run_of("tiny", **base)


@pytest.mark.parametrize(("fields", "changed"), CHANGES, ids=lambda part: str(part))
def test_every_field_changes_what_it_names_and_nothing_else(
    published: dict[str, float], fields: dict[str, Any], changed: set[str]
) -> None:
    found = first_losses(tiny(fields))
    names = set(found) - {"total"}
    assert {name for name in names if found[name] != pytest.approx(published[name], rel=1e-6)} == changed - {"total"}
    assert found["total"] != pytest.approx(published["total"], rel=1e-6)


@pytest.mark.parametrize("ratio", [-0.1, 0.99, 1.0])
def test_a_target_that_would_see_no_patch_is_refused(ratio: float) -> None:
    with pytest.raises(ValueError, match=r"contrastive\.target_mask_ratio: asked for .* of 64 patches; possible"):
        RunSpec.model_validate({**tiny({}).model_dump(), "contrastive": {"target_mask_ratio": ratio}})


def test_the_fields_of_the_optimizer_change_a_step() -> None:
    plain, clipped = tiny({}), tiny({"optimizer.clip_norm": 1e-3})
    assert clipped.digest != plain.digest
    model = mcf.build(plain)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optim.clip_gradient(model, optim.gradient_norm(model), clipped.optimizer.clip_norm or 0)
    assert optim.gradient_norm(model).item() == pytest.approx(1e-3, rel=1e-3)
    ramp = tiny({"ema.ramp": "cosine"})
    assert optim.ema_momentum(ramp, 0, 100) == ramp.ema.momentum
    assert optim.ema_momentum(ramp, 20, 100) == pytest.approx(1 - (1 - ramp.ema.momentum) / 2)
