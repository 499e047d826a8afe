"""The numbers a run is judged by: probe, its floors, and the sanity metrics; at its end, and while it trains."""

import logging
from typing import NamedTuple

import torch
from torch import Tensor

from trainer.contract import RunSpec
from trainer.contract.ranking import NEIGHBOUR_NME
from trainer.contract.records import Floors, Metric, StageResult
from trainer.data.batches import normalise
from trainer.data.decoded import OnDemand, load_images
from trainer.data.manifest import Images, Split
from trainer.evaluation.probe import ProbeTask, encoder_features, pixel_features, probe_task
from trainer.evaluation.sanity import sanity_floors, sanity_metrics
from trainer.evaluation.team import Dealt, Team
from trainer.method.mcf import Mcf, build

logger = logging.getLogger(__name__)


class Evaluated(NamedTuple):
    """The parts of a Result that are measured on the trained model."""

    probe: Metric | None
    floors: Floors | None
    probe_note: str
    sanity: list[Metric]
    stages: tuple[StageResult, ...] = ()
    """Fitted before this."""


def evaluate(run: RunSpec, model: Mcf, split: Split, images: Images, device: torch.device) -> Evaluated:
    """Measure a trained model that is on `device`; `images`: where the training data's images come from.

    Raises DataError when the probe's images are not what the spec says.
    """
    held_out = load_images(images, split.held_out, run.input_size, run.data.fit, run.data.max_pixels)
    image_NCHW, untrained = normalise(held_out.to(device), model.encoder.cls_token.dtype), build(run).encoder.to(device)
    sanity = sanity_metrics(run, model, image_NCHW) + sanity_floors(run, untrained, image_NCHW)
    task = probe_task(run)
    if task is None:
        return Evaluated(None, None, "no probe: the spec names neither landmarks nor labels", sanity)
    probe, neighbour = _read_off(task, encoder_features(model.encoder, task.image_nCHW, device), NEIGHBOUR_NME)
    pixels, of_pixels = _read_off(task, pixel_features(task.image_nCHW, device), "floor/neighbour_pixels")
    random_encoder, of_random = _read_off(
        task, encoder_features(untrained, task.image_nCHW, device), "floor/neighbour_random_encoder"
    )
    floors = Floors(pixels=pixels.value, random_encoder=random_encoder.value)
    sanity += [metric for metric in (neighbour, of_pixels, of_random) if metric]
    seen = len(split.train.among(task.contents))
    note = f"{task.note}; {seen} of the images were trained on, without their annotations"
    logger.info(
        "%s %.3f, raw pixels %.3f, untrained encoder %.3f",
        probe.name,
        probe.value,
        floors.pixels,
        floors.random_encoder,
    )
    return Evaluated(probe, floors, note, sanity)


class NotFinite(NamedTuple):
    """Why a model cannot be measured."""

    what: str


class Reader:
    """Measures a model while it trains, as `evaluate` does at the end, but for the floors.

    Each rank has one, and holds its own part of the images. Every method is a collective.
    """

    def __init__(self, run: RunSpec, split: Split, images: Images, team: Team, device: torch.device) -> None:
        """Raises DataError when the probe's images are not what the spec says."""
        self._run, self._device = run, device
        self._held_out = Dealt(len(split.held_out), team)
        shown = OnDemand(images, split.held_out, run.input_size, run.data.fit, len(split.held_out), run.data.max_pixels)
        self._held_out_nCHW = shown.get(list(self._held_out.mine)).image_BCHW
        self._task = probe_task(run, team)

    def read(self, model: Mcf) -> tuple[Metric | None, list[Metric]] | NotFinite:
        """The probe, None where the run has none, and the sanity metrics; the same on every rank."""
        if any(not weight.isfinite().all() for weight in model.parameters()):
            return NotFinite("weights")
        feature_nF = encoder_features(model.encoder, self._task.image_nCHW, self._device) if self._task else None
        if feature_nF is not None and self._is_bad_anywhere(feature_nF):
            return NotFinite("features of the encoder")
        dtype = model.encoder.cls_token.dtype
        held_out_nCHW = normalise(self._held_out_nCHW.to(self._device), dtype)
        sanity = sanity_metrics(self._run, model, held_out_nCHW, self._held_out)
        if self._task is None or feature_nF is None:
            return None, sanity
        probe, neighbour = _read_off(self._task, feature_nF, NEIGHBOUR_NME)
        return probe, [*sanity, *([neighbour] if neighbour else [])]

    def _is_bad_anywhere(self, feature_nF: Tensor) -> bool:
        bad = (~feature_nF.isfinite()).any().to(torch.float32).view(1)
        return bool(self._held_out.team.sum(bad) > 0)


def _read_off(task: ProbeTask, feature_NF: Tensor, neighbour: str) -> tuple[Metric, Metric | None]:
    """Probe and error of neighbours, under that name, with the same features, which are large and not kept."""
    return task.measure(feature_NF), task.measure_neighbours(feature_NF, neighbour)
