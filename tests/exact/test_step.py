"""Our step against the reference's, from one released checkpoint, one set of images and one set of masks."""

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.exact import reference
from tests.exact.reference import Micro, Shape
from trainer import teachers
from trainer.optim import adamw, ema_momentum, learning_rate, set_learning_rate
from trainer.published import TEACHER, load_published, published_parameters, spec_of_published
from trainer.spec import RunSpec

CPU = torch.device("cpu")
TINY = Shape(
    image=32, patch=8, width=24, depth=3, heads=2, decoder_width=16, decoder_depth=1, decoder_heads=4,
    hidden=20, dim=12, teacher_image=32, taps=(0, 2),
)  # fmt: skip
B16 = Shape(
    image=224, patch=16, width=768, depth=12, heads=12, decoder_width=512, decoder_depth=8, decoder_heads=16,
    hidden=4096, dim=256, teacher_image=224, taps=(2, 5, 8, 11),
)  # fmt: skip
# Optimizer steps of an epoch.
STEPS = 2


def run_of(shape: Shape, state: reference.State, teacher: Path, *, slice: int, ranks: int, micro_steps: int) -> RunSpec:
    shown = spec_of_published(state)
    return RunSpec.model_validate({
        **shown,
        "data": {"uri": "/none"},
        "mask_ratio": shape.mask_ratio,
        "encoder": {**shown["encoder"], "heads": shape.heads},
        "decoder": {**shown["decoder"], "heads": shape.decoder_heads},
        "teacher": {
            "source": str(teacher), "arch": "as-encoder", "taps": shape.taps, "input_size": shape.teacher_image,
            "normalise": ("tokens", "channels")[shape.along - 1],
        },
        "batch": {
            "slice": slice, "contrastive_group": slice * ranks, "global_batch": slice * ranks * micro_steps,
        },
        "schedule": {"unit": "epochs", "length": 3, "warmup": 1},
        "ema": {
            "momentum": shape.momentum, "per": "step" if shape.once_a_step else "group",
            "ramp": "cosine" if shape.ramp else "constant",
        },
        "optimizer": {"base_lr": 0.05},
        "precision": "float64",
    })  # fmt: skip


def draw_grid(shape: Shape, *, slice: int, ranks: int, micro_steps: int, seed: int) -> list[list[Micro]]:
    generator = torch.Generator().manual_seed(seed)

    def noise() -> Tensor:
        return torch.rand(slice, (shape.image // shape.patch) ** 2, generator=generator)

    def image() -> Tensor:
        return torch.randn(slice, 3, shape.image, shape.image, generator=generator, dtype=torch.float64)

    return [[Micro(image(), noise(), noise()) for _ in range(ranks)] for _ in range(micro_steps)]


def teacher_file(state: reference.State, folder: Path) -> Path:
    path = folder / "teacher.pth"
    torch.save({n.removeprefix(TEACHER): v for n, v in state.items() if n.startswith(TEACHER)}, path)
    return path


class Ours:
    """The step as docs/method.md says to take it by hand."""

    def __init__(self, state: reference.State, run: RunSpec) -> None:
        self.run = run
        self.model, self.target = load_published(state, run)
        self.teacher = teachers.build(run, CPU)
        self.optimizer = adamw(self.model, run)

    def backward(self, grid: list[list[Micro]], number: int = 0) -> dict[str, float]:
        self.target.momentum = ema_momentum(self.run, number, STEPS * self.run.batch.global_batch)
        sums = dict.fromkeys(("total", "perceptual", "contrastive"), 0.0)
        for group, slices in enumerate(grid):
            self.target.advance_to_group(group, self.model)
            keys = torch.cat([self.target.keys(cell.image, cell.target_noise) for cell in slices])
            for index, cell in enumerate(slices):
                first = index * self.run.batch.slice
                losses = self.model(cell.image, cell.online_noise, keys, first, self.teacher)
                (losses.total / self.run.batch.num_cells).backward()
                for name in sums:
                    sums[name] += getattr(losses, name).item() / self.run.batch.num_cells
        return sums

    def gradients(self) -> dict[str, Tensor]:
        return {n: p.grad for n, p in published_parameters(self.model).items() if p.requires_grad}

    def step(self, number: int) -> None:
        self.target.finish_step(self.model)
        images = STEPS * self.run.batch.global_batch
        set_learning_rate(self.optimizer, learning_rate(self.run, number, images))
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)


def assert_same(ours: dict[str, Tensor], theirs: dict[str, Tensor], tolerance: float) -> None:
    assert ours.keys() == theirs.keys()
    # Gradients that are zero but for rounding are compared on the scale of all the others.
    floor = 1e-6 * max(value.abs().max() for value in theirs.values())
    for name, value in theirs.items():
        error = (ours[name] - value).abs().max() / max(value.abs().max(), floor)
        assert error < tolerance, f"{name}: {error:.1e}"


VARIANTS = {
    "published": TINY,
    "mask ratio 0.5": replace(TINY, mask_ratio=0.5),
    "larger teacher": replace(TINY, teacher_image=48),
    "smaller teacher": replace(TINY, teacher_image=24),
    "taps over channels": replace(TINY, along=2),
    "target moves once a step": replace(TINY, once_a_step=True, momentum=0.9),
    "momentum rises to 1": replace(TINY, ramp=True, momentum=0.8),
    "decoder of 2 blocks": replace(TINY, decoder_depth=2, decoder_width=32),
    "decoder of 4 blocks, mask ratio 0.6": replace(TINY, decoder_depth=4, mask_ratio=0.6),
}


@pytest.mark.parametrize("name", VARIANTS)
def test_three_steps_on_two_ranks_with_accumulation_are_the_published_ones(name: str, tmp_path: Path) -> None:
    shape, sizes = VARIANTS[name], {"slice": 3, "ranks": 2, "micro_steps": 2}
    state = reference.draw_checkpoint(shape, seed=1)
    theirs, their_adamw = reference.wide(state), reference.AdamW()
    ours = Ours(state, run_of(shape, state, teacher_file(state, tmp_path), **sizes))
    for number in range(3):
        grid = draw_grid(shape, **sizes, seed=number)
        m = 1 - (1 - shape.momentum) * (1 + math.cos(math.pi * number / (3 * STEPS))) / 2
        now = replace(shape, momentum=m) if shape.ramp else shape
        their_losses, their_gradients = reference.gradients(theirs, grid, now)
        assert ours.backward(grid, number) == pytest.approx(their_losses, rel=1e-10)
        assert_same(ours.gradients(), their_gradients, 1e-8)
        ours.step(number)
        rate = reference.learning_rate(number, STEPS, base=0.05, batch=12, epochs=3, warm=1)
        their_adamw.step(theirs, their_gradients, rate)
    moved = published_parameters(ours.model, ours.target)
    assert_same({n: p.detach() for n, p in moved.items()}, {n: theirs[n].detach() for n in moved}, 1e-8)
    assert not torch.allclose(theirs["mask_token"], state["mask_token"].double())


def test_a_real_vit_b16_has_the_published_losses_and_gradients(tmp_path: Path) -> None:
    sizes = {"slice": 2, "ranks": 1, "micro_steps": 1}
    state = reference.draw_checkpoint(B16, seed=2)
    grid = draw_grid(B16, **sizes, seed=3)
    ours = Ours(state, run_of(B16, state, teacher_file(state, tmp_path), **sizes))
    losses, gradients = reference.gradients(reference.wide(state), grid, B16)
    assert ours.backward(grid) == pytest.approx(losses, rel=1e-10)
    assert_same(ours.gradients(), gradients, 1e-8)
