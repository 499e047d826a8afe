"""The same steps on any number of workers, also when their number changes on the way."""

import json
import os
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

from tests.forks import forks
from tests.integration.torchruns import ENV, final_state, small

# Two groups of four slices: eight cells, so eight workers are two teams, and three share unequally.
GRID = {"slice": 8, "contrastive_group": 32, "global_batch": 64}
KEY_LENGTH = 64
WORLDS = [[(size, 99)] for size in (1, 2, 3, 4, 8)]
CHANGING = [(3, 3), (1, 5), (4, 99)]
LENGTH = 8
# One step leaves a tenth of the gradient in the optimizer's first moment. AdamW amplifies rounding from there on.
TOLERANCE = {1: 1e-9, LENGTH: 1e-6}
KINDS: dict[str, tuple[dict[str, Any], list[int], list[list[tuple[int, int]]]]] = {
    "target moves per group": ({"ema": {"momentum": 0.9, "per": "group"}}, [1, LENGTH], [*WORLDS, CHANGING]),
    "target moves per step": ({"ema": {"momentum": 0.9, "per": "step"}}, [LENGTH], [WORLDS[0], WORLDS[4], CHANGING]),
    "no contrast, no teacher": (
        {"contrastive": {"weight": 0}, "teacher": "none", "mask_ratio": 0.5}, [LENGTH], [WORLDS[0], CHANGING],
    ),
}  # fmt: skip
CASES = [(kind, length) for kind, (_, lengths, _) in KINDS.items() for length in lengths]


class Trained(NamedTuple):
    """What one list of worlds came to."""

    state: dict[str, torch.Tensor]
    losses: list[dict[str, float]]
    collectives: list[list[tuple[str, int]]]
    """Of every rank of the last world: what it sent in the last step, and how many numbers."""


@pytest.fixture(scope="module")
def on_worlds(tiny_faces: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, int], list[Trained]]:
    """Every kind of run on every list of (world size, step to stop after), by real processes, in float64."""
    folder = tmp_path_factory.mktemp("worlds")
    jobs = []
    for kind, length in CASES:
        schedule = {"unit": "steps", "length": length, "warmup": min(2, length)}
        run = small(tiny_faces, precision="float64", batch=GRID, schedule=schedule, **KINDS[kind][0])
        for number, stretches in enumerate(KINDS[kind][2]):
            where = f"{folder}/{kind} {length}/{number}"
            jobs.append({"run": run.model_dump(), "folder": where, "stretches": stretches})
    (folder / "jobs.json").write_text(json.dumps(jobs))
    done = forks.run("tests.integration.worlds", str(folder / "jobs.json"), env={**os.environ, **ENV}, timeout=290)
    assert done.returncode == 0, done.stderr[-3000:]
    return {
        (kind, length): [
            what_came_of(folder / f"{kind} {length}/{number}", length, stretches[-1][0])
            for number, stretches in enumerate(KINDS[kind][2])
        ]
        for kind, length in CASES
    }


def what_came_of(folder: Path, length: int, last_world: int) -> Trained:
    sent = [folder / f"collectives-{last_world}-{rank}.json" for rank in range(last_world)]
    return Trained(
        state=final_state(folder, length),
        losses=[json.loads(line) for line in (folder / "losses").open()],
        collectives=[[tuple(each) for each in json.loads(path.read_text())] for path in sent if path.exists()],
    )


@pytest.mark.parametrize(("kind", "length"), CASES)
def test_one_to_eight_workers_take_the_same_steps_also_when_their_number_changes(
    on_worlds: dict[tuple[str, int], list[Trained]], kind: str, length: int
) -> None:
    alone, *others = on_worlds[kind, length]
    tolerance = TOLERANCE[length]
    assert alone.state["/model/encoder.norm.weight"].dtype == torch.float64
    assert len(alone.losses) == length
    for other in others:
        assert other.state.keys() == alone.state.keys()
        for name, value in alone.state.items():
            assert torch.allclose(value, other.state[name], rtol=tolerance, atol=tolerance), name
        for line, expected in zip(other.losses, alone.losses, strict=True):
            assert line == pytest.approx(expected, rel=tolerance)


@pytest.mark.parametrize(("size", "shares"), [(1, []), (2, [2, 2]), (3, [2, 2]), (4, [1, 1]), (8, [1])])
def test_a_step_sends_its_gradient_once_its_keys_inside_the_team_and_a_handful_of_numbers(
    on_worlds: dict[tuple[str, int], list[Trained]], size: int, shares: list[int]
) -> None:
    trained = on_worlds["target moves per group", LENGTH][[size for [(size, _)] in WORLDS].index(size)]
    gradient = sum(value.numel() for name, value in trained.state.items() if name.endswith("/exp_avg"))
    assert len(trained.collectives) == size
    for sent in trained.collectives:
        reduced = [numbers for name, numbers in sent if name == "all_reduce"]
        # Losses, gradient norm and what ranks want of each other.
        assert min(reduced) <= 9
        # One worker has nobody to send it to.
        assert sum(reduced) - min(reduced) == (gradient if size > 1 else 0)
        # One gather a group this rank's team has, of the slices that any of the team has most of.
        keys = GRID["slice"] * KEY_LENGTH
        assert [numbers for name, numbers in sent if name == "all_gather"] == [share * keys for share in shares]


def test_a_branch_that_is_switched_off_leaves_no_weights(
    on_worlds: dict[tuple[str, int], list[Trained]],
) -> None:
    names = on_worlds["no contrast, no teacher", LENGTH][0].state
    assert not any(part in name for name in names for part in ("projector", "predictor", "target", "teacher"))
