"""The example of docs/method.md, as somebody would run it who does not believe us."""

import re
import subprocess
import sys
from pathlib import Path

import torch

from tests.exact.reference import Shape
from tests.exact.released import draw_checkpoint
from trainer.published import read_published

ROOT = Path(__file__).parents[2]
# One head in the encoder, and in the decoder as many as the spec's default.
SHAPE = Shape(
    image=16, patch=8, width=64, depth=2, heads=1, decoder_width=32, decoder_depth=1, decoder_heads=16,
    hidden=20, dim=12, teacher_image=16, taps=(0, 1),
)  # fmt: skip


def test_the_example_runs_and_moves_what_a_step_moves(tmp_path: Path) -> None:
    [code] = re.findall(r"```python\n(.*?)```", (ROOT / "docs/method.md").read_text(), re.S)
    torch.save({"model": draw_checkpoint(SHAPE, seed=4)}, tmp_path / "checkpoint.pth")
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    before, after = (read_published(tmp_path / name) for name in ("checkpoint.pth", "after.pth"))
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    still = ("pos_embed", "running_", "num_batches", "perceptual_loss.")
    assert changed == {name for name in before if not any(part in name for part in still)}
