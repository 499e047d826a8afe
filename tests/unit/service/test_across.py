"""Two experiments side by side, and a report against the same request trained again."""

from dataclasses import replace
from typing import Any

import pytest
from scipy import stats as reference

from service.compare.across import Across, across, dotted
from service.compare.across_words import why_not
from service.compare.reproduce import numbers, other_digests
from service.compare.stats import unpaired
from service.compare.table import ArmTrials, compare
from service.schemas.comparison import Comparison, Digest
from tests.unit.service.test_compare import NOW, arm, trial
from trainer.contract.records import Metric, StageResult


def experiment(*arms: ArmTrials) -> Comparison:
    return compare("e1", "t", arms, NOW)


def side_by_side(one: Comparison, other: Comparison, specs: dict[str, Any], other_specs: dict[str, Any]) -> Across:
    found = across(one, other, specs, other_specs)
    assert Across.model_validate_json(found.model_dump_json()) == found
    return found


def test_arms_are_matched_by_what_was_trained_and_not_by_what_they_are_called() -> None:
    one = experiment(arm("a=1", 5.0, 5.1, 5.3, baseline=True), arm("a=2", 4.0, 4.2, 4.1), arm("a=3", 7.0))
    other = experiment(arm("b=9", 4.4, 4.1, 4.6, 4.0, baseline=True), arm("a=3", 6.0), arm("new", 1.0))
    found = side_by_side(
        one,
        other,
        {"a=1": {"x": 1}, "a=2": {"x": 2}, "a=3": {"x": 3}},
        {"b=9": {"x": 2}, "a=3": {"x": 4}, "new": {"x": 5}},
    )
    assert [(pair.one, pair.other, pair.differs) for pair in found.pairs] == [
        ("a=2", "b=9", {}), ("a=3", "a=3", {"x": ("3", "4")}),
    ]  # fmt: skip
    assert (found.only_one, found.only_other) == (["a=1"], ["new"])
    pair = found.pairs[0]
    assert pair.paired
    assert (pair.paired.n, pair.paired.mean) == (3, pytest.approx((0.4 - 0.1 + 0.5) / 3))
    assert pair.unpaired
    assert pair.unpaired.mean == pytest.approx((4.4 + 4.1 + 4.6 + 4.0) / 4 - 4.1)


def test_the_unpaired_difference_is_welchs() -> None:
    values, others = [4.4, 4.1, 4.6, 4.0], [5.0, 5.9, 5.3]
    told = reference.ttest_ind(values, others, equal_var=False)
    interval = told.confidence_interval(0.95)
    found = unpaired(values, others)
    assert found.p == pytest.approx(told.pvalue, abs=1e-9)
    assert (found.summary.low, found.summary.high) == pytest.approx((interval.low, interval.high), abs=1e-9)
    assert unpaired([1.0], [2.0, 3.0]).summary.low is None
    assert unpaired([], [2.0]).summary.mean is None


def test_runs_that_are_one_and_the_same_are_told_and_differ_by_nothing() -> None:
    one = experiment(arm("a", 5.0, 5.1, 5.3, baseline=True))
    [pair] = side_by_side(one, one, {"a": {}}, {"a": {}}).pairs
    assert pair.paired
    assert (pair.same_runs, pair.paired.mean) == (3, 0.0)


def test_other_probes_are_not_put_side_by_side() -> None:
    one = experiment(arm("a", 5.0, baseline=True))
    accuracy = {"probe": trial(0, 1.0).result.probe.model_copy(update={"name": "accuracy"})}  # type: ignore[union-attr]
    other = experiment(ArmTrials("a", {"arm": "a"}, True, [trial(0, 1.0, **accuracy)]))
    found = side_by_side(one, other, {"a": {}}, {"a": {}})
    assert (found.metric, found.pairs[0].probe, found.pairs[0].paired) == (None, None, None)


