"""The contract: what a run and an experiment are, and what a run leaves behind. Pydantic only; no torch, no clock.

    from trainer.contract import ExperimentSpec, RunSpec

`run` and `experiment` are what a user may write; `checks` is what has to fit together; `ablation` expands an experiment
into arms and runs; `records` is what a run writes into its directory.
"""

from trainer.contract.run import (
    ENCODERS,
    EXPORTED_ARCH,
    IMAGENET_MEAN,
    IMAGENET_STD,
    Batch,
    Cadence,
    Contrastive,
    Data,
    Decoder,
    Ema,
    Encoder,
    Evaluation,
    ExperimentSpec,
    Frozen,
    Initial,
    Optimizer,
    Pixels,
    Placement,
    Problem,
    RunSpec,
    Schedule,
    SpecError,
    Teacher,
)

__all__ = [
    "ENCODERS",
    "EXPORTED_ARCH",
    "IMAGENET_MEAN",
    "IMAGENET_STD",
    "Batch",
    "Cadence",
    "Contrastive",
    "Data",
    "Decoder",
    "Ema",
    "Encoder",
    "Evaluation",
    "ExperimentSpec",
    "Frozen",
    "Initial",
    "Optimizer",
    "Pixels",
    "Placement",
    "Problem",
    "RunSpec",
    "Schedule",
    "SpecError",
    "Teacher",
]
