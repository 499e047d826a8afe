"""The trainer's loop in real processes against the reference: from a released checkpoint to a released checkpoint."""

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from tests.exact.ours import EPOCHS, STEPS, TINY, Theirs, assert_same, draw_grid, run_of
from tests.exact.reference import MEAN, STD, Micro, Shape
from tests.exact.released import draw_checkpoint
from tests.forks import forks
from trainer.contract import RunSpec
from trainer.weights.published import TEACHER, main, newest_state, published_name, read_published

ROOT = Path(__file__).parents[2]
SIZES = {"slice": 3, "ranks": 2, "micro_steps": 2}
CHANGED = replace(TINY, clip=0.05, ramp=True, once_a_step=True, momentum=0.8, mask_ratio=0.5, pixels=0.5)
KINDS = {"published": TINY, "clipped, ramp, pixels, mask ratio 0.5": CHANGED}
# Kind, processes, cells a pass. Two processes are the released code's two GPUs; three share unequally, four are two
# teams.
WORLDS = [("published", 1, 1), ("published", 1, 4), ("published", 2, 2), ("published", 3, 4), ("published", 4, 1)]
WORLDS += [(list(KINDS)[1], 1, 3), (list(KINDS)[1], 2, 4)]


class Given(NamedTuple):
    """One kind's checkpoint, and its images as bytes with their masks, step by step."""

    shape: Shape
    state: dict[str, Tensor]
    file: Path
    run: RunSpec
    grids: list[list[list[Micro]]]


def given(kind: str, folder: Path) -> Given:
    shape, file = KINDS[kind], folder / f"{kind}.pth"
    state = draw_checkpoint(shape, seed=5)
    torch.save({"model": state, "epoch": 3}, file)
    run = run_of(shape, state, file, **SIZES).model_dump()
    run["initial"] = {"source": str(file)}
    grids = [draw_grid(shape, **SIZES, seed=number) for number in range(STEPS * EPOCHS)]
    for micro in (micro for grid in grids for ranks in grid for micro in ranks):
        micro.image = (micro.image * 50 + 128).clamp(0, 255).to(torch.uint8)
    return Given(shape, state, file, RunSpec.model_validate(run), grids)


def normalised(grid: list[list[Micro]]) -> list[list[Micro]]:
    mean, std = (torch.tensor(values, dtype=torch.float64).view(3, 1, 1) for values in (MEAN, STD))
    return [[replace(micro, image=(micro.image.double() / 255 - mean) / std) for micro in ranks] for ranks in grid]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Given]]:
    folder = tmp_path_factory.mktemp("ranks")
    kinds = {kind: given(kind, folder) for kind in KINDS}
    jobs: list[dict[str, Any]] = []
    for kind, world, cells in WORLDS:
        grids = [
            [[(m.image, m.online_noise, m.target_noise) for m in ranks] for ranks in grid] for grid in kinds[kind].grids
        ]
        jobs.append({
            "run": kinds[kind].run.model_dump(), "world": world, "folder": str(folder / f"{kind} {world} {cells}"),
            "cells_a_pass": cells, "grids": grids, "num_images": STEPS * kinds[kind].run.batch.global_batch,
        })  # fmt: skip
    torch.save(jobs, folder / "jobs.pt")
    done = forks.run("tests.exact.ranks", str(folder / "jobs.pt"), env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr[-3000:]
    return folder, kinds


@pytest.mark.parametrize(("kind", "world", "cells"), WORLDS)
def test_a_run_in_processes_has_the_reference_s_losses_weights_and_target(
    trained: tuple[Path, dict[str, Given]], kind: str, world: int, cells: int
) -> None:
    folder, kinds = trained
    shape, state, file, run, grids = kinds[kind]
    theirs, losses = Theirs(state, shape), []
    for number, grid in enumerate(grids):
        means, gradients = theirs.backward(normalised(grid), number)
        losses.append({name: means[name] for name in ("total", *run.loss_weights)})
        theirs.step(gradients, number, run.batch.global_batch)
    lines = (folder / f"{kind} {world} {cells}/losses").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [pytest.approx(each, rel=1e-9) for each in losses]

    found = newest_state(str(folder / f"{kind} {world} {cells}"))
    assert found["step"] == STEPS * EPOCHS
    ours = {published_name(name): value for name, value in found["model"].items()}
    ours |= {published_name(name, target=True): value for name, value in found["target"].items()}
    assert_same(ours, {name: theirs.state[name].detach() for name in ours}, 1e-7)

    # Out again: float32 as the file it started from, whose teacher and statistics it keeps.
    arguments = [str(folder / f"{kind} {world} {cells}"), str(folder / "out.pth"), "--like", str(file)]
    if world == 2:
        assert forks.run("trainer.weights.published", *arguments).returncode == 0
    else:
        main(arguments)
    exported = read_published(folder / "out.pth")
    assert exported.keys() == state.keys()
    assert_same({n: exported[n].double() for n in ours}, {n: theirs.state[n].detach() for n in ours}, 1e-6)
    kept = [name for name in state if name.startswith(TEACHER) or name.endswith("running_var")]
    assert all(torch.equal(exported[name], state[name]) for name in kept)
