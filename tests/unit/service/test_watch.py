"""The bars of `mcf watch`."""

import io

from rich.console import Console

from service.cli.watch import _bars, warnings
from service.schemas.experiments import ArmView, ExperimentDetail, TrialView
from service.states import RunState


def test_brackets_of_a_path_and_of_an_error_are_shown_as_they_are() -> None:
    trial = TrialView.model_construct(
        seed=0, state=RunState.QUEUED, step=0, total_steps=4, progress=0.0, waiting_reason="[Errno 111] refused [/b]"
    )
    arm = ArmView(name="data.uri=[red]", levels={}, is_baseline=True, trials=[])
    detail = ExperimentDetail.model_construct(
        name="faces", arms=[arm.model_copy(update={"trials": [trial]})], progress=0.0, eta_seconds=None
    )
    printed = io.StringIO()
    Console(file=printed, width=140).print(_bars(detail))
    told = printed.getvalue()
    assert "data.uri=[red]" in told
    assert "seed 0 waits: [Errno 111] refused [/b]" in told


def test_a_run_that_trains_and_learns_nothing_is_warned_of_and_one_that_waits_is_not() -> None:
    def trial(seed: int, state: RunState, reason: str) -> TrialView:
        return TrialView.model_construct(seed=seed, state=state, step=0, total_steps=4, waiting_reason=reason)

    trials = [
        trial(0, RunState.RUNNING, "it has stalled"), trial(1, RunState.RUNNING, ""), trial(2, RunState.QUEUED, "busy")
    ]  # fmt: skip
    arm = ArmView.model_construct(name="base", levels={}, is_baseline=True, trials=trials)
    assert warnings(ExperimentDetail.model_construct(arms=[arm])) == ["base, seed 0: it has stalled"]
