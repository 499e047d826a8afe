"""The comparison against cases done by hand, and what it must not pretend."""

import csv
import io
import json
import math
from dataclasses import replace
from datetime import UTC, datetime
from xml.etree import ElementTree

import pytest
from rich.console import Console

from service.cli import show
from service.client import Comparison as ClientComparison
from service.compare import paper, plaintext
from service.compare.columns import Columns
from service.compare.latex import latex
from service.compare.plot import svg
from service.compare.ranking import NoSuchMetric
from service.compare.stats import holm, paired, summarise
from service.compare.table import ArmTrials, Question, TrialRow, TrialSpeed, compare
from service.compare.words import BEYOND_CHANCE, TESTED
from service.publishing.note import MAX_LENGTH, note
from service.schemas.comparison import ArmRow, Comparison, Report
from service.states import RunState
from tests.unit.service.bench import result
from trainer.contract.records import Floors, Metric, Result, StageResult

NOW = datetime(2026, 1, 1, tzinfo=UTC)


def nme(value: float) -> Metric:
    return Metric(name="NME", value=value, unit="%", higher_is_better=False)


def trial(seed: int, value: float | None, *, state: RunState = RunState.SUCCEEDED, **changes: object) -> TrialRow:
    """A trial with that probe value; None = not finished, in `state`."""
    found: Result | None = None
    if value is not None:
        floors = Floors(pixels=9.0, random_encoder=8.0 + seed / 10)
        found = result(None, **{"probe": nme(value), "floors": floors} | changes)
    return TrialRow(seed, f"r{seed}", state, "" if value is not None else "why not", found, 1800.0, 1, None)


def arm(name: str, *values: float | None, baseline: bool = False, state: RunState = RunState.FAILED) -> ArmTrials:
    ended = [RunState.SUCCEEDED if value is not None else state for value in values]
    trials = [trial(n, value, state=end) for n, (value, end) in enumerate(zip(values, ended, strict=True))]
    return ArmTrials(name, {"arm": name}, baseline, trials)


def table(*arms: ArmTrials) -> Comparison:
    made = compare("e1", "t", arms, NOW)
    # Whatever the case: every form can be made, and JSON has no NaN.
    json.loads(made.model_dump_json(), parse_constant=pytest.fail)
    assert plaintext.markdown(made).count("\n") > 3
    assert len(list(csv.DictReader(io.StringIO(plaintext.comma_separated(made))))) == len(arms)
    ElementTree.fromstring(svg(made))
    return made


def words(made: Comparison) -> str:
    return "\n".join(made.words)


def test_mean_spread_and_interval_by_hand() -> None:
    found = summarise([2.0, 4.0, 6.0])
    # sd = 2; t(0.975, 2) = 4.302653; half width = 4.302653 * 2 / sqrt(3)
    assert (found.n, found.mean, found.sd) == (3, 4.0, 2.0)
    assert found.low == pytest.approx(4 - 4.302653 * 2 / math.sqrt(3), abs=1e-5)
    assert summarise([3.0]).sd is None
    assert summarise([]).mean is None


def test_paired_difference_by_hand() -> None:
    found = paired({0: 5.0, 1: 7.0, 2: 9.0, 9: 100.0}, {0: 4.0, 1: 5.0, 2: 6.0, 8: -100.0})
    # differences 1, 2, 3: mean 2, sd 1, t = 2 sqrt(3) = 3.4641, p(2 df) = 0.0742
    assert (found.summary.n, found.summary.mean, found.summary.sd) == (3, 2.0, 1.0)
    assert found.p == pytest.approx(0.07418, abs=1e-5)


def test_holm_by_hand() -> None:
    assert holm({"a": 0.01, "b": 0.04, "c": 0.03}) == pytest.approx({"a": 0.03, "c": 0.06, "b": 0.06})
    assert holm({"a": 0.9, "b": 0.8}) == {"b": 1.0, "a": 1.0}
    assert holm({}) == {}


