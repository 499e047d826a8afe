"""Seeds in rounds through the service: who gets more seeds, who is told what, and what a killed service leaves."""

import copy
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sqlalchemy import event, func, select, update

from service.cli import show
from service.compare import plaintext
from service.compare.headline import headline
from service.compare.latex import latex
from service.compare.reproduce import other_runs
from service.compare.rounds import InRounds, Look
from service.compare.service import comparison_of, report_of
from service.compare.table import ArmTrials, TrialRow, compare
from service.errors import InvalidSpec, NotExtendable
from service.experiments import actions
from service.experiments import service as experiments
from service.experiments.extend import Extension, extend
from service.schemas.comparison import Comparison
from service.schemas.experiments import ExperimentDetail, ExperimentState
from service.settings import Settings
from service.states import RunState
from service.tables import Arm, Experiment, Run, Trial
from tests.unit.service.bench import Bench, Killed, result
from tests.unit.service.test_api import Scene
from trainer.contract import RunSpec
from trainer.contract.records import Metric
from trainer.contract.rounds import Rounds
from trainer.resolve import check_and_resolve
from trainer.weights.sources import FILES_ONLY

NOW = datetime(2026, 1, 1, tzinfo=UTC)
LOOKS = (4, 8, 12)
NOISE = np.random.default_rng(3).standard_normal((10, 60))
BASE, BETTER, SAME = 0.75, 0.5, 0.6
"""mask_ratio of the three arms."""
EFFECTS = {BASE: 0.0, BETTER: 40.0, SAME: 0.0}


on_sqlite = pytest.mark.parametrize("database", ["sqlite"], indirect=True)
"""Of what no database has a part in."""


@pytest.fixture
def rounds(spec: dict[str, Any]) -> dict[str, Any]:
    """Three arms; after the first look BETTER is decided, and SAME has no chance."""
    made = copy.deepcopy(spec)
    made["base"]["evaluation"] = {"rank_by": "sanity/psnr"}
    return made | {"factors": {"mask_ratio": list(EFFECTS)}, "seeds": {"rounds": [4, 8, 12], "futility": 0.0}}


def value(ratio: float, seed: int) -> float:
    return 20 + EFFECTS[ratio] + float(NOISE[list(EFFECTS).index(ratio), seed])


def finish(bench: Bench, fails: Callable[[float, int], bool] = lambda ratio, seed: False) -> None:
    """Every run that is being trained ends."""
    runs = {run.id: run for run in bench.runs()}
    for name in bench.cluster.live():
        run = runs[name.rpartition("-")[0]]
        ratio, seed = run.spec["mask_ratio"], run.spec["seed"]
        if fails(ratio, seed):
            bench.cluster.fail(name)
        else:
            metric = Metric(name="sanity/psnr", value=value(ratio, seed), unit="dB", higher_is_better=True)
            bench.cluster.succeed(name, sanity=[metric])


def run_to_the_end(bench: Bench, experiment: str, **how: Any) -> None:
    def is_over() -> bool:
        finish(bench, **how)
        found = bench.experiment(experiment)
        return not found.has_look_to_come and found.published

    bench.go_until(is_over)


def seeds(bench: Bench, experiment: str) -> dict[float, int]:
    """mask_ratio -> seeds that the arm has been given."""
    query = select(Arm.levels, func.count()).join(Trial, Trial.arm_id == Arm.id).group_by(Arm.id)
    with bench.db.read() as session:
        rows = session.execute(query.where(Arm.experiment_id == experiment)).all()
    return {float(levels["mask_ratio"]): count for levels, count in rows}


def table(bench: Bench, experiment: str) -> Comparison:
    with bench.db.read() as session:
        return comparison_of(session, experiment, None)


def row(comparison: Comparison, ratio: float) -> Any:
    return next(row for row in comparison.arms if float(row.levels["mask_ratio"]) == ratio)


def state(bench: Bench, experiment: str) -> ExperimentState:
    return experiments.show(bench.db, bench.settings, experiment).state


