"""From published files to a number: every part of the evaluation once, small."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from trainer.contract import EncoderSpec
from trainer.contract.recipe import Recipe, Selection
from trainer.data.manifest import DataError
from trainer.evaluation.stages.benchmarks import CELEBAMASK, W300
from trainer.evaluation.stages.downstream import prepare
from trainer.evaluation.stages.fitting import Epoch
from trainer.method.vit import Encoder, initialise

TINY = EncoderSpec(width=16, depth=4, heads=2, patch=8)
RECIPE = Recipe(epochs=2, batch=4, slice=2, average_decay=0.5)


def weights() -> dict[str, torch.Tensor]:
    encoder = Encoder(TINY, 16)
    initialise(encoder, torch.Generator().manual_seed(0))
    return encoder.state_dict()


def test_300w_from_its_lists_to_errors_of_the_two_subsets(tmp_path: Path) -> None:
    points = [[40.0 + 2 * (i % 10), 40.0 + 2 * (i // 10)] for i in range(68)]
    for name, count in ("train", 5), ("valid_common", 2), ("valid_challenge", 1):
        lines = ["header"]
        for i in range(count):
            lines.append(",".join(map(str, [f"{name}{i}.png", 0.4, 52, 52, *np.ravel(points)])))
            (tmp_path / "images").mkdir(exist_ok=True)
            draw = np.random.default_rng(i).integers(0, 255, (90, 100, 3), np.uint8)
            Image.fromarray(draw).save(tmp_path / "images" / f"{name}{i}.png")
        (tmp_path / f"face_landmarks_300w_{name}.csv").write_text("\n".join(lines))
    benchmark = replace(W300, task=replace(W300.task, size=64))
    fit = prepare(
        benchmark, tmp_path, TINY, weights(), recipe=RECIPE, device=torch.device("cpu"), input_size=32, channels=8
    )
    told: list[Epoch] = []
    found = fit.run(told.append)
    assert len(told) == 2
    assert found.metrics.keys() == {
        f"nme_{unit}{subset}" for unit in ("inter_ocular", "inter_pupil") for subset in ("", "/common", "/challenging")
    }
    full, common, hard = (found.metrics[f"nme_inter_ocular{subset}"] for subset in ("", "/common", "/challenging"))
    assert full == pytest.approx((2 * common + hard) / 3)
    assert found.note == "epoch 2, the last one, fixed before the fit; 5 of 5 training faces"


def test_celebamask_from_its_layers_to_f1_and_a_validated_epoch(tmp_path: Path) -> None:
    lines = ["idx orig_idx orig_file"]
    for i in range(8):
        original = (100 + i) if i < 4 else (170_000 + i) if i < 6 else (190_000 + i)
        lines.append(f"{i} {original - 1} {original}.jpg")
        for folder in "CelebA-HQ-img", "CelebAMask-HQ-mask-anno/0":
            (tmp_path / folder).mkdir(parents=True, exist_ok=True)
        mask = np.zeros((32, 32), np.uint8)
        mask[8 : 20 + i, 6:26] = 255
        Image.fromarray(np.repeat(np.repeat(mask, 2, 0), 2, 1)).convert("RGB").save(tmp_path / f"CelebA-HQ-img/{i}.jpg")
        Image.fromarray(mask).save(tmp_path / f"CelebAMask-HQ-mask-anno/0/{i:05d}_skin.png")
    (tmp_path / "CelebA-HQ-to-CelebA-mapping.txt").write_text("\n".join(lines))
    benchmark = replace(CELEBAMASK, task=replace(CELEBAMASK.task, size=32))
    recipe = RECIPE.model_copy(update={"selection": Selection.BEST_ON_VALIDATION, "epochs": 3, "frozen": True})
    fit = prepare(
        benchmark, tmp_path, TINY, weights(), recipe=recipe, device=torch.device("cpu"), input_size=32, channels=8
    )
    found = fit.run(lambda epoch: None)
    best = max(fit.history, key=lambda epoch: epoch.validation["f1"])
    assert found.logged["best_on_validation/f1"] == best.test["f1"]
    assert "2 of the benchmark's own validation split" in found.note
    (tmp_path / "CelebA-HQ-to-CelebA-mapping.txt").unlink()
    with pytest.raises(DataError, match=r"mapping.txt is missing"):
        prepare(benchmark, tmp_path, TINY, weights(), device=torch.device("cpu"))