def test_rounding_noise_is_no_spread() -> None:
    found = paired({0: 0.3, 1: 0.2, 2: 0.5}, {0: 0.2, 1: 0.1, 2: 0.4})
    assert (found.summary.sd, found.p) == (0.0, None)


def test_lower_is_better_ranks_and_judges_by_the_metrics_direction() -> None:
    made = table(arm("base", 5.0, 5.1, 5.2, baseline=True), arm("good", 4.0, 4.11, 4.2), arm("bad", 6.0, 6.1, 6.21))
    assert [(row.name, row.rank) for row in made.arms] == [("good", 1), ("base", 2), ("bad", 3)]
    assert [row.difference and row.difference.verdict for row in made.arms] == ["better", None, "worse"]
    assert f"Better than the baseline (base) {BEYOND_CHANCE} ({TESTED}): good." in made.words
    assert made.complete


def test_failed_runs_are_missing_and_never_averaged_away() -> None:
    made = table(arm("base", 5.0, 5.1, 5.2, baseline=True), arm("half", 1.0, None, None))
    half = next(row for row in made.arms if row.name == "half")
    assert half.probe
    assert (half.probe.n, half.probe.mean, half.probe.sd) == (1, 1.0, None)
    missing = [(run.seed, run.state.value, run.reason) for run in half.missing]
    assert missing == [(1, "failed", "why not"), (2, "failed", "why not")]
    assert made.words[0] == "2 of 6 runs are missing and are left out of every mean: 2 failed."
    assert not made.complete
    text = plaintext.markdown(made)
    assert "| 1 of 3 |" in text
    assert "| half | 1 | r1 | failed | why not |" in text


def test_below_three_pairs_there_is_no_verdict() -> None:
    made = table(arm("base", 5.0, 5.1, baseline=True), arm("other", 1.0, 1.2))
    [other] = [row for row in made.arms if not row.is_baseline]
    assert other.difference
    assert (other.difference.verdict, other.difference.p, other.difference.n) == ("n = 2: no verdict", None, 2)
    assert other.floors
    assert (other.floors.above, other.floors.words) == (None, "n = 2: no verdict")
    assert "fewer than 3 seeds" in words(made)


def test_one_arm_has_nothing_to_be_compared_with() -> None:
    made = table(arm("only", 5.0, 5.1, 5.2, baseline=True))
    assert "The experiment has one arm: there is nothing to compare it with." in made.words


def test_a_baseline_without_runs_gives_no_differences_and_says_so() -> None:
    made = table(arm("base", None, None, None, baseline=True), arm("other", 4.0, 4.1, 4.3))
    assert "The baseline (base) has no finished run yet, so no arm can be compared with it." in made.words
    other = made.arms[0]
    assert (other.name, other.rank) == ("other", 1)
    assert other.difference
    assert (other.difference.n, other.difference.mean) == (0, None)


def test_the_same_value_at_every_seed_is_said_and_not_tested() -> None:
    made = table(arm("base", 5.0, 5.0, 5.0, baseline=True), arm("twin", 5.0, 5.0, 5.0), arm("shift", 4.0, 4.0, 4.0))
    verdicts = {row.name: row.difference.verdict for row in made.arms if row.difference}
    assert verdicts == {
        "twin": "identical at every seed: no verdict",
        "shift": "the same difference at every seed: no verdict",
    }
    assert "No test is possible, the difference to the baseline is the same at every seed: shift; twin." in made.words
    assert "No arm is shown" not in words(made)


def test_arms_not_shown_to_be_above_both_floors_are_named() -> None:
    made = table(arm("base", 5.0, 5.1, 5.2, baseline=True), arm("floor", 7.9, 8.2, 8.1))
    checks = {row.name: row.floors for row in made.arms}
    assert checks["base"]
    assert checks["floor"]
    assert (checks["base"].above, checks["floor"].above) == (True, False)
    assert checks["floor"].words == "not shown to be better than: untrained encoder"
    assert "Better than both floors (raw pixels, the untrained encoder): base." in made.words
    assert "Not shown to be better than both floors (raw pixels, the untrained encoder): floor." in words(made)


