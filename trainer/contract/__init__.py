"""The contract: what a run and an experiment are, and what a run leaves behind. Pydantic only; no torch, no clock.

    from trainer.contract import ExperimentSpec, RunSpec

`run`, `mask`, `code`, `stage` and `experiment` are what a user may write, `identity` what makes two of them the same,
`presets` and `recipe` the values that are filled in.
`checks` finds what does not fit together, as `problems`. `ablation` expands an experiment into arms and runs.
`records` is what a run writes into its directory. `request` is what `mcf evaluate` asks for.
`plain` reads YAML and JSON.
"""

from trainer.contract.code import Code
from trainer.contract.experiment import ExperimentSpec, Placement
from trainer.contract.mask import PARTS, Mask, Part
from trainer.contract.problems import Problem, SpecError
from trainer.contract.run import (
    ENCODERS,
    EXPORTED_ARCH,
    IMAGENET_MEAN,
    IMAGENET_STD,
    MAX_PIXELS,
    Batch,
    Cadence,
    Contrastive,
    Data,
    DecoderSpec,
    Ema,
    EncoderSpec,
    Evaluation,
    Initial,
    Optimizer,
    Pixels,
    RunSpec,
    Schedule,
    TeacherSpec,
    asked_subset_seed,
)  # fmt: skip

__all__ = [
    "ENCODERS", "EXPORTED_ARCH", "IMAGENET_MEAN", "IMAGENET_STD", "MAX_PIXELS", "PARTS", "Batch", "Cadence",
    "Code", "Contrastive", "Data", "DecoderSpec", "Ema", "EncoderSpec", "Evaluation", "ExperimentSpec", "Initial",
    "Mask", "Optimizer", "Part", "Pixels", "Placement", "Problem", "RunSpec", "Schedule", "SpecError", "TeacherSpec",
    "asked_subset_seed",
]  # fmt: skip
