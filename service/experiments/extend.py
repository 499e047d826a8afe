"""More arms, seeds or measurements for an experiment that exists. What it has is neither trained again nor touched."""

import copy
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy.exc import IntegrityError

from k8s.pools import Pool
from service import projects
from service.db import Database
from service.errors import InvalidSpec, NotExtendable
from service.experiments import repository, service
from service.experiments.wishes import follow
from service.states import RunState
from service.tables import Arm, Experiment, Run
from trainer.contract import ExperimentSpec, Problem, RunSpec
from trainer.contract.frozen import MAX_INTEGER
from trainer.resolve import Resolved
from trainer.weights.sources import Library

NumSeeds = Annotated[int, Field(ge=1, le=service.MAX_RUNS_OF_EXPERIMENT)]
Seed = Annotated[int, Field(ge=0, le=MAX_INTEGER)]


class Extension(BaseModel):
    model_config = ConfigDict(extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True)

    seeds: NumSeeds | list[Seed] = Field(default_factory=list)
    """Repeats that every arm is to have: a number n (seeds 0..n-1), or seeds to add to those there are."""
    factors: dict[str, list[Any]] = Field(default_factory=dict)
    """Factor of the experiment -> levels to add; every combination with the other factors is an arm."""
    evaluation: dict[str, Any] = Field(default_factory=dict)
    """Fields of `base.evaluation` to set. Runs that have ended are measured, and not trained, again."""
    gpu_hours: float | None = Field(None, gt=0)
    """A new cap over all runs; None = as it was."""


def extend(
    db: Database, experiment_id: str, more: Extension, library: Library, pools: Mapping[str, Pool] | None, *,
    user_code: bool = False,
) -> None:  # fmt: skip
    """Add what is not there yet, and queue it; asking again is harmless.

    Raises NotFound, InvalidSpec with every problem, and NotExtendable where the experiment was cancelled, what it was
    trained on is no longer there as it was, more is to be measured of runs that have not ended, or its seeds come in
    rounds and it is to have others.
    """
    for attempt in range(service.CONCURRENT_WRITES):
        with db.read() as session:
            experiment = service.get(session, experiment_id)
            _refuse_cancelled(experiment)
            before = experiment.spec
            if experiment.has_look_to_come and "rank_by" in more.evaluation:
                raise NotExtendable(
                    f"{experiment_id} has a look to come, and what it ranks by decides who gets more seeds. Change it "
                    "when the rounds are over, or look at another metric meanwhile: `mcf compare --metric`."
                )
        resolved = service.check(extended(before, more), library, pools, user_code=user_code)
        try:
            if _write(db, experiment_id, before, resolved, measured_anew=bool(more.evaluation)):
                return
        except IntegrityError:
            # Another request has written one of the runs since we looked.
            if attempt == service.CONCURRENT_WRITES - 1:
                raise
    raise NotExtendable(
        f"Experiment {experiment_id} is being extended by another request. Look at what it has now, and ask again."
    )


def extended(spec: Mapping[str, Any], more: Extension) -> dict[str, Any]:
    """The spec with more levels, seeds and measurements; levels are added at the end, so that the baseline stays.

    Raises InvalidSpec for levels of what is no factor of the experiment, and for other images to hold out; and
    NotExtendable for arms and seeds where seeds come in rounds.
    """
    there = _may_have_more(spec, more)
    wanted = copy.deepcopy(dict(spec))
    factors: dict[str, list[Any]] = wanted.get("factors", {})
    problems = [
        Problem(field=f"factors.{name}", asked=repr(name), possible=f"a factor of the experiment: {_names(factors)}")
        for name in more.factors
        if name not in factors
    ]
    base = wanted.setdefault("base", {})
    asked_before = base.get("evaluation") or {}
    if more.evaluation.get("held_out") != asked_before.get("held_out") and "held_out" in more.evaluation:
        possible = "the same images as before: those held out decide what is trained on"
        problems.append(Problem(field="evaluation.held_out", asked=str(more.evaluation["held_out"]), possible=possible))
    if problems:
        told = "; ".join(map(str, problems))
        detail = f"{told}. For anything else submit a new experiment: it shares the runs that are equal"
        raise InvalidSpec(detail, problems=problems)
    if more.evaluation:
        base["evaluation"] = {**asked_before, **more.evaluation}
    for name, levels in more.factors.items():
        factors[name] += [level for level in levels if level not in factors[name]]
    if more.seeds:
        asked = range(more.seeds) if isinstance(more.seeds, int) else more.seeds
        seeds = there + [seed for seed in asked if seed not in there]
        wanted["seeds"] = len(seeds) if seeds == list(range(len(seeds))) else seeds
    if more.gpu_hours is not None:
        wanted["gpu_hours"] = more.gpu_hours
    return wanted


