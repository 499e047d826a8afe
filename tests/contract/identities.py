"""Forty specs and the digests that they have for good: `python -m tests.contract.identities` writes identities.json.

It is written once a schema (trainer/contract/identity.py). A line that changes trains again what has been trained.
"""

import json
from pathlib import Path
from typing import Any

from trainer.contract import RunSpec
from trainer.contract.presets import PRESETS

FILE = Path(__file__).with_name("identities.json")
BASE: dict[str, Any] = {"data": {"uri": "/data/faces", "sha256": "a" * 64}, "teacher": "none"}
TAUGHT = {**BASE, "teacher": {"source": "/teachers/mocov3.pth", "sha256": "b" * 64}}
WFLW = {"benchmark": "wflw", "uri": "/data/WFLW", "sha256": "c" * 64}
LAPA = {"benchmark": "lapa", "uri": "s3://faces/LaPa", "sha256": "d" * 64}
PROBE = {"landmarks": "/data/landmarks.json", "sha256": "e" * 64}

SPECS: dict[str, dict[str, Any]] = {
    **{f"preset {name}": {**preset, "data": BASE["data"]} | {"teacher": {**preset.get("teacher", {}), "source": "none"}}
       for name, preset in PRESETS.items()},
    "data not looked at": {**BASE, "data": {"uri": "/data/faces"}},
    "lmdb not looked at": {**BASE, "data": {"uri": "/data/ms1m", "format": "lmdb", "keys": "/data/keys.txt"}},
    "subset": {**BASE, "data": {**BASE["data"], "subset_size": 1000, "subset_seed": 3}},
    "squash": {**BASE, "data": {**BASE["data"], "fit": "squash", "flip": False}},
    "strict": {**BASE, "data": {**BASE["data"], "max_undecodable": 0}},
    "seed": {**BASE, "seed": 7},
    "input size": {**BASE, "input_size": 112},
    "mask ratio": {**BASE, "mask_ratio": 0.5},
    "encoder": {**BASE, "encoder": "vit-s16"},
    "decoder": {**BASE, "decoder": "256x2"},
    "decoder heads": {**BASE, "decoder": "256x2x8"},
    "taught": TAUGHT,
    "taught, not looked at": {**BASE, "teacher": "/teachers/mocov3.pth"},
    "random teacher": {**BASE, "teacher": {"source": "random", "seed": 5}},
    "taps": {**BASE, "teacher": {**TAUGHT["teacher"], "taps": [3, 7, 11]}},
    "teacher's details": {**BASE, "teacher": {
        **TAUGHT["teacher"], "tokens": "patches", "input_size": 112, "resize": "bilinear", "normalise": "channels",
        "visible": "image", "weight": 10}},
    "teacher's input": {**BASE, "teacher": {**TAUGHT["teacher"], "mean": [0.5] * 3, "std": [0.5] * 3}},
    "initial": {**BASE, "initial": {"source": "/weights/mcf.pth", "sha256": "f" * 64, "parts": "encoder"}},
    "pixels beside a teacher": {**TAUGHT, "pixels": {"weight": 0.5, "patches": "all"}},
    "pixels": {**BASE, "pixels": {"normalise": "patch"}},
    "batch": {**BASE, "batch": {"slice": 32, "contrastive_group": 128, "global_batch": 1024}},
    "no contrastive": {**BASE, "contrastive": {"weight": 0}},
    "contrastive": {**BASE, "contrastive": {"temperature": 0.1, "hidden": 512, "dim": 64, "target_mask_ratio": 0}},
    "ema": {**BASE, "ema": {"momentum": 0.996, "ramp": "cosine", "per": "step"}},
    "optimizer": {**BASE, "optimizer": {"base_lr": 1e-3, "betas": [0.9, 0.999], "eps": 1e-6, "weight_decay": 0.1}},
    "clipped": {**BASE, "optimizer": {"clip_norm": 3}},
    "steps": {**BASE, "schedule": {"unit": "steps", "length": 100, "warmup": 10, "min_lr": 1e-5}},
    "float32": {**BASE, "precision": "float32"},
    "held out": {**BASE, "evaluation": {"held_out": 50}},
    "cadence": {**BASE, "cadence": {"checkpoint_steps": 5, "keep_checkpoints": 1, "log_steps": 1, "picture_steps": 7}},
    "sanity": {**BASE, "evaluation": {"mask_ratio": 0.5}},
    "probe": {**BASE, "evaluation": PROBE},
    "probe not looked at": {**BASE, "evaluation": {"landmarks": "/data/landmarks.json", "folds": 3}},
    "labels": {**BASE, "evaluation": {"labels": "/data/labels.csv", "images": "/data/other", "sha256": "e" * 64}},
    "alignment": {**BASE, "evaluation": {"alignment": WFLW}},
    "parsing": {**BASE, "evaluation": {"parsing": LAPA}},
    "everything": {**TAUGHT, "evaluation": {
        **PROBE, "alignment": {**WFLW, "epochs": 3, "frozen": True}, "parsing": LAPA}},
}  # fmt: skip


def identity(spec: RunSpec) -> dict[str, Any]:
    return {"pretraining": spec.pretraining, "measurements": spec.measurements, "digest": spec.digest}


if __name__ == "__main__":
    found = {name: identity(RunSpec.model_validate(asked)) for name, asked in SPECS.items()}
    FILE.write_text(json.dumps(found, indent=1) + "\n")