def test_a_decided_arm_gets_no_more_seeds_and_the_others_go_on_by_themselves(
    bench: Bench, rounds: dict[str, Any]
) -> None:
    experiment = bench.submit(rounds)
    assert seeds(bench, experiment) == dict.fromkeys(EFFECTS, 4)
    run_to_the_end(bench, experiment)
    assert seeds(bench, experiment) == {BASE: 12, BETTER: 4, SAME: 12}
    assert state(bench, experiment) is ExperimentState.SUCCEEDED
    assert sorted(bench.cluster.submissions.values()) == [1] * 28
    found = table(bench, experiment)
    assert found.complete
    assert (row(found, BETTER).difference.verdict, row(found, BETTER).difference.n) == ("better", 4)
    assert (row(found, SAME).difference.verdict, row(found, SAME).difference.n) == ("no difference shown", 12)
    assert row(found, BETTER).rounds.words == "decided after 4 of 12 seeds"
    assert found.rounds
    assert (found.rounds.runs, found.rounds.most_runs, found.rounds.is_over) == (28, 36, True)
    told = " ".join(found.words)
    assert "28 of at most 36 runs were trained, which saved 8 runs" in told
    assert "group-sequential Holm" in told


@on_sqlite
def test_an_arm_without_a_chance_is_given_up_and_says_so(bench: Bench, rounds: dict[str, Any]) -> None:
    rounds["seeds"]["futility"] = 0.9
    experiment = bench.submit(rounds)
    run_to_the_end(bench, experiment)
    assert seeds(bench, experiment) == dict.fromkeys(EFFECTS, 4)
    found = table(bench, experiment)
    assert row(found, SAME).rounds.words.startswith("stopped after 4 of 12 seeds: chance to be decided")
    assert "Given no more seeds, and not decided: mask_ratio=0.6" in " ".join(found.words)


def test_between_two_rounds_the_experiment_runs_and_says_what_it_waits_for(
    bench: Bench, rounds: dict[str, Any]
) -> None:
    experiment = bench.submit(rounds)
    bench.go(4)
    first = table(bench, experiment)
    assert headline(first).answer == "Not known yet"
    finish(bench)
    for run in bench.runs():
        # All have ended, and nobody has looked yet.
        assert run.state is not RunState.FAILED
    bench.go_until(lambda: len(bench.experiment(experiment).looks) == 1)
    assert state(bench, experiment) is ExperimentState.RUNNING
    assert not bench.experiment(experiment).published
    found = table(bench, experiment)
    assert not found.complete
    assert row(found, SAME).rounds.words == "waits for the look after 8 of 12 seeds"
    assert row(found, SAME).rounds.goes_on
    assert not row(found, BETTER).rounds.goes_on
    assert any("1 of 3 looks taken" in word for word in found.words)


@on_sqlite
@pytest.mark.parametrize("asked", ["run", 2])
def test_later_seeds_draw_their_images_as_the_arm_asks_whatever_a_run_says_that_it_shares(
    bench: Bench, rounds: dict[str, Any], asked: int | str
) -> None:
    # Before it, others have asked for all of its first runs, in the other words where there are any.
    for seed in range(4):
        said = seed if asked == "run" else "run" if seed == asked else asked
        data = {**rounds["base"]["data"], "subset_size": 8, "subset_seed": said}
        bench.submit(rounds | {"base": {**rounds["base"], "data": data}, "seeds": [seed]})
    before = len(bench.runs())
    data = {**rounds["base"]["data"], "subset_size": 8, "subset_seed": asked}
    experiment = bench.submit(rounds | {"base": {**rounds["base"], "data": data}})
    assert len(bench.runs()) == before
    run_to_the_end(bench, experiment)
    later = [RunSpec.model_validate(run.spec) for run in bench.runs() if run.spec["seed"] >= 4]
    assert len(later) == 16
    assert {run.data.subset_seed for run in later} == {asked}