def _write(
    db: Database, experiment_id: str, before: Mapping[str, Any], resolved: Resolved, *, measured_anew: bool
) -> bool:
    """False where the experiment is not what it was when it was looked at."""
    spec = resolved.spec
    with db.deciding() as session:
        experiment = service.get(session, experiment_id, lock=True)
        _refuse_cancelled(experiment)
        if experiment.spec != before:
            return False
        found, rows = repository.arms_and_trials(session, experiment_id)
        # By their levels: how an arm is called may have changed since.
        arms = {_key(arm.levels): arm for arm in found}
        keys = {arm.id: _key(arm.levels) for arm in found}
        runs = {(keys[trial.arm_id], trial.seed): (trial, run) for trial, run in rows}
        today = {(_key(arm.levels), seed): run for arm in resolved.arms for seed, run in arm.runs.items()}
        if changed := [key for key, (_, run) in runs.items() if not _is_still(run, today.get(key), measured_anew)]:
            levels, seed = changed[0]
            arm = arms[levels].name
            raise NotExtendable(
                f"{len(changed)} of {len(runs)} runs would be different today (such as {arm}, seed {seed}): the data, "
                f"the teacher or the landmarks of {experiment_id} have changed, so new runs could not be compared with "
                "the old ones. Restore the files, or submit a new experiment."
            )
        for position, arm_now in enumerate(resolved.arms):
            key = _key(arm_now.levels)
            if key not in arms:
                arms[key] = Arm(
                    experiment_id=experiment_id, position=position, name=arm_now.name, levels=arm_now.levels,
                    is_baseline=arm_now.is_baseline,
                )  # fmt: skip
                session.add(arms[key])
            arms[key].position, arms[key].sample = position, service.sample(resolved, arm_now)
        experiment.spec, experiment.gpu_hours = spec.model_dump(mode="json"), spec.gpu_hours
        session.flush()
        anew = [key for key, (_, run) in runs.items() if run.digest != today[key].digest]
        _refuse_unfinished(experiment, [runs[key][1] for key in anew])
        wanted = [service.wanted_run(resolved, today[key], runs[key][0].arm_id) for key in anew]
        measured = service.ensure_runs(session, experiment, wanted)
        for place, run in zip(anew, measured, strict=True):
            trial, before_run = runs[place]
            if before_run.state is RunState.SUCCEEDED:
                # It counts, whatever was asked for before it had a result.
                trial.cancel_reason = trial.pause_reason = ""
            trial.run_id, trial.published = run.id, False
        follow(session, [run.id for run in measured], datetime.now(UTC))
        new = [
            service.wanted_run(resolved, arm.runs[seed], arms[_key(arm.levels)].id)
            for seed in spec.seed_list
            for arm in resolved.arms
            # Seeds that come in rounds are given out after each look, and not here.
            if (_key(arm.levels), seed) not in runs and not spec.rounds
        ]
        if new:
            before_it = projects.going(session, admitted=False).get(experiment.project, 0)
            service.add_trials(session, experiment, new)
            session.flush()
            projects.refuse_too_many(session, experiment.project, before_it)
        # A new cap counts from now on, too: whoever looks at the experiment now has read the old one.
        repository.reopen(session, [experiment_id], datetime.now(UTC))
    return True


def _may_have_more(spec: Mapping[str, Any], more: Extension) -> list[int]:
    """The seeds there are. Raises NotExtendable."""
    asked = ExperimentSpec.model_validate(spec)
    if asked.rounds and (more.seeds or more.factors):
        raise NotExtendable(
            f"Its seeds come in rounds ({', '.join(map(str, asked.rounds.rounds))}), and its error rate allows for no "
            "other looks and no other arms. Submit a new experiment with the arms and seeds you want: finished runs "
            "are shared and cost nothing."
        )
    return asked.seed_list


def _key(levels: Mapping[str, str]) -> frozenset[tuple[str, str]]:
    return frozenset(levels.items())


def _refuse_cancelled(experiment: Experiment) -> None:
    """Before anything is read, and again once nobody else can cancel it."""
    service.refuse_deleted(experiment)
    if experiment.cancelled_at:
        raise NotExtendable(
            f"Experiment {experiment.id} was cancelled. Submit it again with the arms and seeds you want: finished "
            "runs are shared and cost nothing."
        )


def _is_still(run: Run, today: RunSpec | None, measured_anew: bool) -> bool:
    """Whether what a run was trained on is still there; and what it was measured with, unless that is to change."""
    if today is None:
        return False
    return run.pretraining == today.pretraining if measured_anew else run.digest == today.digest


def _refuse_unfinished(experiment: Experiment, measured: Sequence[Run]) -> None:
    going = [run.id for run in measured if not run.settled]
    if going:
        raise NotExtendable(
            f"{len(going)} of {len(measured)} runs of {experiment.id} have not ended (such as {going[0]}), and more "
            "can be measured of ended ones only. Ask again when all have, or submit a new experiment: it measures the "
            "weights that these train."
        )


def _names(factors: Mapping[str, Any]) -> str:
    return ", ".join(factors) or "it has none"
