"""What is done to an experiment after it was submitted: some of it is cancelled, paused, resumed, retried, changed."""

import contextlib
from typing import Any

import pytest
from pydantic import ValidationError
from sqlalchemy import update

from k8s.pools import Pool
from service.compare import plaintext
from service.compare.service import comparison_of
from service.errors import AlreadyEnded, Ambiguous, Conflict, InvalidSpec, NotFound, NothingToResume, NothingToRetry
from service.experiments import actions
from service.experiments import service as experiments
from service.schemas.comparison import Comparison
from service.schemas.experiments import Changes, ExperimentDetail, Part
from service.states import RunState
from service.tables import Run
from tests.unit.service.bench import Bench, Killed
from tests.unit.service.test_reconciler import finish_all
from trainer.contract.records import Metric

FIRST, SECOND = "mask_ratio=0.75", "mask_ratio=0.5"


def detail(bench: Bench, experiment: str) -> ExperimentDetail:
    return experiments.show(bench.db, bench.settings, experiment)


def states_of(bench: Bench, experiment: str, arm: str) -> list[str]:
    [found] = [item for item in detail(bench, experiment).arms if item.name == arm]
    return [trial.state.value for trial in found.trials]


def table(bench: Bench, experiment: str) -> Comparison:
    with bench.db.read() as session:
        found = comparison_of(session, experiment, None)
    assert found
    return found


def settle(bench: Bench, ticks: int = 6) -> None:
    bench.go(ticks)


# ---------------------------------------------------------------- cancel and retry


def test_an_arm_is_cancelled_the_rest_goes_on_and_the_table_says_so(bench: Bench, spec: dict[str, Any]) -> None:
    experiment = bench.submit(spec)
    bench.go(3)
    actions.cancel(bench.db, experiment, "ann", Part(arms=[SECOND]))
    actions.cancel(bench.db, experiment, "ann", Part(arms=[SECOND]))  # again: harmless
    settle(bench)
    assert len(bench.cluster.live()) == 2
    finish_all(bench)
    assert states_of(bench, experiment, FIRST) == ["succeeded", "succeeded"]
    assert states_of(bench, experiment, SECOND) == ["cancelled", "cancelled"]
    assert detail(bench, experiment).state == "succeeded"
    found = table(bench, experiment)
    assert not found.complete
    [row] = [row for row in found.arms if row.name == SECOND]
    assert [(run.seed, run.reason) for run in row.missing] == [(0, "cancelled by ann"), (1, "cancelled by ann")]
    assert "cancelled" in plaintext.markdown(found)

    actions.retry(bench.db, bench.settings, experiment, Part(arms=[SECOND]))
    finish_all(bench)
    assert table(bench, experiment).complete
    assert {attempt.number for attempt in bench.attempts()} == {1, 2}


def test_what_is_cancelled_by_itself_is_retried_only_when_it_is_named(bench: Bench, spec: dict[str, Any]) -> None:
    experiment = bench.submit(spec)
    bench.go(3)
    victim = bench.runs()[0].id
    actions.cancel(bench.db, experiment, part=Part(runs=[victim]))
    settle(bench)
    finish_all(bench)
    with pytest.raises(NothingToRetry, match="3 succeeded"):
        actions.retry(bench.db, bench.settings, experiment)
    with pytest.raises(AlreadyEnded, match="3 succeeded"):
        actions.cancel(bench.db, experiment, part=Part(runs=[run.id for run in bench.runs() if run.id != victim]))
    actions.retry(bench.db, bench.settings, experiment, Part(runs=[victim]))
    finish_all(bench)
    assert bench.states() == {"succeeded": 4}


def test_a_run_that_comes_back_while_it_is_being_stopped_goes_on(bench: Bench, spec: dict[str, Any]) -> None:
    experiment = bench.submit(spec | {"factors": {}, "seeds": 1})
    bench.go(3)
    [run] = bench.runs()
    for _ in range(2):
        actions.cancel(bench.db, experiment, part=Part(runs=[run.id]))
        actions.retry(bench.db, bench.settings, experiment, Part(runs=[run.id]))
    finish_all(bench)
    assert bench.states() == {"succeeded": 1}
    assert table(bench, experiment).complete