@contextmanager
def killed_at(bench: Bench, statement: int) -> Iterator[list[str]]:
    """The service dies before the statement of that number; the transaction it was in is lost."""
    seen: list[str] = []

    def count(connection: object, cursor: object, text: str, *rest: object) -> None:
        seen.append(text)
        if len(seen) == statement:
            raise Killed(text)

    event.listen(bench.db.engine, "before_cursor_execute", count)
    try:
        yield seen
    finally:
        event.remove(bench.db.engine, "before_cursor_execute", count)


def test_a_service_killed_at_any_statement_of_a_look_takes_it_once_and_starts_nothing_twice(
    bench: Bench, rounds: dict[str, Any]
) -> None:
    experiment = bench.submit(rounds)
    bench.go_until(lambda: finish(bench) or all(run.state.is_final for run in bench.runs()))
    kills = 0
    while not bench.experiment(experiment).looks:
        kills += 1
        with suppress(Killed), killed_at(bench, kills):
            bench.go(seconds=bench.settings.lease_seconds + 1)
        bench.start()
        # A look and the seeds that it gives out are there together, or not at all.
        assert sum(seeds(bench, experiment).values()) == (20 if bench.experiment(experiment).looks else 12)
    assert kills > 5
    run_to_the_end(bench, experiment)
    assert len(bench.experiment(experiment).looks) == 3
    assert seeds(bench, experiment) == {BASE: 12, BETTER: 4, SAME: 12}
    assert sorted(bench.cluster.submissions.values()) == [1] * 28


def test_two_services_take_a_look_once(bench: Bench, rounds: dict[str, Any]) -> None:
    experiment = bench.submit(rounds)
    other = bench.another()
    for _ in range(200):
        finish(bench)
        other.tick()
        bench.go()
        other.drain()
        if bench.experiment(experiment).published:
            break
    other.stop()
    assert len(bench.experiment(experiment).looks) == 3
    assert seeds(bench, experiment) == {BASE: 12, BETTER: 4, SAME: 12}


def test_a_failed_run_is_left_out_of_its_look_and_one_that_is_retried_counts_at_the_next(
    bench: Bench, rounds: dict[str, Any]
) -> None:
    experiment = bench.submit(rounds)
    broken = {"now": True}

    def fails(ratio: float, seed: int) -> bool:
        return broken["now"] and ratio == SAME and seed in (1, 5)

    bench.go_until(lambda: finish(bench, fails) or len(bench.experiment(experiment).looks) == 1)
    found = table(bench, experiment)
    assert row(found, SAME).difference.n == 3
    assert "1 of 20 runs are missing" not in " ".join(found.words)  # the next round's are missing, too
    broken["now"] = False
    actions.retry(bench.db, bench.settings, experiment)
    run_to_the_end(bench, experiment)
    found = table(bench, experiment)
    assert row(found, SAME).difference.n == 12
    assert [len(look["finished"]) for look in bench.experiment(experiment).looks] == [3, 3, 3]


def test_a_run_that_is_retried_after_the_last_look_is_in_the_mean_and_in_no_test(
    bench: Bench, rounds: dict[str, Any]
) -> None:
    experiment = bench.submit(rounds)
    run_to_the_end(bench, experiment, fails=lambda ratio, seed: ratio == SAME and seed == 9)
    assert state(bench, experiment) is ExperimentState.FAILED
    before = row(table(bench, experiment), SAME)
    assert before.difference.n == 11
    actions.retry(bench.db, bench.settings, experiment)
    run_to_the_end(bench, experiment)
    found = table(bench, experiment)
    after = row(found, SAME)
    assert after.probe.n == 12
    assert after.difference == before.difference
    assert "1 run finished after the last look" in " ".join(found.words)
    assert len(bench.experiment(experiment).looks) == 3


def test_a_cancelled_experiment_takes_no_look(bench: Bench, rounds: dict[str, Any]) -> None:
    experiment = bench.submit(rounds)
    bench.go(4)
    actions.cancel(bench.db, experiment)
    for name in bench.cluster.live():
        bench.cluster.succeed(name)
    bench.go_until(lambda: bench.experiment(experiment).published)
    assert bench.experiment(experiment).looks == []
    assert state(bench, experiment) is ExperimentState.CANCELLED
    told = table(bench, experiment)
    assert "cancelled: 0 of 3 looks taken" in " ".join(told.words)
    assert not any(row.rounds and row.rounds.goes_on for row in told.arms)
    assert sum(seeds(bench, experiment).values()) == 12


