"""From a folder of a benchmark and a pretrained encoder to a fit."""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from trainer.contract import EncoderSpec
from trainer.contract.recipe import Recipe
from trainer.evaluation.stages.benchmarks import Benchmark
from trainer.evaluation.stages.fitting import Fit
from trainer.evaluation.stages.network import CHANNELS, INPUT_SIZE, build
from trainer.evaluation.stages.splits import split
from trainer.evaluation.team import ALONE, Team


def prepare(
    benchmark: Benchmark,
    root: Path,
    encoder: EncoderSpec,
    weights: Mapping[str, Tensor],
    *,
    recipe: Recipe | None = None,
    device: torch.device,
    input_size: int = INPUT_SIZE,
    channels: int = CHANNELS,
    team: Team = ALONE,
) -> Fit:
    """A fit before its first epoch, of one rank of the team.

    weights: of trainer.method.vit.Encoder, at whatever input size it was pretrained; recipe: None = the published one.
    Raises DataError when files of the benchmark are missing or not as published.
    """
    recipe = recipe or benchmark.recipe
    splits = split(benchmark.read(root), recipe)
    network = build(
        encoder, weights, benchmark.task.num_maps,
        frozen=recipe.frozen, seed=recipe.seed, input_size=input_size, channels=channels,
    )  # fmt: skip
    return Fit(network, benchmark.task, splits, recipe, device, team)
