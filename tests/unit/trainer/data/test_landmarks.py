"""Masks of face parts on images: where parts lie in what the network sees, and what happens without landmarks."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from trainer.contract import RunSpec
from trainer.data import batches
from trainer.data.batches import Slice, slices, split_of
from trainer.data.manifest import DataError, open_images
from trainer.evaluation.mask_points import mask_points, num_without
from trainer.method.grid import step_plan
from trainer.method.masks import HULLS

SIDE = 8
WIDTH, HEIGHT = 96, 64


@pytest.fixture(scope="module")
def dotted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 wide grey images with a white nose, each at its own place, and a file that says where; 4 are not in it."""
    folder = tmp_path_factory.mktemp("dotted")
    (folder / "images").mkdir()
    rng, faces = np.random.default_rng(1), {}
    for number in range(24):
        pixels = np.full((HEIGHT, WIDTH, 3), 100, np.uint8)
        pixels[0, 0] = number  # so that no two are the same image
        x, y = rng.integers(20, 70), rng.integers(4, 50)
        pixels[y : y + 10, x : x + 10] = 255
        name = f"{number:02d}.png"
        tag = Image.Exif()
        tag[0x0112] = 3 if number % 5 == 1 else 1
        turned = pixels[::-1, ::-1] if number % 5 == 1 else pixels  # lies upside down, and says so
        Image.fromarray(np.ascontiguousarray(turned)).save(folder / "images" / name, exif=tag)
        points = rng.uniform(0, 60, (68, 2))
        square = [[x, y], [x + 10, y], [x + 10, y + 10], [x, y + 10]]
        points[list(HULLS["nose"][0])] = (square * 3)[:9]
        if number >= 4:
            faces[name] = {"points68": points.tolist(), "landmarks_ok": number != 4}
    (folder / "landmarks.json").write_text(json.dumps(faces))
    return folder


def spec(dotted: Path, tiny_run: RunSpec, **changes: Any) -> RunSpec:
    mask = {"kind": "parts", "landmarks": str(dotted / "landmarks.json"), "first": ["nose"], **changes.pop("mask", {})}
    data = {"uri": str(dotted / "images"), **changes.pop("data", {})}
    asked = {**tiny_run.model_dump(), "data": data, "mask": mask, "evaluation": {"held_out": 4}, **changes}
    return RunSpec.model_validate(asked)


def all_slices(run: RunSpec, points: Any = ...) -> list[Slice]:
    split = split_of(run)
    points = mask_points(run, split.train) if points is ... else points
    images, plan = open_images(run.data, split.manifest), step_plan(run.batch, 0, 1)
    return list(slices(run, images, split.train, plan, range(2), torch.device("cpu"), points=points))


def white(cell: Slice) -> np.ndarray:
    """Which patches hold more than a trace of white, bool [B, S, S]: the nose as the network sees it."""
    patch_BSSK = cell.image_BCHW[:, 0].unfold(1, 8, 8).unfold(2, 8, 8).flatten(3)
    return ((patch_BSSK > 200).sum(dim=3) > 4).numpy()


def hidden(noise_BL: torch.Tensor, visible: int) -> np.ndarray:
    return (noise_BL.argsort(dim=1).argsort(dim=1) >= visible).view(-1, SIDE, SIDE).numpy()


@pytest.mark.parametrize("fit", ["crop", "squash"])
@pytest.mark.parametrize("keep", [False, True])
def test_parts_are_where_the_network_sees_them_also_mirrored_turned_and_cropped(
    dotted: Path, tiny_run: RunSpec, fit: str, keep: bool
) -> None:
    run = spec(dotted, tiny_run, data={"fit": fit}, mask={"keep": keep})
    split = split_of(run)
    known = set(json.loads((dotted / "landmarks.json").read_text())) - {"04.png"}
    seen = mirrored = 0
    for cell in all_slices(run):
        for view_BL in cell.online_BL, cell.target_BL:
            hidden_BSS, nose_BSS = hidden(view_BL, run.visible_patches()), white(cell)
            for place, index in enumerate(cell.index_B.tolist()):
                if split.train.key(index) in known:
                    assert (hidden_BSS[place][nose_BSS[place]] != keep).all()
                    seen += int(nose_BSS[place].sum())
                    mirrored += int(cell.flipped_B[place])
    assert seen > 300
    assert mirrored > 50


def test_images_without_landmarks_have_random_masks_and_are_counted(dotted: Path, tiny_run: RunSpec) -> None:
    run = spec(dotted, tiny_run)
    split = split_of(run)
    points = mask_points(run, split.train)
    without = [index for index, key in enumerate(split.train.keys()) if key < "05"]
    assert num_without(run, points, split.train) == len(without) > 0
    differ, random = 0, all_slices(run.model_copy(update={"mask": type(run.mask)()}), None)
    for cell, theirs in zip(all_slices(run), random, strict=True):
        for place, index in enumerate(cell.index_B.tolist()):
            own, other = (hidden(noise_BL[place : place + 1], 16) for noise_BL in (cell.online_BL, theirs.online_BL))
            assert index not in without or (own == other).all()
            differ += int((own != other).any())
    assert differ > 50


def test_workers_that_decode_on_demand_make_the_same_masks(
    dotted: Path, tiny_run: RunSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = spec(dotted, tiny_run)
    in_memory = all_slices(run)
    monkeypatch.setattr(batches, "MAX_BYTES_IN_MEMORY", 0)
    for one, other in zip(in_memory, all_slices(run), strict=True):
        assert all(map(torch.equal, one[:5], other[:5]))


def test_both_views_may_have_their_own_kinds(dotted: Path, tiny_run: RunSpec) -> None:
    nose = spec(dotted, tiny_run).mask.model_dump()
    run = spec(dotted, tiny_run, mask={"kind": "block", "landmarks": None, "first": []},
               contrastive={**tiny_run.contrastive.model_dump(), "target_mask": {**nose, "ratio": 0.5}})  # fmt: skip
    points = mask_points(run, split_of(run).train)
    assert points
    assert not points.online
    for cell in all_slices(run):
        nose_BSS, hidden_BSS = white(cell), hidden(cell.target_BL, 32)
        known_B = [index in points.target for index in cell.index_B.tolist()]
        assert hidden_BSS[known_B][nose_BSS[known_B]].all()


def test_no_mask_of_parts_reads_no_landmarks(tiny_run: RunSpec) -> None:
    rows = split_of(tiny_run).train
    assert mask_points(tiny_run, rows) is None
    assert num_without(tiny_run, None, rows) == 0


@pytest.mark.parametrize(
    ("text", "words"),
    [(None, "no landmarks for the masks"), ("{}", "has changed since the run was submitted"), ("[]", "has changed")],
)
def test_landmarks_that_are_gone_or_others_end_the_run(
    dotted: Path, tiny_run: RunSpec, tmp_path: Path, text: str | None, words: str
) -> None:
    file = tmp_path / "l.json"
    if text is not None:
        file.write_text(text)
    run = spec(dotted, tiny_run, mask={"landmarks": str(file), "sha256": "a" * 64})
    with pytest.raises(DataError, match=words):
        mask_points(run, split_of(run).train)