def test_the_budget_ends_rounds_as_it_ends_runs(bench: Bench, rounds: dict[str, Any]) -> None:
    # A run of the bench takes an hour of two processes.
    experiment = bench.submit(rounds | {"gpu_hours": 11.0})
    bench.go_until(lambda: finish(bench) or bench.experiment(experiment).published)
    found = bench.experiment(experiment)
    assert "the cap of 11 GPU-hours is reached" in found.cancel_reason
    assert [(entry["action"], entry["asked"]) for entry in bench.audit()] == [
        ("experiments.cancel", found.cancel_reason)
    ]
    assert len(found.looks) == 1
    assert headline(table(bench, experiment)).answer == "Yes"


@on_sqlite
def test_runs_that_are_shared_count_and_cost_nothing(bench: Bench, rounds: dict[str, Any]) -> None:
    fixed = bench.submit(rounds | {"seeds": 12})
    bench.go_until(lambda: finish(bench) or bench.experiment(fixed).published)
    trained = sum(bench.cluster.submissions.values())
    experiment = bench.submit(rounds)
    run_to_the_end(bench, experiment)
    assert sum(bench.cluster.submissions.values()) == trained == 36
    assert seeds(bench, experiment) == {BASE: 12, BETTER: 4, SAME: 12}
    assert not table(bench, fixed).rounds


@on_sqlite
def test_an_experiment_that_does_not_share_trains_the_seeds_of_every_round_itself(
    bench: Bench, rounds: dict[str, Any]
) -> None:
    first = bench.submit(rounds)
    run_to_the_end(bench, first)
    experiment = bench.submit(rounds | {"share": False})
    run_to_the_end(bench, experiment)
    assert sum(bench.cluster.submissions.values()) == 56
    with bench.db.read() as session:
        private = session.scalars(select(Run.private_to)).all()
    assert private.count(experiment) == 28


def test_seeds_and_arms_cannot_be_added_and_measurements_can(bench: Bench, rounds: dict[str, Any]) -> None:
    experiment = bench.submit(rounds)
    run_to_the_end(bench, experiment)
    for more in Extension(seeds=14), Extension(factors={"mask_ratio": [0.9]}):
        with pytest.raises(NotExtendable, match="finished runs are shared"):
            extend(bench.db, experiment, more, FILES_ONLY, None)
    extend(bench.db, experiment, Extension(evaluation={"mask_ratio": 0.5}), FILES_ONLY, None)
    run_to_the_end(bench, experiment)
    assert seeds(bench, experiment) == {BASE: 12, BETTER: 4, SAME: 12}
    assert len(bench.experiment(experiment).looks) == 3


@on_sqlite
def test_rounds_may_begin_with_another_seed(bench: Bench, rounds: dict[str, Any]) -> None:
    rounds["seeds"] |= {"rounds": [3, 6], "first": 20}
    experiment = bench.submit(rounds)
    run_to_the_end(bench, experiment)
    with bench.db.read() as session:
        assert sorted(set(session.scalars(select(Trial.seed)))) == [20, 21, 22, 23, 24, 25]


@on_sqlite
def test_where_no_metric_is_found_all_seeds_are_trained_as_without_rounds(bench: Bench, rounds: dict[str, Any]) -> None:
    experiment = bench.submit(rounds)
    bench.go_until(lambda: _succeed(bench) or bench.experiment(experiment).published)
    assert seeds(bench, experiment) == dict.fromkeys(EFFECTS, 12)
    assert "arms are not ranked" in " ".join(table(bench, experiment).words)


def _succeed(bench: Bench) -> None:
    for name in bench.cluster.live():
        bench.cluster.succeed(name, sanity=[], probe=None)