def test_a_shared_run_goes_on_for_the_others_and_counts_again_when_it_has_a_result(
    bench: Bench, spec: dict[str, Any]
) -> None:
    first = bench.submit(spec)
    second = bench.submit(spec | {"name": "other"})
    bench.go(3)
    actions.cancel(bench.db, first, "ann", Part(arms=[FIRST, SECOND]))
    settle(bench)
    assert bench.states() == {"starting": 4}
    assert {run.home_id for run in bench.runs()} == {second}
    shown = detail(bench, first)
    assert (shown.state, shown.counts) == ("cancelled", {RunState.CANCELLED: 4})
    assert bench.experiment(first).published, "it waits for nobody"
    assert len(table(bench, first).arms[0].missing) == 2
    finish_all(bench)
    assert table(bench, second).complete
    assert table(bench, first).complete


def test_a_cancelled_arm_gets_no_seeds_in_later_rounds(bench: Bench, spec: dict[str, Any]) -> None:
    base = spec["base"] | {"evaluation": {"rank_by": "sanity/psnr"}}
    arms, rounds = {"mask_ratio": [0.75, 0.5, 0.6]}, {"rounds": [4, 8], "futility": 0.0}
    experiment = bench.submit(spec | {"base": base, "factors": arms, "seeds": rounds})
    with pytest.raises(AlreadyEnded, match="baseline"):
        actions.cancel(bench.db, experiment, part=Part(arms=[FIRST]))
    bench.go(3)
    actions.cancel(bench.db, experiment, part=Part(arms=["mask_ratio=0.6"]))
    settle(bench)
    finish_all(bench)
    bench.go(4)
    finish_all(bench)
    bench.go(4)
    seeds = {arm.name: len(arm.trials) for arm in detail(bench, experiment).arms}
    assert seeds["mask_ratio=0.6"] == 4
    assert table(bench, experiment).rounds
    assert bench.experiment(experiment).published


def test_the_leader_is_cancelled_and_the_others_are_still_compared(bench: Bench, spec: dict[str, Any]) -> None:
    base = spec["base"] | {"evaluation": {"rank_by": "sanity/psnr"}}
    arms, rounds = {"mask_ratio": [0.75, 0.5, 0.6]}, {"rounds": [4, 8], "futility": 0.0, "target": "best"}
    experiment = bench.submit(spec | {"base": base, "factors": arms, "seeds": rounds})
    bench.go(3)
    for name in bench.cluster.live():
        run = next(run for run in bench.runs() if name.startswith(run.id))
        value = {0.75: 20.0, 0.5: 20.1, 0.6: 25.0}[run.spec["mask_ratio"]] + run.spec["seed"] * 0.3 * (-1) ** run.step
        bench.cluster.succeed(
            name, sanity=[Metric(name="sanity/psnr", value=value, unit="dB", higher_is_better=True)]
        )  # fmt: skip
    actions.cancel(bench.db, experiment, "ann", Part(arms=["mask_ratio=0.6"]))
    bench.go(8)
    seeds = {arm.name: len(arm.trials) for arm in detail(bench, experiment).arms}
    assert seeds["mask_ratio=0.6"] == 4
    words = {row.name: row.rounds.words for row in table(bench, experiment).arms if row.rounds}
    assert "cancelled by ann" in words["mask_ratio=0.6"]
    actions.retry(bench.db, bench.settings, experiment, Part(arms=["mask_ratio=0.6"]))
    assert "cancelled by ann" not in str(table(bench, experiment).words)


