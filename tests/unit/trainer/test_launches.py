"""What a step asks of a GPU, counted where there is none: kernels an image, and casts of weights."""

import pytest

from tests.bench.launches import Counted, counted
from tests.bench.step import prepared
from trainer.elastic.distributed import joined_world

IMAGES = 4
# Of a slice as it is published: how many images one has changes no number of kernels either.
PUBLISHED = 64
# The depths of the published recipe; how wide its networks are changes no number of kernels.
SMALL = {
    "input_size": 32, "encoder": {"width": 24, "depth": 12, "heads": 2, "patch": 8}, "precision": "bf16",
    "decoder": {"width": 16, "depth": 8, "heads": 2}, "contrastive": {"hidden": 16, "dim": 8},
}  # fmt: skip


def one_pass(cells: int) -> Counted:
    with joined_world() as world:
        bench = prepared(world, IMAGES, cells, **SMALL)
        bench.pass_once()  # what is made once a run is not counted
        with counted() as found:
            bench.pass_once()
    return found


# What it took when this was written, and a little; a number that has risen is a reason to look.
@pytest.mark.parametrize(("cells", "kernels_an_image", "casts"), [(1, 31, 640), (8, 5, 640)])
def test_a_pass_launches_few_kernels_however_many_cells_it_has(cells: int, kernels_an_image: float, casts: int) -> None:
    found = one_pass(cells)
    assert found.kernels.total() / (cells * PUBLISHED) < kernels_an_image, found.kernels.most_common(20)
    assert found.casts < casts, found.casts
