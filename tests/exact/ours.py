"""Our side of the comparison with reference.py: specs of its shapes, and the step as one takes it by hand."""

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.exact import reference
from tests.exact.reference import Micro, Shape
from tests.exact.released import draw_checkpoint
from trainer import teachers
from trainer.contract import RunSpec
from trainer.method import optim
from trainer.weights.published import TEACHER, load_published, published_parameters, spec_of_published

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
STEPS, EPOCHS = 2, 3


def run_of(shape: Shape, state: reference.State, teacher: Path, *, slice: int, ranks: int, micro_steps: int) -> RunSpec:
    shown = spec_of_published(state, encoder_heads=shape.heads, decoder_heads=shape.decoder_heads)
    return RunSpec.model_validate({
        **shown,
        "data": {"uri": "/none"},
        "mask_ratio": shape.mask_ratio,
        "teacher": {
            "source": str(teacher), "arch": arch_of(shape), "taps": shape.taps, "input_size": shape.teacher_image,
            "normalise": ("tokens", "channels")[shape.along - 1], "weight": shape.weight,
            "mean": shape.teacher_mean, "std": shape.teacher_std,
            "visible": "image" if shape.hidden_only else "predicted",
        },
        "contrastive": {
            **shown["contrastive"], "weight": shape.contrast, "temperature": shape.temperature,
            "target_mask_ratio": shape.target_mask_ratio,
        },
        "pixels": {"weight": shape.pixels},
        "batch": {
            "slice": slice, "contrastive_group": slice * ranks, "global_batch": slice * ranks * micro_steps,
        },
        "schedule": {"unit": "epochs", "length": EPOCHS, "warmup": 1},
        "ema": {
            "momentum": shape.momentum, "per": "step" if shape.once_a_step else "group",
            "ramp": "cosine" if shape.ramp else "constant",
        },
        "optimizer": {"base_lr": 0.05, "clip_norm": shape.clip},
        "precision": "float64",
    })  # fmt: skip


def arch_of(shape: Shape) -> str:
    if shape.teacher_sizes is None:
        return "as-encoder"
    patch, width, depth, heads = shape.teacher_sizes
    return f"vit-{width}x{depth}x{heads}-p{patch}"


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
        self.optimizer = optim.adamw(self.model, run)

    def backward(self, grid: list[list[Micro]], number: int = 0) -> dict[str, float]:
        self.target.momentum = optim.ema_momentum(self.run, number, STEPS * self.run.batch.global_batch)
        sums = dict.fromkeys(("total", "perceptual", "pixel", "contrastive"), 0.0)
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
        if longest := self.run.optimizer.clip_norm:
            optim.clip_gradient(self.model, optim.gradient_norm(self.model), longest)
        images = STEPS * self.run.batch.global_batch
        optim.set_learning_rate(self.optimizer, optim.learning_rate(self.run, number, images))
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)


def assert_same(ours: dict[str, Tensor], theirs: dict[str, Tensor], tolerance: float) -> None:
    assert ours.keys() == theirs.keys()
    # Gradients that are zero but for rounding are compared on the scale of all the others.
    floor = 1e-6 * max(value.abs().max() for value in theirs.values())
    for name, value in theirs.items():
        error = (ours[name] - value).abs().max() / max(value.abs().max(), floor)
        assert error < tolerance, f"{name}: {error:.1e}"


class Theirs:
    """The reference's run of the same steps."""

    def __init__(self, state: reference.State, shape: Shape) -> None:
        self.state, self.shape = reference.wide(state), shape
        self.adamw = reference.AdamW()

    def backward(self, grid: list[list[Micro]], number: int) -> tuple[dict[str, float], dict[str, Tensor]]:
        m = 1 - (1 - self.shape.momentum) * (1 + math.cos(math.pi * number / (EPOCHS * STEPS))) / 2
        now = replace(self.shape, momentum=m) if self.shape.ramp else self.shape
        return reference.gradients(self.state, grid, now)

    def step(self, gradients: dict[str, Tensor], number: int, batch: int) -> None:
        rate = reference.learning_rate(number, STEPS, base=0.05, batch=batch, epochs=EPOCHS, warm=1)
        self.adamw.step(self.state, reference.clipped(gradients, self.shape), rate)


def compare_steps(shape: Shape, folder: Path, *, steps: int, slice: int, ranks: int, micro_steps: int) -> None:
    """Both sides' losses, gradients, weights and target over some steps; AssertionError where they differ."""
    sizes = {"slice": slice, "ranks": ranks, "micro_steps": micro_steps}
    state = draw_checkpoint(shape, seed=1)
    theirs, ours = Theirs(state, shape), Ours(state, run_of(shape, state, teacher_file(state, folder), **sizes))
    for number in range(steps):
        grid = draw_grid(shape, **sizes, seed=number)
        losses, gradients = theirs.backward(grid, number)
        assert ours.backward(grid, number) == pytest.approx(losses, rel=1e-10)
        assert_same(ours.gradients(), gradients, 1e-8)
        ours.step(number)
        theirs.step(gradients, number, slice * ranks * micro_steps)
    moved = published_parameters(ours.model, ours.target)
    assert_same({n: p.detach() for n, p in moved.items()}, {n: theirs.state[n].detach() for n in moved}, 1e-8)
    # The rate of the first step is 0.
    assert torch.allclose(theirs.state["mask_token"], state["mask_token"].double()) is (steps == 1)
