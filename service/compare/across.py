"""Two experiments side by side: arms that were trained by the same spec, or have the same levels."""

from collections.abc import Iterator, Mapping
from typing import Any

from service.compare.ranking import kind
from service.compare.stats import Paired, paired, unpaired
from service.schemas.comparison import ArmRow, Comparison, Estimate, Part, RankingMetric

APART = ("seed", "evaluation.rank_by")
Specs = Mapping[str, Mapping[str, Any]]
"""Arm -> dotted field -> value, of any of its runs, without the seed."""


class ArmPair(Part):
    """An arm of each."""

    one: str
    other: str
    differs: dict[str, tuple[str, str]]
    """Field -> its value in one and in the other; empty where they were trained by the same spec."""
    same_runs: int
    """Seeds whose run is one and the same, shared: they differ by nothing."""
    probe: Estimate | None
    other_probe: Estimate | None
    unpaired: Estimate | None
    """Other minus one over all seeds of each (Welch); n is the smaller number of seeds."""
    paired: Estimate | None
    """Other minus one over the seeds that both have."""


class Across(Part):
    one: Comparison
    other: Comparison
    metric: RankingMetric | None
    """None where they were not measured by the same probe, on the same images and annotations: then no values stand
    beside one another."""
    pairs: list[ArmPair]
    only_one: list[str]
    only_other: list[str]


def across(one: Comparison, other: Comparison, specs: Specs, other_specs: Specs) -> Across:
    """Arms are matched by their whole spec first, then by their levels; names do not count."""
    same = one.metric and other.metric and kind(one.metric) == kind(other.metric)
    metric = one.metric if same else None
    matched = list(_matches(one, other, specs, other_specs))
    pairs = [
        _pair(row, other_row, metric, _differing(specs[row.name], other_specs[other_row.name]))
        for row, other_row in matched
    ]
    return Across(
        one=one, other=other, metric=metric, pairs=pairs,
        only_one=[row.name for row in one.arms if row not in [item for item, _ in matched]],
        only_other=[row.name for row in other.arms if row not in [item for _, item in matched]],
    )  # fmt: skip


def _matches(
    one: Comparison, other: Comparison, specs: Specs, other_specs: Specs
) -> Iterator[tuple[ArmRow, ArmRow]]:  # fmt: skip
    left, other_left = list(one.arms), list(other.arms)
    for same in (
        lambda row, item: specs[row.name] == other_specs[item.name],
        lambda row, item: row.levels == item.levels,
    ):
        for row in list(left):
            found = next((item for item in other_left if same(row, item)), None)
            if found:
                left.remove(row)
                other_left.remove(found)
                yield row, found


def _pair(row: ArmRow, other: ArmRow, metric: RankingMetric | None, differs: dict[str, tuple[str, str]]) -> ArmPair:
    ids = {run.seed: run.run_id for run in row.runs}
    values, other_values = _values(row), _values(other)
    return ArmPair(
        one=row.name, other=other.name, differs=differs,
        same_runs=sum(ids.get(run.seed) == run.run_id for run in other.runs),
        probe=row.probe if metric else None, other_probe=other.probe if metric else None,
        unpaired=_estimate(unpaired(list(other_values.values()), list(values.values()))) if metric else None,
        paired=_estimate(paired(other_values, values)) if metric else None,
    )  # fmt: skip


def _estimate(found: Paired) -> Estimate:
    return Estimate(**vars(found.summary))


def _values(row: ArmRow) -> dict[int, float]:
    return {run.seed: run.value for run in row.runs if run.value is not None}


def _differing(spec: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, tuple[str, str]]:
    return {
        field: (str(spec.get(field)), str(other.get(field)))
        for field in sorted(spec.keys() | other.keys())
        if spec.get(field) != other.get(field)
    }


def dotted(spec: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Dotted field -> value of a run's spec, without what does not tell arms apart: seed, ranking, logging."""
    found: dict[str, Any] = {}
    for key, value in spec.items():
        found |= dotted(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {prefix + key: value}
    return {field: value for field, value in found.items() if field not in APART and not field.startswith("cadence.")}
