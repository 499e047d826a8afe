"""What is said of the cost of runs before there are any."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from service.experiments.estimate import macs_per_image
from trainer import teachers
from trainer.contract import RunSpec
from trainer.contract.presets import TINY


def run(**teacher: Any) -> RunSpec:
    return RunSpec.model_validate({
        **TINY, "data": {"uri": "/faces"}, "input_size": 32, "teacher": teacher,
        "schedule": {"unit": "steps", "length": 60, "warmup": 5},
    })  # fmt: skip


@pytest.mark.parametrize("size", [112, 224])
def test_a_small_teacher_is_not_taken_for_a_vit(faces: Path, size: int) -> None:
    asked = run(
        source=str(faces.parent / "teachers/faceexpr.npz"), arch="face-api", taps=[1, 3], input_size=size,
        resize="bilinear",
    )  # fmt: skip
    with FlopCounterMode(display=False) as counted:
        teachers.build(asked, torch.device("cpu"))(torch.rand(1, 3, 32, 32))  # type: ignore[misc]
    once = counted.get_total_flops() / 2
    # On the image, on the prediction, and back through the prediction.
    assert macs_per_image(asked) - macs_per_image(run(source="none")) == pytest.approx(3 * once, rel=0.02)


def test_an_earlier_encoder_as_teacher_costs_what_its_name_says() -> None:
    small, large = (macs_per_image(run(source="random", arch=f"vit-{width}x4x3-p8", taps=[1, 3])) for width in (48, 96))
    alone = macs_per_image(run(source="none"))
    # 17 tokens: nearly all of it is matrices of width x width.
    assert (large - alone) / (small - alone) == pytest.approx(4, rel=0.1)