def test_an_arm_that_is_shown_to_be_worse_is_never_the_best_however_lucky_its_seeds() -> None:
    easy = [30.0, 30.2, 29.9, 30.1]
    values = {"base": [*easy, *[10.0 + 0.1 * seed for seed in range(8)]], "worse": [value - 1 for value in easy]}
    values |= {"other": [value + 0.01 * seed * (-1) ** seed for seed, value in enumerate(values["base"])]}
    values["worse"] = [value + noise for value, noise in zip(values["worse"], [0.0, 0.02, -0.02, 0.01], strict=True)]
    arms = [
        ArmTrials(name, {"x": name}, name == "base", [trial(seed, value) for seed, value in enumerate(found)])
        for name, found in values.items()
    ]
    seeds = {name: [frozenset(range(min(count, len(found)))) for count in LOOKS] for name, found in values.items()}
    on = [frozenset({"base", "other"}), frozenset({"base", "other"}), frozenset[str]()]
    looks = [Look(NOW, {name: found[number] for name, found in seeds.items()}, on[number]) for number in range(3)]
    found = compare("e1", "t", arms, NOW, rank_by="sanity/psnr", rounds=InRounds(Rounds(rounds=LOOKS), looks))
    assert [row.name for row in found.arms][-1] == "worse"
    best, last = found.arms[0], found.arms[-1]
    assert last.probe.mean > best.probe.mean
    assert last.difference.verdict == "worse"
    assert "those that are shown to be worse come last" in " ".join(found.words)


def trial(seed: int, value: float) -> TrialRow:
    metric = Metric(name="sanity/psnr", value=value, unit="dB", higher_is_better=True)
    return TrialRow(seed, f"r{seed}", RunState.SUCCEEDED, "", result(None, sanity=[metric]), 3600.0, 0, None)


@on_sqlite
def test_later_rounds_are_trained_where_the_experiment_says_and_not_where_a_shared_run_was(
    bench: Bench, rounds: dict[str, Any], tmp_path: Path
) -> None:
    first = bench.submit(rounds | {"seeds": 4})
    bench.go_until(lambda: finish(bench) or bench.experiment(first).published)
    here = shutil.copytree(rounds["base"]["data"]["uri"], tmp_path / "moved")
    rounds["base"]["data"]["uri"] = str(here)
    experiment = bench.submit(rounds)
    bench.go_until(lambda: len(bench.experiment(experiment).looks) == 1)
    assert sum(bench.cluster.submissions.values()) == 12
    later = [run for run in bench.runs() if run.spec["seed"] >= 4]
    assert {run.spec["data"]["uri"] for run in later} == {str(here)}
    assert len(later) == 8


def test_a_service_of_before_that_took_rounds_for_over_is_put_right_at_the_next_start(
    bench: Bench, rounds: dict[str, Any]
) -> None:
    experiment = bench.submit(rounds)
    fixed = bench.submit(rounds | {"seeds": 2})
    with bench.db.write() as session:
        session.execute(update(Experiment).values(published=True))
    bench.reconciler.reopen_rounds()
    assert not bench.experiment(experiment).published
    assert bench.experiment(fixed).published
    run_to_the_end(bench, experiment)
    assert len(bench.experiment(experiment).looks) == 3


@on_sqlite
def test_while_a_look_is_to_come_the_ranking_stays_what_it_was(bench: Bench, rounds: dict[str, Any]) -> None:
    experiment = bench.submit(rounds)
    with pytest.raises(NotExtendable, match="has a look to come"):
        extend(bench.db, experiment, Extension(evaluation={"rank_by": "sanity/retrieval_top1"}), FILES_ONLY, None)


@on_sqlite
def test_a_table_of_before_or_between_measurements_claims_no_failure(bench: Bench, rounds: dict[str, Any]) -> None:
    experiment = bench.submit(rounds)
    run_to_the_end(bench, experiment)
    extend(bench.db, experiment, Extension(evaluation={"mask_ratio": 0.4}), FILES_ONLY, None)
    told = " ".join(table(bench, experiment).words)
    assert "too few had finished" not in told
    assert "saved 8 runs" in told