def test_a_mean_that_happens_to_be_above_raw_pixels_is_not_shown_to_be() -> None:
    # Raw pixels reach 9.0, the untrained encoder 21: 0.01 better than pixels in the mean, with an sd of 3.5.
    floors = Floors(pixels=9.0, random_encoder=21.0)
    trials = [trial(seed, value, floors=floors) for seed, value in enumerate((5.5, 8.99, 12.48))]
    [row] = table(ArmTrials("base", {}, True, trials)).arms
    assert row.floors
    assert (row.floors.above, row.floors.words) == (False, "not shown to be better than: raw pixels")


def test_without_a_probe_nothing_is_ranked() -> None:
    bare = [trial(n, 1.0, probe=None, floors=None) for n in range(3)]
    made = table(ArmTrials("base", {}, True, bare))
    assert made.metric is None
    assert made.arms[0].rank is None
    assert "no probe was measured and arms are not ranked" in words(made)


def staged(value: float, selection: str, benchmark: str = "wflw") -> StageResult:
    names = {"nme_inter_ocular": (value, False), "auc_inter_ocular_10": (100 - value, True)}
    metrics = tuple(
        Metric(name=f"alignment/{selection}/{name}", value=number, unit="%", higher_is_better=higher)
        for name, (number, higher) in names.items()
    )
    return StageResult(
        stage="alignment", benchmark=benchmark, selection=selection, epoch=2, epochs=3, primary=metrics[0].name,
        metrics=metrics, note="",
    )  # fmt: skip


def test_a_stage_s_metric_ranks_when_it_is_asked_for_in_its_own_direction_and_says_how_its_epoch_was_chosen() -> None:
    def arm_of(name: str, *values: float, selection: str = "best_on_test", **more: object) -> ArmTrials:
        # The probe says the opposite.
        trials = [trial(n, 9 - value, stages=(staged(value, selection, **more),)) for n, value in enumerate(values)]
        return ArmTrials(name, {"arm": name}, name == "base", trials)

    arms = arm_of("base", 5.0, 5.1, 5.2), arm_of("good", 4.0, 4.11, 4.2)
    assert [row.name for row in table(*arms).arms] == ["base", "good"]
    for asked in (
        "alignment/nme_inter_ocular",
        "alignment/best_on_test/nme_inter_ocular",
        "alignment/auc_inter_ocular_10",
    ):
        made = compare("e1", "t", arms, NOW, Question(asked))
        assert [row.name for row in made.arms] == ["good", "base"]
        assert made.arms[0].difference
        assert made.arms[0].difference.verdict == "better"
        assert made.metric
        assert made.metric.name.startswith("alignment/best_on_test/")
        assert "best on the test split itself, which is too good" in words(made)
        assert made.arms[0].floors is None
        assert "best_on_test" in plaintext.markdown(made).splitlines()[2]
    assert made.arms[0].runs[0].value == 96.0
    with pytest.raises(NoSuchMetric, match="possible: NME, alignment/best_on_test/nme_inter_ocular"):
        compare("e1", "t", arms, NOW, Question("alignment/nme"))
    # Neither epochs chosen in two ways nor two benchmarks are one metric.
    for other in arm_of("other", 5.0, selection="last"), arm_of("other", 5.0, benchmark="300w"):
        assert compare("e1", "t", [arms[0], other], NOW, Question("alignment/nme_inter_ocular")).metric is None


def by_retrieval(name: str, *values: float, seeds_with_floors: int = 9) -> ArmTrials:
    """The probe says the opposite. Raw pixels find 5 %, the untrained encoder 20 to 24 %."""
    trials = []
    for seed, value in enumerate(values):
        numbers = {"sanity/psnr": 20.0, "sanity/retrieval_top1": value}
        if seed < seeds_with_floors:
            numbers |= {"floor/retrieval_pixels": 5.0, "floor/retrieval_random_encoder": 20.0 + 2 * seed}
        sanity = [Metric(name=name, value=number, unit="%", higher_is_better=True) for name, number in numbers.items()]
        found = trial(seed, 100 - value, sanity=sanity)
        trials.append(replace(found, evaluation={"held_out": 40, "mask_ratio": 0.75, "sha256": "a" * 64}))
    return ArmTrials(name, {"arm": name}, name == "base", trials)


