"""Named starting points, so that a real spec stays under twelve lines. Each is a partial RunSpec."""

from typing import Any

from trainer.contract.run import ENCODERS

# Small enough that a run takes seconds on a laptop's CPU, and has every part of a real one: two groups
# of two slices, a target that moves, a teacher with taps, checkpoints and pictures.
TINY: dict[str, Any] = {
    "input_size": 64,
    "encoder": ENCODERS["vit-tiny8"],
    "decoder": {"width": 64, "depth": 1, "heads": 4},
    "teacher": {"arch": "as-encoder", "taps": [1, 3]},
    "batch": {"slice": 16, "contrastive_group": 32, "global_batch": 64},
    "contrastive": {"hidden": 256, "dim": 64},
    "optimizer": {"base_lr": 2e-3},
    "schedule": {"unit": "steps", "length": 40, "warmup": 4},
    "precision": "float32",
    "cadence": {"checkpoint_steps": 20, "keep_checkpoints": 2, "log_steps": 5, "picture_steps": 20},
    "evaluation": {"held_out": 20},
}

PRESETS: dict[str, dict[str, Any]] = {
    "tiny": TINY,
    "vit-s16": {"encoder": ENCODERS["vit-s16"], "decoder": {"width": 256, "depth": 2, "heads": 16}},
    "vit-b16": {},
    "vit-l16": {"encoder": ENCODERS["vit-l16"]},
    "vit-h14": {"encoder": ENCODERS["vit-h14"]},
}