@on_sqlite
def test_where_the_baseline_fails_nothing_was_saved_and_the_way_out_is_said(
    bench: Bench, rounds: dict[str, Any]
) -> None:
    experiment = bench.submit(rounds)
    run_to_the_end(bench, experiment, fails=lambda ratio, seed: ratio == BASE)
    found = table(bench, experiment)
    assert seeds(bench, experiment) == dict.fromkeys(EFFECTS, 4)
    assert found.rounds
    assert (found.rounds.runs_saved, found.rounds.hours_saved) == (0, 0)
    assert "submit a new experiment" in " ".join(found.words)
    assert row(found, BETTER).rounds.words == "stopped after 4 of 12 seeds: no run of the baseline has finished"
    assert headline(found).answer == "No verdict"


@on_sqlite
def test_few_pairs_are_counted_and_not_tested(bench: Bench, rounds: dict[str, Any]) -> None:
    experiment = bench.submit(rounds)
    bench.go_until(
        lambda: (
            finish(bench, lambda ratio, seed: ratio == BETTER and seed < 2)
            or len(bench.experiment(experiment).looks) == 1
        )
    )
    assert row(table(bench, experiment), BETTER).difference.verdict == "n = 2: no verdict"


@on_sqlite
def test_what_a_cancelled_round_trained_is_said_to_be_in_no_test(bench: Bench, rounds: dict[str, Any]) -> None:
    experiment = bench.submit(rounds)
    bench.go_until(lambda: finish(bench) or len(bench.experiment(experiment).looks) == 1)
    bench.go_until(lambda: len(bench.cluster.live()) == 8)
    finish(bench)
    actions.cancel(bench.db, experiment)
    bench.go_until(lambda: bench.experiment(experiment).published)
    assert "8 runs finished after the last look" in " ".join(table(bench, experiment).words)


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        ({"rounds": [4]}, "a list of two to 10 numbers"),
        ({"rounds": [8, 4]}, "each larger than the last"),
        ({"rounds": ["4", "8"]}, "a list of two to 10 numbers"),
        ({"rounds": [4.0, 8.0]}, "a list of two to 10 numbers"),
        ({"rounds": [2, 8]}, "from 3 to 50"),
        ({"rounds": [4, 10**30]}, "from 3 to 50"),
        ({"rounds": [4, 8], "first": -1}, "a seed from 0"),
        ({"rounds": [4, 8], "futility": 1}, "a number from 0 to below 1"),
        ({"rounds": [4, 8], "target": "beast"}, "baseline, or best"),
        ({"rounds": [4, 8], "futilty": 0.1}, "the fields rounds, first, spending, target, futility alone"),
        ({}, "a list of two to 10 numbers"),
    ],
)
def test_a_wrong_design_is_refused_with_what_is_possible(
    rounds: dict[str, Any], asked: dict[str, Any], told: str
) -> None:
    with pytest.raises(InvalidSpec) as refused:
        experiments.check(rounds | {"seeds": asked}, FILES_ONLY)
    [problem] = refused.value.problems
    assert problem.field == "seeds"
    assert told in problem.possible


def test_rounds_need_two_arms_and_something_to_decide_by(rounds: dict[str, Any]) -> None:
    with pytest.raises(InvalidSpec, match="rounds of one arm"):
        experiments.check(rounds | {"factors": {"mask_ratio": [0.75]}}, FILES_ONLY)
    rounds["base"]["evaluation"] = {}
    with pytest.raises(InvalidSpec, match="no metric to decide by"):
        experiments.check(rounds, FILES_ONLY)