def test_a_spec_may_rank_by_a_sanity_metric_which_is_called_one_and_held_against_its_own_floors() -> None:
    arms = by_retrieval("base", 20.0, 24.0, 22.0), by_retrieval("good", 40.0, 45.0, 43.0)
    assert compare("e1", "t", arms, NOW).metric.name == "NME"  # type: ignore[union-attr]
    made = compare("e1", "t", arms, NOW, rank_by="sanity/retrieval_top1")
    assert made == compare("e1", "t", arms, NOW, Question("sanity/retrieval_top1"))
    good, base = made.arms
    assert (good.name, good.difference and good.difference.verdict) == ("good", "better")
    assert made.metric
    assert made.metric.name == "sanity/retrieval_top1"
    for told in (
        "finds the other masked view of the same face, among 40 held-out faces (by chance: 2.5 %)", "sanity metric",
        "does not say how good the features are for a task", "The other sanity metrics",
        "Better than both floors (raw pixels, the untrained encoder): good.",
    ):  # fmt: skip
        assert told in words(made)
    assert good.floors
    assert base.floors
    assert (good.floors.pixels, good.floors.random_encoder, good.floors.above) == (5.0, 22.0, True)
    assert base.floors.words == "not shown to be better than: untrained encoder"
    assert "This is a sanity metric, measured on held-out faces" in latex(made)
    terminal = io.StringIO()
    Console(file=terminal, width=2000).print(show.comparison(ClientComparison.model_validate(made.model_dump())))
    first = [line.strip() for line in terminal.getvalue().splitlines()[1:4]]
    assert first[0].startswith("Best arm: good. It reached sanity/retrieval_top1 42.67 % (95 % interval ")
    assert first[1].startswith("Is the difference real? Yes. It beats the baseline (base) by 20.7 percentage points")
    assert first[2].startswith("The number says how often one masked view of a held-out face finds the other")
    # Neither itself nor its floors stand beside it; the probe, which no longer ranks, does.
    assert set(good.sanity) == {"sanity/psnr (%)", "NME (%)"}
    # Whoever looks may still ask for another one.
    probed = compare("e1", "t", arms, NOW, Question("NME"), "sanity/retrieval_top1")
    assert [row.name for row in probed.arms] == ["good", "base"]
    assert probed.metric
    assert (probed.metric.name, probed.metric.higher_is_better) == ("NME", False)


def test_runs_of_before_their_floors_were_measured_are_ranked_without_them() -> None:
    old = compare(
        "e1", "t", [by_retrieval("base", 20.0, 24.0, 22.0, seeds_with_floors=0)], NOW, Question("sanity/retrieval_top1")
    )
    assert (old.arms[0].rank, old.arms[0].floors) == (1, None)
    mixed = compare(
        "e1", "t", [by_retrieval("base", 40.0, 44.0, 42.0, seeds_with_floors=2)], NOW, Question("sanity/psnr")
    )
    assert mixed.arms[0].floors is None
    mixed = compare(
        "e1", "t", [by_retrieval("base", 40.0, 44.0, 42.0, seeds_with_floors=2)], NOW, Question("sanity/retrieval_top1")
    )
    assert mixed.arms[0].floors
    assert mixed.arms[0].floors.words == "n = 2: no verdict"


