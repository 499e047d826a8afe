"""The end of a run, on rank 0: evaluate, export, and write down how it went."""

import logging
from collections.abc import Callable
from datetime import UTC, datetime

import torch
from torch import Tensor

from trainer.contract import RunSpec, records
from trainer.contract.records import Outcome, Result, StageResult, Verdict, final_metrics
from trainer.data.batches import normalise
from trainer.data.decoded import load_images
from trainer.data.manifest import Images, Split
from trainer.evaluation.evaluate import evaluate
from trainer.evaluation.sanity import held_out_noise
from trainer.loop import Parts
from trainer.method.mcf import Mcf
from trainer.store.objects import Store
from trainer.store.rundir import read_result, read_spec, read_stage
from trainer.tracking.pictures import MAX_ROWS, hide, panel
from trainer.tracking.report import RankZero
from trainer.tracking.software import software
from trainer.weights.export import export, export_address

logger = logging.getLogger(__name__)

STORE_PATIENCE_SECONDS = 300.0


def conclude(
    run: RunSpec, store: Store, parts: Parts, images: Images, split: Split, stages: tuple[StageResult, ...],
    known: Result | None, report: RankZero, device: torch.device, without_landmarks: int = 0,
) -> None:  # fmt: skip
    """Measure the trained model, export its encoder, and write result and outcome, which makes it final.

    `known`: a result of the same weights whose probe and sanity metrics are those that are asked for;
    `without_landmarks`: images to train on, of a run whose masks go by them.

    Raises DataError when the probe's images are not what the spec says, StorageError when nothing can be written.
    """
    report.journal.update(parts.step, report.mean_losses(), None, stage="evaluating")
    evaluated = known or evaluate(run, parts.model, split, images, device)
    result = Result(
        steps=parts.step, images_seen=parts.step * run.batch.global_batch, subset_size=len(split.train),
        subset_digest=split.train.digest, held_out_digest=split.held_out.digest, probe=evaluated.probe,
        floors=evaluated.floors, probe_note=evaluated.probe_note, sanity=evaluated.sanity,
        stages=stages, losses=report.mean_losses(), export=export_address(store),
        undecodable=tuple(sorted(parts.undecodable.values())), without_landmarks=without_landmarks,
        software=software(device),
    )  # fmt: skip
    for name, data in export(run, parts.model, result, store).items():
        report.log.artifact(name, data)
    report.log.metrics(parts.step, final_metrics(result))
    # Before the outcome, which is when the service looks for it.
    report.leave_unsent(STORE_PATIENCE_SECONDS)
    outcome = Outcome(verdict=Verdict.SUCCEEDED, step=parts.step, ended_at=datetime.now(UTC))
    report.journal.finish(outcome, result)
    logger.info("done: %s", ", ".join(f"{name} {value:.4g}" for name, value in final_metrics(result).items()))


def taken_over(run: RunSpec, store: Store, earlier: Store) -> Result | None:
    """Keep what has been measured of these weights before: stages are copied into this run's directory.

    Returns the result there is, where its probe and sanity metrics are what this run asks for. Raises StorageError.
    """
    before = read_spec(earlier)
    if before is None:
        return None
    there, wanted = before.measurements, run.measurements
    for name in run.evaluation.stages:
        if there.get(name) == wanted[name] and (found := read_stage(earlier, name)):
            store.put(records.stage_folder(name) + records.RESULT, found.model_dump_json(indent=1).encode())
    return read_result(earlier) if run.is_read_as(before) else None


def painter(run: RunSpec, model: Mcf, images: Images, split: Split, device: torch.device) -> Callable[[], bytes] | None:
    """Draws the picture panel of the same few held-out images at any time; None where none are held out."""
    rows = [int(row) for row in split.held_out.rows[:MAX_ROWS]]
    if not rows:
        return None
    dtype = next(model.parameters()).dtype
    loaded = load_images(images, rows, run.input_size, run.data.fit, run.data.max_pixels)
    image_BCHW = normalise(loaded.to(device), dtype)
    noise_BL = held_out_noise(run, len(rows)).to(device)
    visible = run.visible_patches(run.evaluation.mask_ratio)

    @torch.no_grad()
    def draw() -> bytes:
        reconstruction: Tensor = model.reconstruct(image_BCHW, noise_BL, visible)
        return panel(image_BCHW, hide(image_BCHW, noise_BL, visible), reconstruction)

    return draw
