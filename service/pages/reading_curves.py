"""Curves of what runs are worth while they train: a metric of the readings against images seen, by arm."""

from collections.abc import Sequence

from service.compare.table import ArmTrials, TrialRow
from service.experiments.curves import over_seeds
from service.schemas.experiments import ArmCurve
from trainer.contract.records import Metric


def names(arms: Sequence[ArmTrials], first: str | None) -> list[str]:
    """Metrics that were read while runs trained, `first` first where it is one of them; none where nothing was."""
    found = dict.fromkeys(
        metric.name
        for arm in arms
        for trial in arm.trials
        for reading in trial.readings.readings
        for metric in reading.metrics
    )
    return sorted(found, key=lambda name: name != first)


def curves(arms: Sequence[ArmTrials], name: str) -> list[ArmCurve]:
    """Of one metric; steps are images seen. Arms without a number are left out."""
    drawn = [
        over_seeds(arm.name, arm.is_baseline, _shared([h for t in arm.trials if (h := _history(t, name))]))
        for arm in arms
    ]
    return [curve for curve in drawn if curve.steps]


def _shared(histories: Sequence[list[tuple[int, float]]]) -> list[list[tuple[int, float]]]:
    """Only where every seed that has got so far was measured: nothing is drawn that was not, and the mean is of the
    same seeds from point to point."""
    last = [max(images for images, _ in history) for history in histories]
    measured = [{images for images, _ in history} for history in histories]
    kept = {
        images
        for images in set().union(*measured)
        if all(images in mine for mine, end in zip(measured, last, strict=True) if end >= images)
    }
    return [[point for point in history if point[0] in kept] for history in histories]


def _history(trial: TrialRow, name: str) -> list[tuple[int, float]]:
    """Images seen -> value; the last one is the final one."""
    points = {reading.images_seen: reading.metrics for reading in trial.readings.readings}
    if points and (result := trial.result):
        points[result.images_seen] = [*([result.probe] if result.probe else []), *result.sanity]
    found = {images: _value(metrics, name) for images, metrics in points.items()}
    return sorted((images, value) for images, value in found.items() if value is not None)


def _value(metrics: Sequence[Metric], name: str) -> float | None:
    return next((metric.value for metric in metrics if metric.name == name), None)