def test_sanity_metrics_do_not_rank_unasked_and_not_over_other_faces_or_masks() -> None:
    bare = [replace(each, result=each.result.model_copy(update={"probe": None, "floors": None}))
            for each in by_retrieval("base", 20.0, 24.0, 22.0).trials if each.result]  # fmt: skip
    unasked = compare("e1", "t", [ArmTrials("base", {}, True, bare)], NOW)
    assert unasked.metric is None
    assert "possible with evaluation.rank_by: sanity/psnr, sanity/retrieval_top1" in words(unasked)
    for change in {"mask_ratio": 0.5}, {"sha256": "b" * 64}:
        base, other = by_retrieval("base", 20.0, 24.0), by_retrieval("other", 20.0, 24.0)
        trials = [replace(each, evaluation={**each.evaluation, **change}) for each in other.trials]
        made = compare("e1", "t", [base, replace(other, trials=trials)], NOW, Question("sanity/retrieval_top1"))
        assert (made.metric is None) == ("mask_ratio" in change)


def test_a_ranking_that_no_finished_run_has_is_said_and_does_not_break_the_table() -> None:
    made = compare("e1", "t", [arm("base", 5.0, baseline=True)], NOW, rank_by="alignment/nme_diag")
    assert made.metric is None
    assert "No finished run has the metric alignment/nme_diag of evaluation.rank_by" in words(made)


def test_different_probes_are_not_ranked_together() -> None:
    accuracy = Metric(name="accuracy", value=0.9, unit="", higher_is_better=True)
    made = table(arm("base", 1.0, baseline=True), ArmTrials("other", {}, False, [trial(0, 1.0, probe=accuracy)]))
    assert made.metric is None
    assert "different probes (NME, accuracy)" in words(made)


def test_before_anything_has_finished_the_table_stands_with_what_is_to_come() -> None:
    made = table(arm("base", None, None, baseline=True, state=RunState.QUEUED))
    assert made.words[:2] == [
        "2 of 2 runs are missing and are left out of every mean: 2 queued.",
        "No run has finished yet.",
    ]
    assert made.arms[0].gpu_hours == pytest.approx(1.0)  # what was spent counts, however it ended


def test_numbers_are_rounded_for_people_and_whole_for_programs() -> None:
    made = table(arm("base", 5.123456789, 5.2, 5.3, baseline=True))
    mean = made.arms[0].probe.mean  # type: ignore[union-attr]
    assert f"| {mean:.4g} |" in plaintext.markdown(made)
    [row] = csv.DictReader(io.StringIO(plaintext.comma_separated(made)))
    assert float(row["mean"]) == mean


def test_floors_beside_the_sanity_metrics_are_not_called_stages_of_evaluation() -> None:
    beside = [
        Metric(name=name, value=20.0, unit="% of eye distance", higher_is_better=False)
        for name in ("sanity/neighbour_nme", "floor/neighbour_pixels")
    ]
    arms = [ArmTrials("a", {"arm": "a"}, True, [trial(0, 1.0, sanity=beside)]), arm("b", 2.0)]
    assert "stages of evaluation" not in words(table(*arms))


def test_hours_are_of_gpus_only_where_every_run_was_trained_on_one() -> None:
    on_gpu = [trial(seed, 1.0, software={"gpu": "NVIDIA H100"}) for seed in range(2)]
    made = table(ArmTrials("a", {"arm": "a"}, True, [*on_gpu, trial(2, None, state=RunState.RUNNING)]))
    assert made.hours == "GPU-hours"
    assert "| GPU-hours |" in plaintext.markdown(made)
    assert "It took 1.5 GPU-hours" in note(made, "mcf-x", "#/runs")
    mixed = table(ArmTrials("a", {"arm": "a"}, True, [*on_gpu, trial(2, 1.0)]))
    assert mixed.hours == "process-hours"
    assert "GPU" not in plaintext.markdown(mixed)


