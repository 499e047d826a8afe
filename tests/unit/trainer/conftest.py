"""The tiny run that trainer tests build on."""

from pathlib import Path

import pytest

from trainer.contract import RunSpec
from trainer.contract.presets import TINY


@pytest.fixture
def tiny_run(tiny_faces: Path) -> RunSpec:
    """The tiny preset on drawn faces, against a random teacher."""
    teacher = {**TINY["teacher"], "source": "random"}
    return RunSpec.model_validate({
        **TINY, "data": {"uri": str(tiny_faces)}, "teacher": teacher, "evaluation": {"held_out": 8},
    })  # fmt: skip
