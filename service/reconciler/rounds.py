"""Seeds in rounds: when the runs of a round have ended, a look is taken, and arms that go on get their next seeds.

One transaction does both, so whoever is killed on the way has done neither. What a look decides follows from the runs'
numbers (service/compare/rounds.py); written down are the seeds that had finished, and who was given more.
"""

from collections.abc import Collection
from dataclasses import replace
from datetime import datetime

from sqlalchemy.orm import Session

from service.compare import repository
from service.compare.rounds import InRounds, Look
from service.compare.service import rank_by
from service.compare.table import ArmTrials, course_of, metric_of
from service.experiments.service import WantedRun, add_trials
from service.states import RunState
from service.tables import Arm, Experiment, Run
from trainer.contract import RunSpec


def close_round(session: Session, experiment: Experiment, now: datetime) -> bool:
    """Take the look that is due and queue the next round; False where a run of this one is still on its way.

    A run that has failed is left out: the look is taken with what there is.
    """
    found = repository.load(session, experiment.id, None)
    assert found
    _, arms = found
    rounds = repository.rounds_of(experiment, arms)
    assert rounds
    if any(not trial.state.is_final for arm in arms for trial in arm.trials):
        return False
    finished = {
        arm.name: frozenset(trial.seed for trial in arm.trials if trial.state is RunState.SUCCEEDED) for arm in arms
    }
    on = _going_on(experiment, arms, replace(rounds, looks=[*rounds.looks, Look(now, finished, frozenset())]))
    ids = {arm.name: arm.id for arm in arms}
    experiment.looks = [
        *experiment.looks,
        {
            "taken_at": now.isoformat(),
            "finished": {str(ids[name]): sorted(seeds) for name, seeds in finished.items()},
            "on": sorted(ids[name] for name in on),
        },
    ]
    experiment.revision += 1
    if on:
        seeds = rounds.design.seeds_of(len(experiment.looks) + 1)
        add_trials(session, experiment, _wanted(session, [arm for arm in arms if arm.name in on], seeds))
    return True


def _going_on(experiment: Experiment, arms: Collection[ArmTrials], rounds: InRounds) -> Collection[str]:
    """Names of the arms that get more seeds after the last of the looks."""
    *before, last = rounds.looks
    so_far = set(before[-1].on if before else (arm.name for arm in arms)) - rounds.stopped.keys()
    metric, _ = metric_of(list(arms), None, rank_by(experiment))
    if metric is None:
        # Nothing can be decided, as with a number of seeds, which are all trained then, too.
        is_last = len(rounds.looks) == len(rounds.design.rounds)
        return set() if is_last or not any(last.finished.values()) else so_far
    return course_of(list(arms), metric, rounds).going_on(so_far)


def _wanted(session: Session, arms: Collection[ArmTrials], seeds: Collection[int]) -> list[WantedRun]:
    """Seed by seed, as the first round. Nothing is looked for again: data and teacher are pinned by their digests."""
    samples = {arm.id: RunSpec.model_validate(session.get_one(Arm, arm.id).sample) for arm in arms}
    # A seed does not change how many there are.
    steps = {arm.id: session.get_one(Run, arm.trials[0].run_id).total_steps for arm in arms}
    return [
        WantedRun(samples[arm.id].model_copy(update={"seed": seed}), steps[arm.id], arm.id)
        for seed in seeds
        for arm in arms
    ]
