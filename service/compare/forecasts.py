"""What arms would be with more images, where an experiment varies `data.subset_size`; power_law.py has the numbers."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from service.compare.power_law import Declined, Forecast, Interval, difference, forecast
from service.schemas.comparison import ArmForecast, CurvePoint, Forecasts, Predicted, Standing

FACTOR = "data.subset_size"
POINTS = 40
"""Of a curve that is drawn."""

Others = tuple[tuple[str, str], ...]
"""Levels of the other factors."""


@dataclass(frozen=True)
class SizedArm:
    """An arm, with the images that it was trained on."""

    levels: Mapping[str, str]
    is_baseline: bool
    size: int | None
    """None before a run of it has finished."""
    values: Mapping[int, float]
    """Seed -> the ranking metric."""
    draws: Mapping[int, str] = field(default_factory=dict)
    """Seed -> digest of the images that it was trained on."""


def forecasts(arms: Sequence[SizedArm], size: int, *, higher_is_better: bool) -> Forecasts:
    """Arms that differ in `data.subset_size` alone are one curve."""
    groups: dict[Others, list[SizedArm]] = {}
    for arm in arms:
        groups.setdefault(tuple((k, v) for k, v in arm.levels.items() if k != FACTOR), []).append(arm)
    if all(FACTOR not in arm.levels for arm in arms):
        groups = {}
    made = [_of_one(mine, size, higher_is_better=higher_is_better) for mine in groups.values()]
    found = [_arm(others, mine, one, size) for (others, mine), one in zip(groups.items(), made, strict=True)]
    known = [one for one in made if isinstance(one, Forecast)]
    return Forecasts(
        size=size, largest=max((one.curve.sizes[-1] for one in known), default=None),
        is_far=any(one.is_far for one in known), declined="" if groups else f"no factor of the experiment is {FACTOR}",
        arms=found, standings=_standings(found, made, higher_is_better=higher_is_better),
    )  # fmt: skip


def _of_one(arms: Sequence[SizedArm], size: int, *, higher_is_better: bool) -> Forecast | str:
    """The forecast, or why there is none."""
    try:
        return forecast(_points(arms), size, higher_is_better=higher_is_better)
    except Declined as error:
        return str(error)


def _points(arms: Sequence[SizedArm]) -> dict[int, Mapping[int, float]]:
    return {arm.size: arm.values for arm in arms if arm.size is not None}


def _shares_draw(arms: Sequence[SizedArm]) -> bool:
    """Whether all seeds were trained on the same images at each size.

    Not asked of the largest size, which may be all the images there are: they are the same whatever the draw.
    """
    *smaller, _ = sorted((arm for arm in arms if arm.size is not None), key=lambda arm: arm.size or 0)
    return all(len(set(arm.draws.values())) == 1 for arm in smaller)


def _arm(others: Others, arms: Sequence[SizedArm], one: Forecast | str, size: int) -> ArmForecast:
    named = ArmForecast(
        name=" ".join(f"{name}={level}" for name, level in others) or "all arms", levels=dict(others),
        is_baseline=any(arm.is_baseline for arm in arms), declined=one if isinstance(one, str) else "",
    )  # fmt: skip
    if isinstance(one, str):
        return named
    curve = one.curve
    along = np.geomspace(curve.sizes[0], max(size, curve.sizes[-1]), POINTS)
    return named.model_copy(update={
        "at_size": _predicted(one.at_size), "check": _predicted(one.check), "check_holds": one.check_holds,
        "seen": one.seen, "limit": curve.limit, "seeds": curve.seeds, "means": curve.means,
        "shares_draw": _shares_draw(arms),
        # The last one as the table has it, which knows more than the curve: how much the first size matters.
        "curve": [
            *(CurvePoint(size=float(n), **vars(_predicted(curve.at(float(n))))) for n in along[:-1]),
            CurvePoint(size=float(along[-1]), **vars(_predicted(one.at_size))),
        ],
    })  # fmt: skip


def _standings(
    found: Sequence[ArmForecast], made: Sequence[Forecast | str], *, higher_is_better: bool
) -> list[Standing]:
    """Every other curve against the baseline's, at the largest size and at the one that is asked for."""
    pairs = list(zip(found, made, strict=True))
    base = next((one for arm, one in pairs if arm.is_baseline), None)
    if not isinstance(base, Forecast):
        return []
    told = []
    for arm, one in pairs:
        if arm.is_baseline or not isinstance(one, Forecast):
            continue
        gap, now = difference(one.at_size, base.at_size), one.seen - base.seen
        sign = 1 if higher_is_better else -1
        ahead_now = sign * now > 0
        shown = gap.low > 0 or gap.high < 0
        then = "" if not shown else "stays" if (sign * gap.value > 0) == ahead_now else "changes"
        told.append(
            Standing(name=arm.name, seen=now, forecast=_predicted(gap), is_ahead=ahead_now, order=then or "not shown")
        )
    return told


def _predicted(found: Interval) -> Predicted:
    return Predicted(value=found.value, low=found.low, high=found.high)