def test_a_whole_experiment_that_is_cancelled_waits_for_no_other(bench: Bench, spec: dict[str, Any]) -> None:
    first, second = bench.submit(spec), bench.submit(spec | {"name": "second"})
    bench.go(3)
    actions.cancel(bench.db, first)
    actions.pause(bench.db, second)
    settle(bench)
    assert bench.states() == {"paused": 4}
    assert bench.experiment(first).published


# ---------------------------------------------------------------- pause and resume


def test_what_is_paused_makes_room_and_goes_on_from_its_checkpoint(bench: Bench, spec: dict[str, Any]) -> None:
    bench.settings.max_concurrent_runs = 4
    experiment = bench.submit(spec)
    bench.go(3)
    for name in bench.cluster.live():
        bench.cluster.train(name, 6)
    bench.go(1)
    actions.pause(bench.db, experiment, "ann")
    actions.pause(bench.db, experiment, "bob")  # again: harmless
    settle(bench)
    assert bench.states() == {"paused": 4}
    assert not bench.cluster.live()
    assert {run.waiting_reason for run in bench.runs()} == {"paused by ann"}
    shown = detail(bench, experiment)
    assert (shown.state, shown.pause_reason, shown.state.is_final) == ("paused", "paused by ann", False)
    other = bench.submit(spec | {"name": "other", "factors": {"mask_ratio": [0.6]}})
    bench.go(3)
    assert len(bench.cluster.live()) == 2, "its places are given to others"
    actions.resume(bench.db, experiment)
    finish_all(bench)
    assert bench.states() == {"succeeded": 6}
    assert {detail(bench, id).state for id in (experiment, other)} == {"succeeded"}
    assert {attempt.first_step for attempt in bench.attempts() if attempt.number == 2} == {6}
    assert {attempt.reason for attempt in bench.attempts() if attempt.state == "cancelled"} == {"paused by ann"}
    with pytest.raises(NothingToResume):
        actions.resume(bench.db, experiment)
    with pytest.raises(AlreadyEnded):
        actions.pause(bench.db, experiment)


def test_one_run_or_arm_is_resumed_of_a_paused_experiment(bench: Bench, spec: dict[str, Any]) -> None:
    experiment = bench.submit(spec)
    actions.pause(bench.db, experiment, "ann")
    settle(bench)
    assert not bench.cluster.submissions, "what was never started is not started to be paused"
    actions.resume(bench.db, experiment, Part(arms=[SECOND]))
    bench.go(3)
    assert (states_of(bench, experiment, FIRST), states_of(bench, experiment, SECOND)) == (
        ["paused"] * 2, ["starting"] * 2,
    )  # fmt: skip
    assert detail(bench, experiment).state == "running"
    actions.resume(bench.db, experiment)
    finish_all(bench)
    assert bench.states() == {"succeeded": 4}


def test_a_shared_run_pauses_when_all_who_want_it_pause_and_goes_on_for_whoever_asks(
    bench: Bench, spec: dict[str, Any]
) -> None:
    first, second = bench.submit(spec), bench.submit(spec | {"name": "second"})
    bench.go(3)
    actions.pause(bench.db, first)
    settle(bench)
    assert bench.states() == {"starting": 4}
    actions.cancel(bench.db, second)
    settle(bench)
    assert bench.states() == {"paused": 4}, "cancelled by one, and kept for the other"
    assert {run.home_id for run in bench.runs()} == {first}
    third = bench.submit(spec | {"name": "third"})
    finish_all(bench)
    assert detail(bench, third).state == "succeeded"
    assert {run.home_id for run in bench.runs()} == {third}


@pytest.mark.parametrize("point", ["after cancel", "before look"])
def test_a_service_that_is_killed_while_it_pauses_has_paused_when_it_is_back(
    bench: Bench, spec: dict[str, Any], point: str
) -> None:
    experiment = bench.submit(spec | {"factors": {}, "seeds": 1})
    bench.go(3)
    actions.pause(bench.db, experiment)
    when, what = point.split()
    setattr(bench.cluster, f"killed_{when}", what)
    with pytest.raises(Killed):
        bench.go(5)
    bench.start()
    bench.go(seconds=bench.settings.lease_seconds + 1)
    bench.go(3)
    assert bench.states() == {"paused": 1}
    actions.cancel(bench.db, experiment)
    bench.go(3)
    assert bench.states() == {"cancelled": 1}


