"""What a comparison needs of the database: three statements, however many runs there are."""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import String, cast, func, select
from sqlalchemy.orm import Session

from service.compare.readings import kept_readings
from service.compare.rounds import InRounds, Look
from service.compare.table import ArmTrials, TrialRow, TrialSpeed
from service.schemas.comparison import Digest
from service.tables import TRIAL_REASON, TRIAL_STATE, Arm, Experiment, Run, Trial
from service.text import run_in_mlflow
from trainer.contract import asked_subset_seed
from trainer.contract.records import Result
from trainer.contract.rounds import Rounds

NAMED = (
    ("data", "data", "uri"),
    ("initial encoder", "initial", "source"),
    ("probe's images and annotations", "evaluation", "images"),
    ("teacher", "teacher", "source"),
)
"""What is digested, the part of a run's spec that holds its sha256, and the field that names it."""
STAGES = ("alignment", "parsing")
"""Parts of `evaluation` that are digested, too."""

RANK_BY = ("base", "evaluation", "rank_by")
"""In the spec of an experiment: it may change when more is measured, and no run with it."""

TELLING = 2
"""Runs of an arm that tell what it asks of `data.subset_seed`."""

Fingerprint = tuple[tuple[Any, ...], ...]


def load(session: Session, experiment_id: str, tracking_uri: str | None) -> tuple[Experiment, list[ArmTrials]] | None:
    """The experiment and its arms with their trials, in the order of the request; None when there is none."""
    experiment = session.get(Experiment, experiment_id)
    if experiment is None or experiment.purged_at:
        return None
    arms = session.scalars(select(Arm).where(Arm.experiment_id == experiment_id).order_by(Arm.position)).all()
    rows = session.execute(
        select(
            Trial.arm_id, Trial.seed, Run.id, TRIAL_STATE.label("state"), TRIAL_REASON.label("reason"), Run.result,
            Run.process_seconds, Run.restarts,
            Run.tracking_id, Run.tracking_run_id, Run.world_sizes, Run.spec["evaluation"].label("evaluation"),
            Run.mean_images_per_second, Run.waiting_share, Run.peak_share, Run.compile_seconds, Run.readings,
            Run.pool_seconds,
        )
        .join(Run, Run.id == Trial.run_id)
        .where(Trial.experiment_id == experiment_id)
        .order_by(Trial.seed)
    )  # fmt: skip
    trials: dict[int, list[TrialRow]] = {arm.id: [] for arm in arms}
    for row in rows:
        parsed = Result.model_validate(row.result) if row.result else None
        mean = row.mean_images_per_second
        speed = TrialSpeed(mean, row.waiting_share, row.peak_share, row.compile_seconds) if mean is not None else None
        trials[row.arm_id].append(TrialRow(
            row.seed, row.id, row.state, row.reason, parsed, row.process_seconds, row.restarts,
            run_in_mlflow(tracking_uri, row.tracking_id, row.tracking_run_id), row.world_sizes, speed,
            row.evaluation or {}, kept_readings(row.readings), row.pool_seconds,
        ))  # fmt: skip
    return experiment, [
        ArmTrials(arm.name, arm.levels, arm.is_baseline, trials[arm.id], arm.id, arm.cancel_reason) for arm in arms
    ]


def rounds_of(experiment: Experiment, arms: Sequence[ArmTrials]) -> InRounds | None:
    """Its design and the looks taken, arms by name; None where all seeds are trained whatever they show."""
    if not isinstance(seeds := experiment.spec["seeds"], Mapping):
        return None
    names = {str(arm.id): arm.name for arm in arms}
    looks = [
        Look(
            datetime.fromisoformat(look["taken_at"]),
            {names[id]: frozenset(seeds) for id, seeds in look["finished"].items()},
            frozenset(names[str(id)] for id in look["on"]),
        )
        for look in experiment.looks
    ]
    stopped = {arm.name: arm.stopped for arm in arms if arm.stopped}
    return InRounds(Rounds.model_validate(seeds), looks, experiment.cancelled_at is not None, stopped)


def fingerprint(session: Session, experiment_id: str) -> Fingerprint:
    """Changes whenever `load` finds something else; without results, which are most of what there is to read."""
    rows = session.execute(
        select(
            Trial.id, Run.id, TRIAL_STATE, Run.ended_at, TRIAL_REASON, Run.process_seconds, Run.restarts,
            Run.tracking_run_id, Run.last_reading, Arm.cancel_reason,
        )
        .join(Run, Run.id == Trial.run_id)
        .join(Arm, Arm.id == Trial.arm_id)
        .where(Trial.experiment_id == experiment_id)
        .order_by(Trial.id)
    )  # fmt: skip
    # Looks are only added.
    of_all = Experiment.spec[RANK_BY], func.length(cast(Experiment.looks, String)), Experiment.cancelled_at
    experiment = session.execute(select(*of_all).where(Experiment.id == experiment_id))
    return tuple(tuple(row) for row in itertools.chain(experiment, rows))


def specs(session: Session, experiment_id: str) -> dict[str, dict[str, Any]]:
    """Arm -> spec of the run of its first seed, with the subset that the arm asks for."""
    number = func.row_number().over(partition_by=Trial.arm_id, order_by=Trial.seed).label("number")
    first = select(Trial.arm_id, Trial.run_id, number).where(Trial.experiment_id == experiment_id).subquery()
    rows = session.execute(
        select(Arm.name, Run.spec)
        .join(first, first.c.arm_id == Arm.id)
        .join(Run, Run.id == first.c.run_id)
        .where(first.c.number <= TELLING)
        .order_by(Arm.position, first.c.number)
    )
    found: dict[str, list[dict[str, Any]]] = {}
    for name, spec in rows:
        found.setdefault(name, []).append(spec)
    return {
        name: {**runs[0], "data": {**runs[0]["data"], "subset_seed": asked_subset_seed(runs)}}
        for name, runs in found.items()
    }


def digests(session: Session, experiment_id: str) -> list[Digest]:
    """Of the data, teachers and annotations of an experiment's runs, each once."""
    rows = session.execute(
        select(Run.spec, Run.result).where(
            Run.id.in_(select(Trial.run_id).where(Trial.experiment_id == experiment_id))
        )
    )  # fmt: skip
    found = {}
    for spec, result in rows:
        for item in _digests(spec, Result.model_validate(result) if result else None):
            found[item.what, item.name, item.sha256] = item
    return [found[key] for key in sorted(found)]


def _digests(spec: Mapping[str, Any], result: Result | None) -> Iterator[Digest]:
    # Not as a RunSpec: a run of an older version may have fields that are no more.
    for what, part, field in NAMED:
        found = spec.get(part, {})
        if sha256 := found.get("sha256"):
            yield Digest(what=what, name=str(found.get(field) or spec["data"]["uri"]), sha256=sha256)
    for stage in STAGES:
        if (found := spec.get("evaluation", {}).get(stage, {})) and (sha256 := found.get("sha256")):
            yield Digest(what=f"{stage}: {found['benchmark']}", name=found["uri"], sha256=sha256)
    if result:
        seed = spec["data"].get("subset_seed", 0)
        drawn = f"{result.subset_size:,} images, subset seed {spec['seed'] if seed == 'run' else seed}"
        yield Digest(what="data subset", name=drawn, sha256=result.subset_digest)
        yield Digest(what="held-out images", name="", sha256=result.held_out_digest)
