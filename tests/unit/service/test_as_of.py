"""The comparison as of a step: what it is of, what is missing in it, and that every form of it says so."""

from dataclasses import replace
from typing import Any

import pytest

from service.compare import plaintext
from service.compare.headline import headline
from service.compare.latex import latex
from service.compare.plot import svg
from service.compare.readings import NoSuchStep, as_of
from service.compare.service import Comparisons
from service.compare.table import ArmTrials, Question, compare
from service.errors import NotFound
from service.pages import reading_curves
from service.states import RunState
from tests.unit.service.bench import Bench
from tests.unit.service.test_compare import NOW, arm
from trainer.contract import records
from trainer.contract.records import Metric, Reading, Readings
from trainer.store.objects import open_store

STEPS = (0, 4, 8)


def nme(value: float) -> Metric:
    return Metric(name="NME", value=value, unit="%", higher_is_better=False)


def read(value: float, *steps: int) -> Readings:
    """Readings of those steps that fall by one each."""
    made = [
        Reading(step=step, images_seen=64 * step, probe=nme(value - place), sanity=[], seconds=0.1)
        for place, step in enumerate(steps)
    ]
    return Readings(readings=tuple(made))


def watched(found: ArmTrials, *steps: int) -> ArmTrials:
    trials = [
        replace(trial, readings=read(trial.result.probe.value + len(steps) if trial.result else 9.0, *steps))  # type: ignore[union-attr]
        for trial in found.trials
    ]
    return replace(found, trials=trials)


def arms() -> list[ArmTrials]:
    base = watched(arm("a", 5.0, 5.1, 5.2, baseline=True), *STEPS)
    other = watched(arm("b", 4.0, 4.15, None, state=RunState.RUNNING), *STEPS)
    return [base, other]


def test_a_table_as_of_a_step_is_of_the_readings_there_also_of_runs_that_are_still_on_their_way() -> None:
    made = compare("e1", "t", as_of(arms(), 4), NOW, Question(step=4))
    assert made.at
    assert (made.at.step, made.at.images) == (4, 256)
    means = {row.name: row.probe.mean for row in made.arms if row.probe}
    assert means["a"] == pytest.approx(5.1 + 3 - 1)
    assert means["b"] == pytest.approx((4.0 + 3 - 1 + 4.15 + 3 - 1 + 9.0 - 1) / 3)
    assert made.complete
    assert made.steps == [0, 4, 8]


def test_a_run_that_was_not_measured_at_the_step_is_missing_there_although_it_has_succeeded() -> None:
    base, other = arms()
    made = compare("e1", "t", as_of([base, watched(other, 0, 8)], 4), NOW, Question(step=4))
    assert {row.name: len(row.missing) for row in made.arms} == {"a": 0, "b": 3}
    assert not made.complete


def test_a_step_that_no_run_was_measured_at_is_refused_with_those_that_there_are() -> None:
    with pytest.raises(
        NoSuchStep, match=r"No run was measured at step 5; possible: 0, 4, 8, 10\. Where a run has fewer"
    ):
        as_of(arms(), 5)
    with pytest.raises(NoSuchStep, match=r"evaluation\.every in the spec"):
        as_of([arm("a", None, baseline=True)], 5)
    many = watched(arm("a", 5.0, baseline=True), *range(100))
    with pytest.raises(NoSuchStep, match=r"possible: 0, 1, 2, .*, \.\.\., 99\."):
        as_of([many], 500)


def test_the_last_step_has_the_final_numbers_of_the_probe() -> None:
    made = compare("e1", "t", as_of(arms(), 10), NOW, Question(step=10))
    assert {row.name: row.probe.n for row in made.arms if row.probe} == {"a": 3, "b": 2}
    assert made.arms[-1].probe
    assert made.arms[-1].probe.mean == pytest.approx(5.1)


def test_every_form_says_of_which_step_it_is_and_the_final_table_says_nothing() -> None:
    made, final = compare("e1", "t", as_of(arms(), 4), NOW, Question(step=4)), compare("e1", "t", arms(), NOW)
    label = "as of step 4 (256 images)"
    for form in plaintext.markdown, latex, svg:
        assert label in form(made)
        assert "as of step" not in form(final)
    assert plaintext.comma_separated(made).splitlines()[0].startswith("as_of_step,rank,")
    assert plaintext.comma_separated(made).splitlines()[1].startswith("4,1,")
    assert "as_of_step" not in plaintext.comma_separated(final)
    assert made.words[0].startswith(f"This is the table {label}, and not of the end of the runs")
    assert headline(made).cautions[0] == f"This is {label}, not the end of the runs."
    assert final.at is None


def test_a_curve_of_readings_goes_from_the_untrained_encoder_to_the_final_number_against_images_seen() -> None:
    found = arms()
    assert reading_curves.names(found, "NME") == ["NME"]
    curve, _ = reading_curves.curves(found, "NME")
    final = found[0].trials[0].result
    assert final
    assert curve.steps == [0, 256, 512, final.images_seen]
    assert curve.mean == pytest.approx([8.1, 7.1, 6.1, 5.1])
    assert curve.low == pytest.approx([8.0, 7.0, 6.0, 5.0])
    assert reading_curves.names([arm("a", 5.0)], "NME") == []


def test_nothing_is_drawn_that_was_not_measured_and_every_point_is_of_the_same_seeds() -> None:
    found = arm("a", 5.0, 5.1, 5.2, baseline=True)
    one, two, three = found.trials
    steps = [replace(one, readings=read(8.0, 0, 4, 8)), replace(two, readings=read(8.1, 0, 8)), three]
    curve, *_ = reading_curves.curves([replace(found, trials=steps)], "NME")
    final = one.result
    assert final
    # Step 4 is of one of two seeds; the third was not measured on its way.
    assert curve.steps == [0, 512, final.images_seen]
    assert curve.seeds == [2, 2, 2]
    assert curve.mean == pytest.approx([8.05, 6.55, 5.05])


@pytest.fixture
def spec(tiny_faces: Any) -> dict[str, Any]:
    base = {"preset": "tiny", "data": {"uri": str(tiny_faces)}, "teacher": "none", "evaluation": {"every": 4}}
    base["schedule"] = {"unit": "steps", "length": 10, "warmup": 1}
    return {"name": "watched", "base": base, "factors": {"mask_ratio": [0.75, 0.5]}, "seeds": 1, "concurrency": 9}


def test_the_reconciler_reads_a_reading_once_and_the_comparison_has_it_while_the_run_trains(
    bench: Bench, spec: dict[str, Any]
) -> None:
    experiment = bench.submit(spec)
    bench.go(3)
    kept = Comparisons(None)

    def at(step: int) -> Any:
        with bench.db.read() as session:
            return kept.of(session, experiment, Question(step=step))

    with pytest.raises(NotFound):
        at(4)
    for place, name in enumerate(bench.cluster.live()):
        store = open_store(bench.settings.run_uri(name.rpartition("-")[0]))
        store.put(records.READINGS, read(9.0 + place, 0, 4).model_dump_json().encode())
        bench.cluster.train(name, 5, last_reading=4)
    bench.go(10)
    assert sorted(row.probe.mean for row in at(4).arms) == [8.0, 9.0]
    assert at(4).steps == [0, 4]
    with bench.db.read() as session, pytest.raises(NotFound, match="possible: 0, 4"):
        kept.of(session, experiment, Question(step=3))
