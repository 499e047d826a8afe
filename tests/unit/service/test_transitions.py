"""The table of transitions against a world that crashes, forgets and lies in wait."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from service.launching.port import Job, JobState
from service.reconciler.facts import Action, AttemptFacts, Observed, RunFacts
from service.reconciler.transitions import MAX_CRASHES, MAX_FRUITLESS, MAX_OUT_OF_MEMORY, decide
from service.states import AttemptState, RunState
from trainer.contract.records import Outcome, Verdict

NOW = datetime(2026, 1, 1, tzinfo=UTC)
STEPS = 5


class World(RuleBasedStateMachine):
    """One run, a scheduler, a trainer that may die, and a service that may die between any two things it does."""

    def __init__(self) -> None:
        super().__init__()
        self.now = NOW
        self.run = RunFacts()
        self.jobs: dict[int, JobState] = {}
        self.sessions: dict[int, int] = {}
        self.step = 0
        self.outcome: Outcome | None = None
        self.final: RunFacts | None = None

    # -- the service

    def seen(self) -> Observed:
        number = self.run.attempt.number if self.run.attempt else 0
        return Observed(
            job=Job(self.jobs.get(number, JobState.ABSENT)), step=self.step, outcome=self.outcome, has_result=True,
            sessions_of_attempt=self.sessions.get(number, 0),
        )  # fmt: skip

    @rule(dies_before_acting=st.booleans(), dies_before_writing=st.booleans())
    def look(self, dies_before_acting: bool, dies_before_writing: bool) -> None:
        decision = decide(self.run, self.seen(), self.now)
        if dies_before_acting:
            return
        number = decision.run.attempt.number if decision.run.attempt else 0
        if decision.action is Action.SUBMIT:
            self.jobs.setdefault(number, JobState.PENDING)
        if decision.action is Action.CANCEL and self.jobs[number].is_live:
            self.jobs[number] = JobState.CANCELLED
        if not dies_before_writing:
            self.run = decision.run

    @rule()
    def admit(self) -> None:
        # A paused run gets no place.
        may = not (self.run.state.is_final or self.run.state is RunState.PAUSED or self.run.pause_reason)
        self.run = replace(self.run, admitted=may)

    @rule(seconds=st.integers(0, 90))
    def time_passes(self, seconds: int) -> None:
        self.now += timedelta(seconds=seconds)

    @rule()
    @precondition(lambda self: not self.run.state.is_final)
    def somebody_cancels(self) -> None:
        self.run = replace(self.run, cancel_reason="asked to")

    @rule(reason=st.sampled_from(["paused", ""]))
    @precondition(lambda self: not self.run.state.is_final)
    def somebody_pauses_or_resumes(self, reason: str) -> None:
        self.run = replace(self.run, pause_reason=reason)

    # -- the world

    def live(self) -> list[int]:
        return [number for number, job in self.jobs.items() if job.is_live]

    @rule()
    @precondition(lambda self: self.live())
    def trainer_takes_a_step(self) -> None:
        [number] = self.live()
        self.jobs[number] = JobState.RUNNING
        if self.outcome is None:
            self.sessions[number] = 1
            self.step = min(STEPS, self.step + 1)

    @rule(verdict=st.sampled_from(Verdict))
    @precondition(lambda self: self.live() and self.outcome is None)
    def trainer_ends_the_run(self, verdict: Verdict) -> None:
        if self.step == STEPS or verdict is Verdict.FAILED:
            self.outcome = Outcome(verdict=verdict, step=self.step, ended_at=self.now)

    @rule(state=st.sampled_from([JobState.FAILED, JobState.SUCCEEDED, JobState.CANCELLED]))
    @precondition(lambda self: self.live())
    def attempt_ends(self, state: JobState) -> None:
        self.jobs[self.live()[0]] = state

    # -- promises

    @invariant()
    def never_two_live_attempts(self) -> None:
        assert len(self.live()) <= 1

    @invariant()
    def final_states_are_final_and_leave_nothing_alive(self) -> None:
        if self.run.state.is_final:
            assert not self.live()
            assert not self.run.admitted
            assert not (self.run.attempt and self.run.attempt.is_live)
            self.final = self.final or self.run
            assert self.run == self.final

    @invariant()
    def what_is_paused_leaves_nothing_alive_and_holds_no_place(self) -> None:
        if self.run.state is RunState.PAUSED:
            assert not self.live()
            assert not self.run.admitted

    @invariant()
    def only_the_run_itself_says_that_it_succeeded(self) -> None:
        if self.run.state is RunState.SUCCEEDED:
            assert self.outcome
            assert self.outcome.verdict is Verdict.SUCCEEDED

    def teardown(self) -> None:
        """Every run ends when the world behaves, and nobody keeps it paused."""
        self.run = replace(self.run, pause_reason="")
        for _ in range(60):
            if not self.run.state.is_final:
                self.admit()
            self.look(False, False)
            if self.live():
                self.trainer_takes_a_step()
                if self.step == STEPS and self.outcome is None:
                    self.trainer_ends_the_run(Verdict.SUCCEEDED)
                elif self.outcome:
                    self.attempt_ends(JobState.SUCCEEDED)
            self.now += timedelta(seconds=30)
        assert self.run.state.is_final


World.TestCase.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
TestWorld = World.TestCase

RUNNING = RunFacts(
    state=RunState.RUNNING, admitted=True, step=10,
    attempt=AttemptFacts(1, "", AttemptState.RUNNING, confirmed=True, first_step=10, last_step=10),
)  # fmt: skip


def test_attempts_without_a_new_step_are_bounded_and_say_what_was_printed_last() -> None:
    run = replace(RUNNING, fruitless=MAX_FRUITLESS - 1)
    seen = Observed(Job(JobState.FAILED, "node 0 ended with 1"), log_tail="No space left on device", step=10)
    after = decide(run, seen, NOW).run
    assert (after.state, after.kind) == (RunState.FAILED, "Infrastructure")
    assert "node 0 ended with 1" in after.reason
    assert "No space left" in after.reason


def test_attempts_that_advance_are_not_bounded() -> None:
    run = replace(RUNNING, fruitless=MAX_FRUITLESS - 1)
    after = decide(run, Observed(Job(JobState.FAILED), step=11), NOW).run
    assert (after.state, after.fruitless) == (RunState.INTERRUPTED, 0)


@pytest.mark.parametrize(("fruitless", "seconds"), [(0, 2), (1, 4)])
def test_the_pause_before_the_next_attempt_grows(fruitless: int, seconds: int) -> None:
    after = decide(replace(RUNNING, fruitless=fruitless), Observed(Job(JobState.FAILED), step=10), NOW).run
    assert after.not_before == NOW + timedelta(seconds=seconds)
    assert f"in {seconds} s" in after.waiting_reason


@pytest.mark.parametrize("job", [JobState.CANCELLED, JobState.LOST, JobState.ABSENT])
def test_attempts_that_are_stopped_or_killed_from_outside_do_not_count_against_the_run(job: JobState) -> None:
    after = decide(replace(RUNNING, fruitless=2), Observed(Job(job), step=10), NOW).run
    assert (after.state, after.fruitless) == (RunState.INTERRUPTED, 2)


def test_a_run_that_succeeded_before_it_could_be_cancelled_has_succeeded() -> None:
    outcome = Outcome(verdict=Verdict.SUCCEEDED, step=10, ended_at=NOW)
    run = replace(RUNNING, cancel_reason="asked to")
    after = decide(run, Observed(Job(JobState.CANCELLED), outcome=outcome, has_result=True), NOW).run
    assert after.state is RunState.SUCCEEDED


def test_success_without_a_result_is_a_failure_with_that_reason() -> None:
    outcome = Outcome(verdict=Verdict.SUCCEEDED, step=10, ended_at=NOW)
    after = decide(RUNNING, Observed(Job(JobState.SUCCEEDED), outcome=outcome, has_result=False), NOW).run
    assert (after.state, after.kind) == (RunState.FAILED, "MissingResult")


def test_an_attempt_that_ends_well_before_its_run_is_not_said_to_be_gone() -> None:
    after = decide(RUNNING, Observed(Job(JobState.SUCCEEDED)), NOW).run
    assert after.state is RunState.INTERRUPTED
    assert after.attempt
    assert after.attempt.reason == "its nodes exited normally, but the run had not ended"


def test_processes_that_stay_after_the_end_are_stopped_before_the_run_ends() -> None:
    outcome = Outcome(verdict=Verdict.SUCCEEDED, step=10, ended_at=NOW)
    seen = Observed(Job(JobState.RUNNING), outcome=outcome, has_result=True)
    assert decide(RUNNING, seen, NOW).action is None
    late = decide(RUNNING, seen, NOW + timedelta(minutes=3))
    assert late.action is Action.CANCEL
    assert not late.run.state.is_final


def test_a_run_waits_while_mlflow_is_away_and_says_so() -> None:
    after = decide(RunFacts(admitted=True), Observed(not_ready="MLflow does not answer"), NOW).run
    assert (after.state, after.waiting_reason) == (RunState.QUEUED, "MLflow does not answer")


def test_a_spec_that_runs_out_of_memory_twice_fails_with_that_reason_when_nothing_of_it_is_left() -> None:
    once = Observed(Job(JobState.RUNNING, out_of_memory=MAX_OUT_OF_MEMORY - 1), step=11, sessions_of_attempt=1)
    assert decide(RUNNING, once, NOW).action is None
    twice = Observed(Job(JobState.RUNNING, out_of_memory=MAX_OUT_OF_MEMORY), step=11, sessions_of_attempt=2)
    stopping = decide(RUNNING, twice, NOW)
    assert stopping.action is Action.CANCEL
    assert not stopping.run.state.is_final
    # The service is started anew, and the pods that knew of it are gone.
    after = decide(stopping.run, Observed(Job(), step=11, log_tail="allocating 3 GiB"), NOW).run
    assert (after.state, after.kind) == (RunState.FAILED, "OutOfMemory")
    assert "lower batch.slice" in after.reason
    assert "allocating 3 GiB" in after.reason


def test_an_attempt_whose_containers_end_and_end_without_a_step_makes_room_for_the_next() -> None:
    seen = Observed(Job(JobState.RUNNING, "w-0 has ended 4 times", crashes=MAX_CRASHES), step=10)
    stopping = decide(RUNNING, seen, NOW)
    assert stopping.action is Action.CANCEL
    after = decide(stopping.run, Observed(Job(JobState.CANCELLED), step=10), NOW).run
    assert (after.state, after.fruitless) == (RunState.INTERRUPTED, 1)
    assert "ended 4 times without a new step; w-0" in after.attempt.reason
    advanced = replace(seen, step=11)
    assert decide(RUNNING, advanced, NOW).action is None


def test_an_attempt_moves_to_another_pool_that_has_room_and_nobody_is_blamed() -> None:
    waiting = replace(RUNNING, attempt=replace(RUNNING.attempt, pool="spot"))
    seen = Observed(Job(JobState.PENDING, "no node of the pool spot has 8 free GPUs", room_in="on-demand"), step=10)
    stopping = decide(waiting, seen, NOW)
    assert stopping.action is Action.CANCEL
    assert stopping.run.waiting_reason.startswith("moves to the pool on-demand, which has room (no node of the pool")
    again = decide(stopping.run, replace(seen, job=replace(seen.job, state=JobState.RUNNING, message="stopping")), NOW)
    assert (again.action, again.run.waiting_reason) == (Action.CANCEL, stopping.run.waiting_reason)
    between = decide(again.run, Observed(Job(), step=10), NOW).run
    assert (between.state, between.fruitless) == (RunState.INTERRUPTED, 0)
    opened = decide(between, Observed(Job(), step=10, pool="on-demand"), NOW + timedelta(minutes=1)).run
    assert (opened.attempt.number, opened.attempt.pool) == (2, "on-demand")


def test_a_run_whose_nodes_a_queue_has_taken_back_waits_and_trains_again_in_the_same_attempt() -> None:
    words = "waits in its queue: Evicted by preemption"
    waiting = decide(RUNNING, Observed(Job(JobState.PENDING, words), sessions_of_attempt=1, step=10), NOW).run
    assert (waiting.state, waiting.waiting_reason) == (RunState.INTERRUPTED, words)
    assert waiting.attempt
    assert waiting.attempt.is_live
    again = decide(waiting, Observed(Job(JobState.RUNNING), sessions_of_attempt=2, step=11), NOW).run
    assert (again.state, again.waiting_reason) == (RunState.RUNNING, "")


def test_what_somebody_has_to_see_to_is_said_while_the_run_goes_on() -> None:
    run = RunFacts(state=RunState.RUNNING, admitted=True, attempt=AttemptFacts(1, confirmed=True))
    seen = Observed(job=Job(JobState.RUNNING), step=3, sessions_of_attempt=1, trouble="The MLflow run was deleted.")
    after = decide(run, seen, NOW).run
    assert (after.state, after.waiting_reason) == (RunState.RUNNING, "The MLflow run was deleted.")
