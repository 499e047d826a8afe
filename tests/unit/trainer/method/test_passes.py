"""However many cells go through the networks together, and whoever computes them, the step is the same."""

import copy
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.forks import forks
from tests.unit.trainer.method.test_variants import SMALL, Forgetful, drawn_slices
from trainer import teachers
from trainer.contract import RunSpec
from trainer.elastic.distributed import joined_world
from trainer.loop import Parts, fit
from trainer.method.grid import step_plan, teams
from trainer.method.mcf import Target, build
from trainer.method.optim import adamw
from trainer.tracking.report import Silent
from trainer.weights.published import newest_state

# Four groups of two slices.
GRID = {"batch": {"slice": 4, "contrastive_group": 8, "global_batch": 32}}
VARIANTS: dict[str, dict[str, Any]] = {
    "both losses": {},
    "target moves once a step": {"ema": {"momentum": 0.9, "per": "step"}},
    "no contrast": {"contrastive": {"weight": 0}},
    "a smaller teacher": {"teacher": {"source": "random", "arch": "vit-16x2x2-p4", "taps": [1], "input_size": 16}},
    "pixels of the hidden": {"teacher": "none", "pixels": {"weight": 1.0, "normalise": "patch"}},
    "face-api": {"teacher": {"source": "random", "arch": "face-api", "taps": [1], "input_size": 32}},
    "shown image": {"teacher": {**SMALL["teacher"], "visible": "image", "normalise": "channels"}},
}
PASSES = [2, 3, 4, 8]


def spec(variant: str) -> RunSpec:
    return RunSpec.model_validate({**SMALL, **GRID, **VARIANTS[variant]})


def trained(run: RunSpec, cells: int, again: int | None = None) -> dict[str, Tensor]:
    """Weights of online network and target after the run's steps, and the losses of each.

    `again`: cells a pass of a second worker, which goes on from the state after the first step.
    """
    losses: list[dict[str, float]] = []
    kept: list[dict[str, Any]] = []
    plan = step_plan(run.batch, 0, 1)
    with joined_world() as world:
        world.form_teams(teams(run.batch, 1))

        def made(cells: int) -> Parts:
            model = build(run)
            target = Target(run, model) if run.contrastive.weight else None
            return Parts(model, target, teachers.build(run, world.device), adamw(model, run), 32, cells_a_pass=cells)

        class Noting(Silent):
            def __init__(self, parts: Parts) -> None:
                self.parts = parts

            def step(self, step: int, means: Mapping[str, float], **more: float) -> None:
                losses.append(dict(means))
                kept.append(copy.deepcopy(self.parts.state_dict()))

        parts, slices = made(cells), list(drawn_slices(run, world.device))
        fit(run, parts, plan, iter(slices), world, Forgetful(), Noting(parts))
        if again:
            del losses[1:]
            parts = made(again)
            parts.load_state_dict(kept[0])
            fit(run, parts, plan, iter(slices[plan.num_cells :]), world, Forgetful(), Noting(parts))
    found = {name: value.detach() for name, value in parts.model.named_parameters()}
    found |= {f"target {name}": value for name, value in (parts.target.named_parameters() if parts.target else ())}
    return found | {"losses": torch.tensor([list(each.values()) for each in losses], dtype=torch.float64)}


@pytest.mark.parametrize("variant", VARIANTS)
def test_passes_of_any_size_take_the_same_steps(variant: str) -> None:
    run = spec(variant)
    alone = trained(run, 1)
    for cells in PASSES:
        assert_equal(trained(run, cells), alone, f"{cells} cells")


def test_a_run_goes_on_with_passes_of_another_size() -> None:
    run = spec("both losses")
    assert_equal(trained(run, 3, again=8), trained(run, 1), "3 cells, then 8")


def test_ranks_with_unequal_shares_and_passes_take_the_same_steps(tmp_path: Path) -> None:
    run = spec("both losses")
    worlds = [(1, 1), (1, 8), (2, 4), (3, 2), (3, 8), (8, 8)]
    grids = []
    slices = drawn_slices(run, torch.device("cpu"))
    for _ in range(run.total_steps(32)):
        cells = [next(slices) for _ in range(run.batch.num_cells)]
        given = [(cell.image_BCHW, cell.online_BL, cell.target_BL) for cell in cells]
        grids.append([given[start : start + 2] for start in range(0, len(given), 2)])
    folders = [str(tmp_path / f"{world} {cells}") for world, cells in worlds]
    jobs = [
        {"run": run.model_dump(), "world": world, "cells_a_pass": cells, "folder": folder, "grids": grids,
         "num_images": 32}
        for (world, cells), folder in zip(worlds, folders, strict=True)
    ]  # fmt: skip
    torch.save(jobs, tmp_path / "jobs.pt")
    done = forks.run("tests.exact.ranks", str(tmp_path / "jobs.pt"), env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr[-3000:]
    first, *others = (newest_state(folder) for folder in folders)
    for other, world in zip(others, worlds[1:], strict=True):
        for part in "model", "target":
            assert_equal(other[part], first[part], f"{world}: {part}")


def assert_equal(found: Mapping[str, Tensor], wanted: Mapping[str, Tensor], what: str) -> None:
    for name, value in wanted.items():
        torch.testing.assert_close(
            found[name], value, rtol=1e-9, atol=1e-9, msg=lambda text, name=name: f"{what}: {name}: {text}"
        )