@on_sqlite
def test_every_form_says_what_was_decided_when_and_how(bench: Bench, rounds: dict[str, Any]) -> None:
    rounds["factors"]["contrastive.weight"] = [1.0, 0.5]
    for ratio in list(EFFECTS):
        assert ratio in rounds["factors"]["mask_ratio"]
    experiment = bench.submit(rounds)
    run_to_the_end(bench, experiment)
    found = table(bench, experiment)
    text, tex, csv = plaintext.markdown(found), latex(found), plaintext.comma_separated(found)
    for form in text, tex:
        assert "decided after 4 of 12 seeds" in form
        assert "group-sequential Holm" in form
        assert "repeated" in form
    assert "| p (all looks) |" in text
    assert "difference_level" in csv.splitlines()[0]
    assert "rounds_decided_after" in csv.splitlines()[0]
    # Nothing is said of factors that no error rate stands behind.
    assert {level.effect.verdict for factor in found.factors for level in factor.levels if level.effect} == {
        "not tested: seeds in rounds"
    }
    assert "Effects of factors have no verdicts" in text
    again = Comparison.model_validate_json(found.model_dump_json())
    assert again == found


@on_sqlite
def test_the_best_of_several_arms_is_found_by_dropping_the_others(bench: Bench, rounds: dict[str, Any]) -> None:
    rounds["seeds"] |= {"target": "best"}
    experiment = bench.submit(rounds)
    run_to_the_end(bench, experiment)
    found = table(bench, experiment)
    assert seeds(bench, experiment) == dict.fromkeys(EFFECTS, 4)
    assert headline(found).answer == "Yes"
    assert row(found, BASE).rounds.worse_than == "mask_ratio=0.5"
    assert row(found, BASE).rounds.words.startswith(
        "dropped after 4 of 12 seeds: worse than mask_ratio=0.5 (by 39.7, p = "
    )
    assert row(found, SAME).rounds.loss.mean < 0
    told = " ".join([*found.words, *headline(found).cautions])
    # Every pair is tested, so nothing is said of the baseline alone.
    assert "not tested against each other" not in told
    assert "better or worse than the baseline" not in told
    assert found.rounds
    assert found.rounds.comparisons == 3


@on_sqlite
def test_a_dry_run_says_what_the_first_round_is(http_plan: Callable[[dict[str, Any]], Any], rounds: Any) -> None:
    plan = http_plan(rounds)
    assert [sum(run["round"] == number for run in plan["runs"]) for number in (1, 2, 3)] == [12, 12, 12]
    assert 0 < plan["first_round_gpu_hours"] < plan["estimated_gpu_hours"]


@on_sqlite
def test_what_a_report_of_rounds_lacks_was_not_needed_and_is_no_other_run(bench: Bench, rounds: dict[str, Any]) -> None:
    experiment = bench.submit(rounds)
    run_to_the_end(bench, experiment)
    plan = experiments.plan(bench.db, check_and_resolve(rounds), bench.settings, bench.cluster)
    with bench.db.read() as session:
        report = report_of(session, experiment, None)
    assert other_runs(report, plan) == []
    moved = [run.model_copy(update={"id": "r0"}) if run.seed == 0 else run for run in plan.runs]
    assert len(other_runs(report, plan.model_copy(update={"runs": moved}))) == 3


def test_pages_and_terminal_say_which_round_it_is_and_the_form_offers_no_seeds(
    settings: Settings, rounds: dict[str, Any]
) -> None:
    scene = Scene(settings)
    made = scene.http.post("/v1/experiments", json=rounds).json()
    assert made["rounds"] == {"seeds": [4, 8, 12], "number": 1, "is_over": False}
    said = "round 1 of 3 (up to 4 of 12 seeds)"
    assert said in show.counts(ExperimentDetail.model_validate(made))
    page = scene.http.get(f"/experiments/{made['id']}").text
    assert said in page
    assert "tested first at the look after 4 of 12 seeds" in page or "No run has finished yet" in page
    assert said in scene.http.get("/").text
    form = scene.http.get(f"/experiments/{made['id']}/extend").text
    assert "allows for no other looks" in form
    assert 'name="seeds"' not in form
    scene.db.engine.dispose()


@pytest.fixture
def http_plan(bench: Bench) -> Callable[[dict[str, Any]], Any]:
    def plan(spec: dict[str, Any]) -> Any:
        made = experiments.plan(bench.db, check_and_resolve(spec), bench.settings, bench.cluster)
        return made.model_dump(mode="json")

    return plan
