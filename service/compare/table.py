"""From runs to the comparison. Reads nothing but what it is given; what is missing stays missing."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from statistics import fmean

from service.compare import rounds_table as in_rounds
from service.compare.factors import Cell, interactions, main_effects
from service.compare.forecasts import SizedArm, forecasts
from service.compare.ranking import Evaluation, beside, floors, measured, ranking
from service.compare.rounds import Course, InRounds
from service.compare.stats import MIN_PAIRS, holm, more_seeds, paired, summarise, verdict
from service.compare.words import describe
from service.costs import FREE, Prices
from service.schemas.comparison import (
    ArmRow,
    AsOf,
    Comparison,
    Difference,
    Estimate,
    FloorCheck,
    Forecasts,
    RankingMetric,
    SeedValue,
)
from service.schemas.costs import Cost
from service.states import RunState
from trainer.contract.records import Metric, Readings, Result


@dataclass(frozen=True)
class TrialRow:
    """What the database holds of one trial."""

    seed: int
    run_id: str
    state: RunState
    reason: str
    result: Result | None
    process_seconds: float
    restarts: int
    tracking_url: str | None
    world_sizes: Sequence[int] = ()
    """Of its stretches of training, in their order."""
    speed: "TrialSpeed | None" = None
    """None before it has been measured, and where nothing was trained."""
    evaluation: Evaluation = field(default_factory=dict)
    """What it is measured on, with digests."""
    readings: Readings = field(default_factory=Readings)
    """What was measured of it while it trained."""
    pool_seconds: Mapping[str, float] = field(default_factory=dict)
    """Of its process-seconds, those whose node pool is known."""


@dataclass(frozen=True)
class TrialSpeed:
    images_per_second: float
    waiting_share: float | None
    peak_share: float | None
    compile_seconds: float


@dataclass(frozen=True)
class ArmTrials:
    name: str
    levels: dict[str, str]
    is_baseline: bool
    trials: Sequence[TrialRow]
    id: int = 0
    """In the database."""
    stopped: str = ""
    """By whom, where a person wants no more seeds of it."""


@dataclass(frozen=True)
class Question:
    """What a comparison is asked for."""

    metric: str | None = None
    """None = `evaluation.rank_by` of the spec, else the probe (ranking.py)."""
    step: int | None = None
    """Of training, that the numbers are of; None = of the ends of the runs."""
    size: int | None = None
    """Images that arms are forecast at; None = `forecast` of the spec, else no forecast."""


ORDINARY = Question()


def compare(
    experiment_id: str, name: str, arms: Sequence[ArmTrials], now: datetime, question: Question = ORDINARY,
    rank_by: str | None = None, rounds: InRounds | None = None, prices: Prices = FREE,
) -> Comparison:  # fmt: skip
    """The table of an experiment, finished or not. `rank_by`: of its spec; `rounds`: where its seeds come in rounds.

    Raises NoSuchMetric.
    """
    step, size = question.step, question.size
    metric, doubt = metric_of(arms, question.metric, rank_by)
    baseline = next((arm for arm in arms if arm.is_baseline), arms[0])
    course = course_of(arms, metric, rounds) if rounds and metric else None
    differences = in_rounds.differences(course) if course else _differences(arms, baseline, metric)
    rows = [_row(arm, metric, differences.get(arm.name), course, prices, at_a_step=step is not None) for arm in arms]
    cells = [Cell(arm.levels, _values(arm, metric), [trial.seed for trial in arm.trials]) for arm in arms]
    higher, tested = bool(metric and metric.higher_is_better), rounds is None
    table = Comparison(
        experiment_id=experiment_id,
        name=name,
        made_at=now,
        complete=all(not row.missing for row in rows) and (rounds is None or rounds.is_over),
        hours="GPU-hours" if _on_gpus(arms) else "process-hours",
        metric=metric,
        baseline=baseline.name,
        arms=_ranked(rows, metric, course),
        factors=main_effects(cells, baseline.levels, higher, tested=tested) if metric else [],
        interactions=interactions(cells, baseline.levels, higher, tested=tested) if metric else [],
        words=[],
        at=_as_of(_finished(arms), step) if step is not None else None,
        rounds=in_rounds.so_far(rounds, rows) if rounds else None,
        forecast=_forecast(arms, metric, size, step) if size else None,
        steps=sorted({r.step for arm in arms for trial in arm.trials for r in trial.readings.readings}),
    )
    return table.model_copy(update={"words": describe(table, doubt)})


def metric_of(
    arms: Sequence[ArmTrials], asked: str | None, rank_by: str | None
) -> tuple[RankingMetric | None, str]:  # fmt: skip
    """What the arms are ranked by, or None and why. Raises NoSuchMetric."""
    return ranking(_finished(arms), asked, rank_by)


def course_of(arms: Sequence[ArmTrials], metric: RankingMetric, rounds: InRounds) -> Course:
    baseline = next((arm for arm in arms if arm.is_baseline), arms[0])
    return Course(rounds, {arm.name: _values(arm, metric) for arm in arms}, baseline.name, metric.higher_is_better)


def _finished(arms: Sequence[ArmTrials]) -> list[tuple[Result, Evaluation]]:
    return [(trial.result, trial.evaluation) for arm in arms for trial in arm.trials if trial.result]


def _differences(
    arms: Sequence[ArmTrials], baseline: ArmTrials, metric: RankingMetric | None
) -> dict[str, Difference]:  # fmt: skip
    """Of every arm to the baseline, all of whose seeds were to be trained whatever they show."""
    if metric is None:
        return {}
    base_values = _values(baseline, metric)
    found = {arm.name: paired(_values(arm, metric), base_values) for arm in arms if arm is not baseline}
    adjusted = holm({name: difference.p for name, difference in found.items() if difference.p is not None})
    return {
        name: Difference(
            **vars(difference.summary), p=difference.p, p_holm=adjusted.get(name),
            verdict=verdict(difference, adjusted.get(name), metric.higher_is_better),
            more_seeds=more_seeds(difference, len(found)),
        )
        for name, difference in found.items()
    }  # fmt: skip


def _forecast(arms: Sequence[ArmTrials], metric: RankingMetric | None, size: int, step: int | None) -> Forecasts:
    if metric is None or step is not None:
        why = "arms are not ranked" if metric is None else "it is of the ends of the runs, so ask without a step"
        return Forecasts(size=size, largest=None, is_far=False, declined=why, arms=[], standings=[])
    sized = [
        SizedArm(
            arm.levels, arm.is_baseline, max((t.result.subset_size for t in arm.trials if t.result), default=None),
            _values(arm, metric), {t.seed: t.result.subset_digest for t in arm.trials if t.result},
        )
        for arm in arms
    ]  # fmt: skip
    return forecasts(sized, size, higher_is_better=metric.higher_is_better)


def _as_of(results: Sequence[tuple[Result, Evaluation]], step: int) -> AsOf:
    return AsOf(step=step, images=fmean(result.images_seen for result, _ in results) if results else 0)


def _on_gpus(arms: Sequence[ArmTrials]) -> bool:
    results = [trial.result for arm in arms for trial in arm.trials if trial.result]
    return bool(results) and all("gpu" in result.software for result in results)


def _values(
    arm: ArmTrials, metric: RankingMetric | None, pick: Callable[[Result], float | None] | None = None
) -> dict[int, float]:
    """Seed -> value of the finished trials."""
    if metric is None:
        return {}
    pick = pick or partial(_value, metric)
    picked = {trial.seed: pick(trial.result) for trial in arm.trials if trial.result}
    return {seed: value for seed, value in picked.items() if value is not None}


def _value(metric: RankingMetric, result: Result) -> float | None:
    found = measured(result, metric.name)
    return found.metric.value if found else None


def _row(
    arm: ArmTrials, metric: RankingMetric | None, difference: Difference | None, course: Course | None,
    prices: Prices, *, at_a_step: bool,
) -> ArmRow:  # fmt: skip
    results = [trial.result for trial in arm.trials if trial.result]
    runs = [_seed(trial, metric) for trial in arm.trials]
    speeds = [trial.speed for trial in arm.trials if trial.speed]
    return ArmRow(
        name=arm.name,
        levels=arm.levels,
        is_baseline=arm.is_baseline,
        rank=None,
        seeds=len(arm.trials),
        probe=Estimate(**vars(summarise(list(_values(arm, metric).values())))) if metric else None,
        difference=difference,
        floors=_floors(arm, metric),
        sanity=_means(beside(results, metric.name if metric else "")),
        images_seen=fmean(result.images_seen for result in results) if results else None,
        gpu_hours=sum(trial.process_seconds for trial in arm.trials) / 3600,
        cost=_cost(arm, prices),
        images_per_second=_mean([speed.images_per_second for speed in speeds]),
        peak_share=_mean([speed.peak_share for speed in speeds]),
        waiting_share=_mean([speed.waiting_share for speed in speeds]),
        compile_seconds=_mean([speed.compile_seconds for speed in speeds]),
        rounds=in_rounds.of_arm(course, arm.name) if course else None,
        restarts=sum(trial.restarts for trial in arm.trials),
        world_sizes=sorted({size for trial in arm.trials for size in trial.world_sizes}),
        runs=runs,
        missing=[
            run
            for run, trial in zip(runs, arm.trials, strict=True)
            # On its way a run has numbers before it has succeeded, and one that has may not have been measured there.
            if (trial.result is None if at_a_step else run.state is not RunState.SUCCEEDED)
        ],
    )


def _cost(arm: ArmTrials, prices: Prices) -> Cost | None:
    by_pool: Counter[str] = Counter()
    for trial in arm.trials:
        by_pool.update(trial.pool_seconds)
    return prices.of(sum(trial.process_seconds for trial in arm.trials), by_pool)


def _mean(values: Sequence[float | None]) -> float | None:
    """Of those that are known."""
    known = [value for value in values if value is not None]
    return fmean(known) if known else None


def _seed(trial: TrialRow, metric: RankingMetric | None) -> SeedValue:
    value = _value(metric, trial.result) if metric and trial.result else None
    return SeedValue(
        seed=trial.seed, run_id=trial.run_id, state=trial.state, value=value,
        reason=trial.reason or (trial.readings.note if not trial.result and trial.state is RunState.SUCCEEDED else ""),
        tracking_url=trial.tracking_url,
    )  # fmt: skip


def _floors(arm: ArmTrials, metric: RankingMetric | None) -> FloorCheck | None:
    if metric is None:
        return None
    known = [found for trial in arm.trials if trial.result and (found := floors(trial.result, metric.name))]
    values = _values(arm, metric)
    if not known or not values:
        return None
    pixels = fmean(floor.pixels for floor in known)
    random_encoder = fmean(floor.random_encoder for floor in known)
    sign = 1.0 if metric.higher_is_better else -1.0
    gains = {}
    for name, floor_of in ("untrained encoder", "random_encoder"), ("raw pixels", "pixels"):
        floor = _values(arm, metric, partial(_floor, metric.name, floor_of))
        gains[name] = summarise([sign * (values[seed] - floor[seed]) for seed in values.keys() & floor.keys()])
    above: bool | None
    fewest = min(gain.n for gain in gains.values())
    if fewest < MIN_PAIRS:
        above, words = None, f"n = {fewest}: no verdict"
    else:
        below = [name for name, gain in gains.items() if gain.low is None or gain.low <= 0]
        above = not below
        words = "better than both" if above else f"not shown to be better than: {', '.join(below)}"
    return FloorCheck(pixels=pixels, random_encoder=random_encoder, above=above, words=words)


def _floor(metric: str, name: str, result: Result) -> float | None:
    found: float | None = getattr(floors(result, metric), name, None)
    return found


def _means(metrics: Sequence[Metric]) -> dict[str, float]:
    values: dict[str, list[float]] = {}
    for metric in metrics:
        values.setdefault(f"{metric.name} ({metric.unit})" if metric.unit else metric.name, []).append(metric.value)
    return {name: fmean(found) for name, found in values.items()}


def _ranked(rows: list[ArmRow], metric: RankingMetric | None, course: Course | None) -> list[ArmRow]:
    """Best first where there is a probe; arms without a value keep their order at the end.

    Where seeds come in rounds arms have different ones: means are taken over those that all have, and arms that are
    shown to be worse come last. Else the luck of few seeds could put one first that has been shown to lose.
    """
    if metric is None:
        return rows
    means = {row.name: row.probe.mean for row in rows if row.probe and row.probe.mean is not None}
    behind = {row.name: course is not None and _is_shown_worse(row) for row in rows}
    for part in (False, True) if course else ():
        names = [name for name in means if behind[name] is part]
        common = set.intersection(*(set(course.arms[name]) for name in names)) if course and names else set()
        if course and common:
            means |= {name: fmean(course.arms[name][seed] for seed in common) for name in names}
    sign = -1.0 if metric.higher_is_better else 1.0
    places = {name: (behind[name], sign * mean) for name, mean in means.items()}
    order = sorted(places.values())
    ranked = [
        row.model_copy(update={"rank": 1 + order.index(places[row.name]) if row.name in places else None})
        for row in rows
    ]
    return sorted(ranked, key=lambda row: row.rank or len(rows) + 1)


def _is_shown_worse(row: ArmRow) -> bool:
    of_all = row.rounds is not None and row.rounds.worse_than is not None
    return of_all or (row.difference is not None and row.difference.verdict == "worse")
