"""What has to fit together between the fields of a run, each being fine alone. No torch, no files."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from trainer.contract import ranking
from trainer.contract.mask import mask_misfits
from trainer.contract.problems import Problem
from trainer.contract.stage import misfits as stage_misfits

if TYPE_CHECKING:
    from trainer.contract.run import RunSpec


def misfits(run: "RunSpec") -> Iterator[Problem]:
    """What is wrong between the fields of one run, each being fine alone."""
    if not run.data.uri:
        yield Problem(field="data.uri", asked="nothing", possible="a folder of images, an LMDB, or s3://bucket/prefix")
    if run.data.keys and run.data.format != "lmdb":
        yield Problem(
            field="data.keys", asked=f"a key list for format {run.data.format}",
            possible="a key list with format lmdb only",
        )  # fmt: skip

    if run.data.suffix and run.data.format != "shards":
        yield Problem(
            field="data.suffix", asked=f"{run.data.suffix} for format {run.data.format}",
            possible="a suffix with format shards only",
        )  # fmt: skip
    if run.input_size % run.encoder.patch:
        multiple = max(1, round(run.input_size / run.encoder.patch)) * run.encoder.patch
        yield Problem(
            field="input_size", asked=str(run.input_size),
            possible=f"a multiple of encoder.patch = {run.encoder.patch}, such as {multiple}",
        )  # fmt: skip
    for field, ratio in ("mask_ratio", run.mask_ratio), ("evaluation.mask_ratio", run.evaluation.mask_ratio):
        kept = run.visible_patches(ratio)
        if not (0 <= ratio < 1 and 1 <= kept < run.num_patches):
            yield Problem(
                field=field, asked=f"{ratio}, which keeps {max(kept, 0)} of {run.num_patches} patches",
                possible=f"a ratio that keeps 1 to {run.num_patches - 1} patches, such as 0.75",
            )  # fmt: skip
    theirs = run.contrastive.target_mask_ratio
    if theirs is not None and not (0 <= theirs < 1 and run.visible_patches(theirs) >= 1):
        yield Problem(
            field="contrastive.target_mask_ratio", asked=f"{theirs} of {run.num_patches} patches",
            possible="a ratio from 0 that keeps a patch, such as 0.5",
        )  # fmt: skip
    for field, mask, holder, held in (
        ("mask", run.mask, "mask_ratio", run.mask_ratio),
        ("contrastive.target_mask", run.contrastive.target_mask, "contrastive.target_mask_ratio", theirs),
    ):
        for name, asked, possible in mask_misfits(mask, holder, held) if mask else ():
            yield Problem(field=f"{field}.{name}", asked=asked, possible=possible)
    for name, part in ("encoder", run.encoder), ("decoder", run.decoder):
        if part.width % part.heads:
            yield Problem(
                field=f"{name}.heads", asked=f"{part.heads} heads for width {part.width}",
                possible="a divisor of the width",
            )  # fmt: skip

    batch = run.batch
    if batch.contrastive_group % batch.slice:
        yield Problem(
            field="batch.contrastive_group", asked=f"{batch.contrastive_group}",
            possible=f"a multiple of batch.slice = {batch.slice}",
        )  # fmt: skip
    elif batch.global_batch % batch.contrastive_group:
        yield Problem(
            field="batch.global_batch", asked=f"{batch.global_batch}",
            possible=f"a multiple of batch.contrastive_group = {batch.contrastive_group}",
        )  # fmt: skip

    teacher = run.teacher
    if not teacher.source:
        yield Problem(
            field="teacher.source", asked="nothing",
            possible="a weights file, s3://..., mlflow:..., run:ID, none (masked pixels instead), random (control arm)",
        )  # fmt: skip
    if teacher.sha256 and not teacher.is_file:
        yield Problem(
            field="teacher.sha256", asked=f"a digest for source {teacher.source}",
            possible="a digest with a weights file only",
        )  # fmt: skip
    if list(teacher.taps) != sorted(set(teacher.taps)) or not teacher.taps or min(teacher.taps, default=0) < 0:
        yield Problem(field="teacher.taps", asked=str(list(teacher.taps)), possible="rising block numbers from 0")
    elif not teacher.is_name and (depth := teacher.num_blocks(run.encoder)) and teacher.taps[-1] >= depth:
        yield Problem(
            field="teacher.taps", asked=str(list(teacher.taps)), possible=f"blocks 0 to {depth - 1} of {teacher.arch}"
        )
    if teacher.arch == "code" and teacher.source != "none" and not teacher.code:
        yield Problem(
            field="teacher.code", asked="nothing", possible="a Python file for arch code, by its path or s3:// address"
        )
    if teacher.code and teacher.arch != "code":
        yield Problem(
            field="teacher.code", asked=f"user code for arch {teacher.arch}", possible="user code with arch code only"
        )
    if teacher.arch == "code" and teacher.source.startswith("run:"):
        yield Problem(
            field="teacher.arch", asked=f"code for {teacher.source}, which brings its own architecture",
            possible="random, or the address of a weights file",
        )  # fmt: skip
    if teacher.loss and teacher.source == "none":
        yield Problem(field="teacher.loss", asked="a loss without a teacher", possible="a loss beside a teacher")
    if teacher.loss and teacher.normalise != "tokens":
        yield Problem(
            field="teacher.normalise", asked=f"{teacher.normalise} beside user code that compares features as they are",
            possible="one of the two: teacher.loss, teacher.normalise",
        )  # fmt: skip
    if run.initial.sha256 and not run.initial.is_file:
        yield Problem(
            field="initial.sha256", asked="a digest for source none", possible="a digest with a weights file only"
        )
    if {"pixel", "perceptual"} <= run.loss_weights.keys() and run.pixels.normalise == "patch":
        yield Problem(
            field="pixels.normalise", asked="patch beside a teacher, which has to see an image",
            possible="image, or patch with teacher none",
        )  # fmt: skip
    if not any(run.loss_weights.values()):
        yield Problem(
            field="contrastive.weight",
            asked="0 for every loss",
            possible="more than 0 for one: teacher, pixels or this",
        )
    if run.schedule.warmup > run.schedule.length:
        yield Problem(
            field="schedule.warmup", asked=f"{run.schedule.warmup} {run.schedule.unit}",
            possible=f"at most schedule.length = {run.schedule.length}",
        )  # fmt: skip
    if run.evaluation.landmarks and run.evaluation.labels:
        yield Problem(
            field="evaluation.labels", asked="labels beside landmarks", possible="one of the two: a run has one probe"
        )
    if (metric := run.evaluation.rank_by) and not ranking.is_rankable(run.evaluation, metric):
        yield Problem(
            field="evaluation.rank_by", asked=f"{metric}, which no such run has",
            possible=", ".join(ranking.rankable(run.evaluation)),
        )  # fmt: skip
    for name, stage in run.evaluation.stages.items():
        for field, asked, possible in stage_misfits(stage, run.encoder.patch, run.encoder.depth):
            yield Problem(field=f"evaluation.{name}.{field}", asked=asked, possible=possible)
