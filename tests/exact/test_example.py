"""The example of docs/method.md, as somebody would run it who does not believe us."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.exact import reference
from tests.exact.ours import assert_same
from tests.exact.reference import Micro, Shape
from tests.exact.released import draw_checkpoint
from trainer import teachers
from trainer.weights.published import read_published

ROOT = Path(__file__).parents[2]
SHAPE = Shape(
    image=16, patch=8, width=64, depth=2, heads=2, decoder_width=32, decoder_depth=1, decoder_heads=4,
    hidden=20, dim=12, teacher_image=16, taps=(0, 1),
)  # fmt: skip


def test_the_example_takes_the_reference_s_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    [code] = re.findall(r"```python\n(.*?)```", (ROOT / "docs/method.md").read_text(), re.S)
    state = draw_checkpoint(SHAPE, seed=4)
    torch.save({"model": state}, tmp_path / "checkpoint.pth")
    monkeypatch.chdir(tmp_path)
    there: dict[str, Any] = {}
    exec(code, there)

    theirs, adamw = reference.wide(state), reference.AdamW()
    parts = there["image"], there["online_noise"], there["target_noise"]
    for step in range(3):
        grid = [[Micro(*(part[step, g, s] for part in parts)) for s in range(2)] for g in range(2)]
        _, gradients = reference.gradients(theirs, grid, SHAPE)
        rate = reference.learning_rate(step, 2, base=1.5e-4, batch=16, epochs=16, warm=1)
        adamw.step(theirs, gradients, rate)
    assert_same(there["gradients"], gradients, 1e-8)
    weights = {name: value.detach() for name, value in there["weights"].items()}
    assert_same(weights, {name: theirs[name].detach() for name in weights}, 1e-8)
    # The table below the example.
    run, model, device = there["run"], there["model"], torch.device("cpu")
    image, noise = there["image"][0, 0, 0], there["online_noise"][0, 0, 0]
    tokens = model.encoder(image, noise, run.visible_patches())
    assert tokens.shape == (4, 1 + run.visible_patches(), 64)
    assert model.decoder(tokens, noise).shape == (4, run.num_patches, 3 * 8 * 8)
    assert (noise.argsort(1).argsort(1) >= run.visible_patches()).sum(1).unique() == 4 - run.visible_patches()
    given = teachers.build(
        run.model_copy(update={"teacher": run.teacher.model_copy(update={"source": "any"})}),
        device,
        weights=there["teacher"].network.state_dict(),
    )
    assert given
    for one, other in zip(given(image), there["teacher"](image), strict=True):
        assert torch.equal(one, other)
    after = read_published("after.pth")
    assert after.keys() == state.keys()
    changed = {name for name in state if not torch.equal(state[name], after[name])}
    still = ("pos_embed", "running_", "num_batches", "perceptual_loss.")
    assert changed == {name for name in state if not any(part in name for part in still)}