def test_paused_and_cancelled_runs_hold_no_place_and_wait_in_no_queue(bench: Bench, spec: dict[str, Any]) -> None:
    experiment = bench.submit(spec | {"concurrency": 1})
    bench.go(3)
    [going] = [run.id for run in bench.runs() if run.admitted]
    actions.pause(bench.db, experiment, part=Part(runs=[going]))
    settle(bench)
    assert len(bench.cluster.live()) == 1, "its place in the experiment's concurrency is free"
    assert [run.id for run in bench.runs() if run.state is RunState.PAUSED] == [going]


# ---------------------------------------------------------------- change


def test_what_has_not_ended_gets_another_priority_concurrency_and_cap(bench: Bench, spec: dict[str, Any]) -> None:
    bench.settings.max_concurrent_runs = 1
    first = bench.submit(spec | {"concurrency": 1})
    second = bench.submit(spec | {"name": "urgent", "factors": {"mask_ratio": [0.6]}})
    bench.go(2)
    actions.change(bench.db, second, Changes(priority=5), None)
    bench.cluster.succeed(bench.cluster.live()[0])
    bench.go(4)
    [live] = [run for run in bench.runs() if run.id == bench.cluster.live()[0].rpartition("-")[0]]
    assert live.home_id == second
    bench.settings.max_concurrent_runs = 100
    actions.change(bench.db, first, Changes(concurrency=9, gpu_hours=1.4), None)
    bench.go(4)
    assert len(bench.cluster.live()) == 5
    shown = detail(bench, first)
    assert (shown.concurrency, shown.gpu_hours_cap, shown.spec["concurrency"]) == (9, 1.4, 9)
    with pytest.raises(InvalidSpec, match="used"):
        actions.change(bench.db, first, Changes(gpu_hours=0.5), None)
    actions.change(bench.db, first, Changes(gpu_hours=None), None)
    finish_all(bench)
    assert bench.states() == {"succeeded": 6}
    with pytest.raises(AlreadyEnded, match="nothing left to change"):
        actions.change(bench.db, first, Changes(priority=1), None)


def test_runs_move_to_the_pool_that_is_asked_for(bench: Bench, spec: dict[str, Any]) -> None:
    pools = {
        name: Pool.model_validate({"gpus": gpus, "image": "mcf"})
        for name, gpus in (("old", 1), ("new", 1), ("small", 0))
    }
    experiment = bench.submit(spec | {"placement": {"pool": "old"}, "seeds": 1})
    bench.go(3)
    with pytest.raises(InvalidSpec, match="possible: new, old, small"):
        actions.change(bench.db, experiment, Changes(pool="else"), pools)
    with pytest.raises(InvalidSpec, match="no pools"):
        actions.change(bench.db, experiment, Changes(pool="new"), None)
    assert len(bench.attempts()) == 2, "what is refused has changed nothing"
    with bench.db.write() as session:
        session.execute(update(Run).values(placement={"pool": "elsewhere"}))
    actions.change(bench.db, experiment, Changes(priority=3), pools)
    assert {run.placement["pool"] for run in bench.runs()} == {"elsewhere"}, "who asks for no pool changes none"
    with bench.db.write() as session:
        session.execute(update(Run).values(placement={"pool": "old"}))
    actions.change(bench.db, experiment, Changes(pool=["new", "small"]), pools)
    bench.go(6)
    assert {(attempt.number, attempt.pool, attempt.state.is_live) for attempt in bench.attempts()} == {
        (1, "old", False), (2, "new", True),
    }  # fmt: skip
    finish_all(bench)
    assert bench.states() == {"succeeded": 2}
    assert not any(run.fruitless for run in bench.runs())


