"""GPU-hours of runs before they run: from finished runs of the same shape where there are any, else from arithmetic."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from sqlalchemy import select
from sqlalchemy.orm import Session

from service.states import RunState
from service.tables import Run
from trainer.contract import EXPORTED_ARCH, RunSpec

# Of one process, sustained: 40 % of an A100's bf16 peak, and what two to four CPU cores give (measured).
GPU_FLOPS, CPU_FLOPS = 1.2e14, 5e10
# Of a process that starts, and measures and exports its model in the end (measured, tiny preset, one CPU core).
AROUND_SECONDS = 12.0
# Of the small network of that name, counted by torch's FlopCounterMode, at its own input size in pixels.
FACE_API_MACS, FACE_API_SIZE = 5.15e7, 112
# Runs looked at for a measured speed; the newest ones.
HISTORY = 200


@dataclass(frozen=True)
class Estimated:
    gpu_hours: float
    basis: str


def estimate(session: Session, runs: Sequence[tuple[RunSpec, int]], on_gpu: bool) -> Estimated:
    """Process-hours of `runs`, given as (spec, optimizer steps)."""
    measured = _measured(session)
    speed = GPU_FLOPS if on_gpu else CPU_FLOPS
    seconds, known = 0.0, 0
    for spec, steps in runs:
        images = steps * spec.batch.global_batch
        per_image = measured.get(_shape(spec))
        if per_image is not None:
            known += 1
            seconds += images * per_image
        else:
            seconds += images * 2 * macs_per_image(spec) / speed + AROUND_SECONDS
    basis = f"{known} of {len(runs)} runs from finished runs of the same shape"
    if known < len(runs):
        basis += f", the rest from arithmetic at {speed / 1e12:g} TFLOP/s a process: a rough guess"
        if any(spec.evaluation.stages for spec, _ in runs):
            basis += ", without stages of evaluation"
    return Estimated(seconds / 3600, basis)


def macs_per_image(spec: RunSpec) -> float:
    """Multiply-adds of one image's forward and backward passes, heads and evaluation left out."""
    encoder, decoder = spec.encoder, spec.decoder
    visible, tokens = spec.visible_patches() + 1, spec.num_patches + 1
    encode = _transformer(visible, encoder.width, encoder.depth)
    total = 3 * encode + 3 * _transformer(tokens, decoder.width, decoder.depth)
    if spec.contrastive.weight > 0:
        total += encode  # target, no gradient
    if spec.teacher.source != "none":
        # On the image, on the prediction, and the gradient with respect to the prediction.
        total += 3 * _teacher(spec)
    return total


def _teacher(spec: RunSpec) -> float:
    """Of one forward pass of the teacher."""
    teacher, size = spec.teacher, spec.teacher.input_size or spec.input_size
    if teacher.arch == "as-encoder":
        return _transformer(spec.num_patches + 1, spec.encoder.width, spec.encoder.depth)
    if teacher.arch == "face-api":
        return FACE_API_MACS * (size / FACE_API_SIZE) ** 2
    if exported := re.fullmatch(EXPORTED_ARCH, teacher.arch):
        width, depth, patch = (int(exported[name]) for name in ("width", "depth", "patch"))
        return _transformer((size // patch) ** 2 + 1, width, depth)
    return _transformer(197, 768, 12)  # what most others are: ViT-B/16


def _transformer(tokens: int, width: int, depth: int) -> float:
    return float(depth * (12 * tokens * width**2 + 2 * tokens**2 * width))


def _measured(session: Session) -> dict[tuple[object, ...], float]:
    """Process-seconds per image, by shape, of runs that have finished here."""
    rows: Iterable[tuple[dict[str, object], float, int]] = session.execute(
        select(Run.spec, Run.process_seconds, Run.step)
        .where(Run.state == RunState.SUCCEEDED, Run.step > 0, Run.process_seconds > 0)
        .order_by(Run.ended_at.desc())
        .limit(HISTORY)
    )
    found: dict[tuple[object, ...], list[float]] = {}
    for payload, seconds, steps in rows:
        spec = RunSpec.model_validate(payload)
        found.setdefault(_shape(spec), []).append(seconds / (steps * spec.batch.global_batch))
    return {shape: sum(values) / len(values) for shape, values in found.items()}


def _shape(spec: RunSpec) -> tuple[object, ...]:
    """What decides the speed of a run."""
    teacher = (spec.teacher.source == "none", spec.teacher.arch, spec.teacher.code, spec.teacher.taps)
    stages = tuple(spec.evaluation.stages.values())
    return (spec.encoder, spec.decoder, spec.input_size, spec.mask_ratio, spec.batch, *teacher, spec.precision, stages)
