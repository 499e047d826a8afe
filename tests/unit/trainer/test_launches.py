"""What a step asks of a GPU, counted where there is none: kernels an image, and casts of weights."""

from contextlib import nullcontext

import pytest

from tests.bench.launches import Counted, as_on_a_gpu
from tests.bench.step import prepared
from trainer.elastic.distributed import joined_world

IMAGES = 4
# Of a slice as it is published: how many images one has changes no number of kernels either.
PUBLISHED = 64
# The depths of the published recipe; how wide its networks are changes no number of kernels.
SMALL = {
    "input_size": 32, "encoder": {"width": 24, "depth": 12, "heads": 2, "patch": 8}, "precision": "bf16",
    "decoder": {"width": 16, "depth": 8, "heads": 2}, "contrastive": {"hidden": 16, "dim": 8},
    "teacher": {"source": "random", "arch": "as-encoder"},
}  # fmt: skip
WEIGHTS = 260
"""Tensors that are trained, of the published depths."""


def one_pass(cells: int, *, last: bool = False) -> Counted:
    """A pass in the middle of a step, or its last one, after which ranks add up their gradients."""
    with as_on_a_gpu(), joined_world() as world:
        bench = prepared(world, IMAGES, cells, **SMALL)
        for _ in range(2):  # what is made once a run is not counted, such as DDP's order of gradients
            bench.pass_once()
        with nullcontext() if last else bench.model.no_sync(), Counted() as found:
            bench.pass_once()
    return found


# What it took when this was written, and a little; a number that has risen is a reason to look.
@pytest.mark.parametrize(("cells", "kernels_an_image", "casts"), [(1, 35.5, 630), (8, 4.55, 630)])
def test_a_pass_launches_few_kernels_however_many_cells_it_has(cells: int, kernels_an_image: float, casts: int) -> None:
    found = one_pass(cells)
    assert found.kernels.total() / (cells * PUBLISHED) < kernels_an_image, found.kernels.most_common(20)
    assert found.casts < casts, found.casts


def test_a_weight_is_cast_once_a_step_however_many_passes_it_has() -> None:
    with as_on_a_gpu(), joined_world() as world:
        bench = prepared(world, IMAGES, 2, **SMALL)
        bench.parts.cells_a_pass = 1
        bench.pass_once()
        with Counted() as found:
            bench.pass_once()
    # The second pass casts what it computes with the weights, and neither matrices nor biases again.
    assert found.casts < 2 * one_pass(1).casts - WEIGHTS / 2, found.casts


def test_adding_up_gradients_is_a_kernel_a_weight_once_a_step() -> None:
    last, another = one_pass(1, last=True), one_pass(1)
    assert last.kernels.total() - another.kernels.total() <= WEIGHTS
    assert last.casts == another.casts