# ---------------------------------------------------------------- refusals


@pytest.mark.parametrize("action", [actions.cancel, actions.pause])
def test_what_is_not_there_is_refused_whole(bench: Bench, spec: dict[str, Any], action: Any) -> None:
    experiment = bench.submit(spec)
    part = Part(arms=[FIRST, "mask_ratio=9"], runs=["r0"])
    with pytest.raises(InvalidSpec) as caught:
        action(bench.db, experiment, part=part)
    assert [problem.field for problem in caught.value.problems] == ["arms", "runs"]
    assert FIRST in caught.value.detail
    bench.go(3)
    assert bench.states() == {"starting": 4}


def test_an_empty_list_does_not_mean_everything() -> None:
    for asked in ({"arms": []}, {"runs": []}, {"arms": [], "runs": []}):
        with pytest.raises(ValidationError, match="leave out both"):
            Part.model_validate(asked)
    assert Part.model_validate({}).is_whole


def test_a_run_is_of_the_experiment_that_is_named_or_of_the_only_one_that_lives(
    bench: Bench, spec: dict[str, Any]
) -> None:
    first, second = bench.submit(spec), bench.submit(spec | {"name": "second"})
    run = bench.runs()[0].id
    with pytest.raises(Ambiguous, match=f"{first}.*{second}"):
        actions.experiment_of(bench.db, run, None, None)
    assert actions.experiment_of(bench.db, run, None, second) == second
    with pytest.raises(NotFound):
        actions.experiment_of(bench.db, run, None, "e0")
    actions.cancel(bench.db, first)
    assert actions.experiment_of(bench.db, run, None, None) == second


def test_people_who_change_their_minds_all_the_time_lose_no_run(bench: Bench, spec: dict[str, Any]) -> None:
    """Any action on any part, in any order, with kills between: in the end whoever still wants a result gets it."""
    import random

    rng = random.Random(7)
    wanted = [bench.submit(spec), bench.submit(spec | {"name": "second"})]
    acts = [actions.cancel, actions.pause, actions.resume]
    for _ in range(80):
        experiment = rng.choice(wanted)
        runs = [run.id for run in bench.runs()]
        part = rng.choice([Part(runs=[rng.choice(runs)]), Part(arms=[rng.choice([FIRST, SECOND])]), actions.WHOLE])
        act = rng.choice(acts)
        if not (act is actions.cancel and part.is_whole):
            with contextlib.suppress(Conflict):
                act(bench.db, experiment, part=part)
        if rng.random() < 0.4:
            with contextlib.suppress(Conflict):
                actions.retry(bench.db, bench.settings, experiment, part)
        if rng.random() < 0.2:
            setattr(bench.cluster, rng.choice(["killed_before", "killed_after"]), rng.choice(["look", "cancel"]))
        try:
            bench.go(seconds=rng.choice([1, 5, 70]))
        except Killed:
            bench.start()
        assert _lives_once(bench)
    bench.cluster.killed_before = bench.cluster.killed_after = ""
    for experiment in wanted:
        for act in (actions.resume, lambda db, id: actions.retry(db, bench.settings, id, Part(arms=[FIRST, SECOND]))):
            with contextlib.suppress(Conflict):
                act(bench.db, experiment)
    bench.go(seconds=100)
    finish_all(bench)
    assert bench.states() == {"succeeded": 4}
    assert [detail(bench, id).state for id in wanted] == ["succeeded"] * 2


def _lives_once(bench: Bench) -> bool:
    live = [name.rpartition("-")[0] for name in bench.cluster.live()]
    paused = {run.id for run in bench.runs() if run.state is RunState.PAUSED or run.state.is_final}
    return len(live) == len(set(live)) and not paused & set(live) and all(map(_is_told_once, bench.runs()))


def _is_told_once(run: Run) -> bool:
    return not (run.cancel_reason and run.pause_reason)