def test_the_note_in_mlflow_is_the_headline_and_as_much_of_the_table_as_a_tag_holds() -> None:
    few = note(table(arm("a", 9.0, 9.1, 9.2, baseline=True), arm("b", 1.0, 1.1, 1.21)), "mcf-x", "#/runs")
    assert "**Best arm: b.** It reached NME 1.103 %" in few
    assert few.partition("\n")[0].endswith("[All runs, the best first](#/runs).")
    assert "Is the difference real? Yes." in few
    assert "| 2 | a | 3 | 9.1 |" in few
    assert "`models:/mcf-x@best`" in few
    rest = [arm(f"{n:02d}{'x' * 400}", n + 1.0, n + 1.1, n + 1.2) for n in range(30)]
    many = note(table(arm("the-baseline", 99.0, 99.1, 99.2, baseline=True), *rest), "mcf-x", "#/runs")
    assert len(many) <= MAX_LENGTH
    rows = [line for line in many.splitlines() if line.startswith("| ")][2:]
    assert 2 <= len(rows) < 11
    assert "the-baseline" in rows[-1]
    assert f"And {31 - len(rows)} more." in many
    assert many.endswith("an alias for each arm.")


def test_every_format_has_the_same_columns_under_the_same_headings() -> None:
    made = table(arm("base", 5.0, 5.1, 5.2, baseline=True), arm("good", 4.0, 4.11, 4.2))
    columns = Columns(made)
    terminal = io.StringIO()
    Console(file=terminal, width=250).print(show.comparison(ClientComparison.model_validate(made.model_dump())))
    html = paper.html(Report(spec={}, comparison=made, digests=[], software={}), {})
    of_paper = latex(made).replace("\\,", " ").replace("\\", "").replace("$", "")
    texts = plaintext.markdown(made), note(made, "mcf-x", "#/runs"), terminal.getvalue(), html, of_paper
    good = next(row for row in made.arms if row.name == "good")
    for name in "arm", "seeds", "mean", "interval", "difference", "hours":
        for text in texts:
            assert columns[name].heading in text
            assert columns[name].cell(good) in text


def test_speed_stands_beside_the_cost_where_it_is_known_of_an_arm() -> None:
    base, good = arm("base", 5.0, 5.1, 5.2, baseline=True), arm("good", 4.0, 4.11, 4.2)
    speeds = TrialSpeed(1000.0, 0.02, None, 0.0), TrialSpeed(3000.0, 0.04, None, 0.0), None
    trials = [replace(trial, speed=speed) for trial, speed in zip(good.trials, speeds, strict=True)]
    made = table(base, replace(good, trials=trials))
    row, other = made.arms
    assert (row.name, row.images_per_second, row.peak_share) == ("good", 2000.0, None)
    assert (row.waiting_share, other.images_per_second) == (pytest.approx(0.03), None)
    # Nothing was compiled, and of CPUs no peak is known: for programs there are empty fields, for people no column.
    known = Columns(made)
    assert [known[name].heading for name in known.speed] == ["images/s", "waiting for images"]
    [first, _] = csv.DictReader(io.StringIO(plaintext.comma_separated(made)))
    assert (first["images_per_second"], first["peak_share"], first["compile_seconds"]) == ("2000.0", "", "0.0")
    terminal = io.StringIO()
    Console(file=terminal, width=120).print(show.comparison(ClientComparison.model_validate(made.model_dump())))
    for text in plaintext.markdown(made), paper.html(Report(spec={}, comparison=made, digests=[], software={}), {}):
        assert ("images/s" in text, "2,000" in text, "3 %" in text, "share of peak" in text) == (
            True,
            True,
            True,
            False,
        )
    assert any(line.split()[-2:] == ["3", "%"] and "2,000" in line for line in terminal.getvalue().splitlines())
    assert "images/s" not in plaintext.markdown(table(base))


def test_a_row_of_before_there_was_a_speed_can_be_read() -> None:
    [row] = table(arm("base", 5.0, 5.1, baseline=True)).arms
    old = row.model_dump(exclude={"images_per_second", "peak_share", "waiting_share", "compile_seconds"})
    assert ArmRow.model_validate(old) == row


def test_words_stay_readable_with_many_arms() -> None:
    many = table(arm("base", 9.0, 9.1, 9.2, baseline=True), *(arm(f"arm{n}", 9.0, 9.3, 9.1) for n in range(9)))
    [power] = [word for word in many.words if word.startswith("Seeds to add")]
    assert power.count(";") == 6
    assert power.endswith("; and 3 more.")