@pytest.mark.parametrize(
    ("benchmark", "evaluation"),
    [
        ("wflw", {"alignment": {"sha256": "a" * 64}}),
        ("300w", {"alignment": {"sha256": "b" * 64}}),
    ],
)
def test_nor_are_other_benchmarks_or_labels_of_the_same_name(benchmark: str, evaluation: dict[str, Any]) -> None:
    def fitted(benchmark: str, evaluation: dict[str, Any]) -> Comparison:
        metric = Metric(name="alignment/last/nme", value=5.0, unit="%", higher_is_better=False)
        stage = StageResult(
            stage="alignment", benchmark=benchmark, selection="last", epoch=1, epochs=1, primary=metric.name,
            metrics=(metric,), note="",
        )  # fmt: skip
        rows = [replace(trial(seed, 1.0, probe=None, stages=(stage,)), evaluation=evaluation) for seed in range(3)]
        return experiment(ArmTrials("a", {"arm": "a"}, True, rows))

    one = fitted("300w", {"alignment": {"sha256": "a" * 64}})
    found = side_by_side(one, fitted(benchmark, evaluation), {"a": {}}, {"a": {}})
    assert (found.metric, found.pairs[0].probe, found.pairs[0].paired) == (None, None, None)
    assert f"alignment/last/nme on {benchmark}" in why_not(found)
    assert side_by_side(one, one, {"a": {}}, {"a": {}}).metric


def test_a_probe_of_other_labels_is_another_probe_also_within_an_experiment() -> None:
    def probed(name: str, digest: str, is_baseline: bool) -> ArmTrials:
        rows = [replace(trial(seed, 5.0), evaluation={"sha256": digest}) for seed in range(3)]
        return ArmTrials(name, {"arm": name}, is_baseline, rows)

    one, other = (experiment(probed("a", digest * 64, True)) for digest in "ab")
    assert side_by_side(one, other, {"a": {}}, {"a": {}}).metric is None
    mixed = experiment(probed("a", "a" * 64, True), probed("b", "b" * 64, False))
    assert mixed.metric is None
    assert "aaaaaaaaaaaa" in " ".join(mixed.words)


def test_seed_and_logging_do_not_tell_arms_apart() -> None:
    spec = {"seed": 4, "cadence": {"log": 3}, "mask_ratio": 0.5, "data": {"uri": "/faces"}}
    assert dotted(spec) == {"mask_ratio": 0.5, "data.uri": "/faces"}


def test_every_number_is_looked_at_and_missing_is_not_the_same_as_there() -> None:
    was = experiment(arm("a", 5.0, 5.1, 5.3, baseline=True), arm("b", 4.0, None, 4.1))
    now = experiment(arm("a", 5.0, 5.1, 5.3 + 1e-9, baseline=True), arm("b", 4.0, 4.4, 4.1))
    found = numbers(was, now)
    assert {number.arm for number in found} == {"a", "b"}
    # 3 seeds, 2 floors and a sanity metric each.
    assert len(found) == 12
    moved = {(number.arm, number.name): number for number in found if number.has_moved}
    assert set(moved) == {("a", "NME, seed 2"), ("b", "NME, seed 1")}
    assert (moved["b", "NME, seed 1"].was, moved["b", "NME, seed 1"].now) == (None, 4.4)
    assert [n.name for n in numbers(was, now, tolerance=1e-6) if n.has_moved] == ["NME, seed 1"]
    assert not any(number.has_moved for number in numbers(was, was))


def test_an_arm_that_was_called_otherwise_in_the_report_is_the_same_arm() -> None:
    was = experiment(replace(arm("weight=1", 5.0, 5.1, 5.3, baseline=True), levels={"contrastive.weight": "1"}))
    now = experiment(replace(arm("contrastive.weight=1", 5.0, 5.1, 5.3), levels={"contrastive.weight": "1"}))
    assert not any(number.has_moved for number in numbers(was, now))


def test_other_inputs_are_named() -> None:
    old = [Digest(what="data", name="/faces", sha256="a" * 64), Digest(what="teacher", name="t.pt", sha256="b" * 64)]
    new = [old[1], old[0].model_copy(update={"sha256": "c" * 64})]
    assert other_digests(old, old[::-1]) == []
    assert other_digests(old, new) == [
        "data /faces aaaaaaaaaaaa: only in the report", "data /faces cccccccccccc: only today"
    ]  # fmt: skip
