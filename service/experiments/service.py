"""Submitting, cancelling and retrying experiments. What takes long (files, the store) is outside of transactions."""

import hashlib
import json
import secrets
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Select, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from k8s.pools import Pool
from service import projects
from service.costs import prices_of
from service.db import Database
from service.errors import Deleted, InvalidSpec, KeyReused, NotFound, Unavailable
from service.experiments import repository, views
from service.experiments.estimate import estimate
from service.experiments.placing import misplaced
from service.experiments.wishes import follow
from service.launching.port import Launch, Launcher
from service.schemas.experiments import ExperimentDetail, Plan, PlannedArm, PlannedRun
from service.settings import Settings
from service.states import DEFAULT_PROJECT, RunState
from service.tables import Arm, Experiment, Run, Trial
from trainer.contract import Placement, Problem, RunSpec, SpecError
from trainer.contract.ablation import Arm as ArmSpec
from trainer.contract.rounds import MOST
from trainer.resolve import Resolved, check_and_resolve
from trainer.weights.sources import Library

# One request for more is a slip of the keyboard; before anything is expanded.
MAX_RUNS_OF_EXPERIMENT = 10_000
CONCURRENT_WRITES = 3
NO_USER_CODE = (
    "what mcf has; or ask the operator to allow user code: MCF_USER_CODE=true, in the chart service.settings.userCode"
)
# Of a run's digest in its id; more where another one begins with the same.
DIGITS, MORE_DIGITS = 12, 15


def check(
    payload: Mapping[str, Any], library: Library, pools: Mapping[str, Pool] | None = None, *, user_code: bool = False
) -> Resolved:  # fmt: skip
    """Raises InvalidSpec with every problem. `pools`: those of the cluster; None = any name will do.

    `user_code`: whether the operator allows it.
    """
    try:
        _refuse_too_many(payload)
        resolved = check_and_resolve(payload, library, "" if user_code else NO_USER_CODE)
        if problems := list(_misplaced(resolved, pools)):
            raise SpecError(problems)
        return resolved
    except SpecError as error:
        count = len(error.problems)
        detail = f"{count} problem{'s' if count > 1 else ''}: {'; '.join(map(str, error.problems))}"
        raise InvalidSpec(detail, problems=error.problems) from error


def _misplaced(resolved: Resolved, pools: Mapping[str, Pool] | None) -> Iterator[Problem]:
    decoders = {run.data.decoder for arm in resolved.arms for run in arm.runs.values()}
    return misplaced(resolved.spec.placement, pools, needs_gpu="nvjpeg" in decoders)


def plan(
    db: Database, resolved: Resolved, settings: Settings, launcher: Launcher, project: str = DEFAULT_PROJECT
) -> Plan:  # fmt: skip
    """What a request would do; nothing is written. Runs of an experiment that does not share are all new.

    Raises InvalidSpec where the project may not have that.
    """
    specs = {(arm.name, seed): spec for arm in resolved.arms for seed, spec in arm.runs.items()}
    private_to = "" if resolved.spec.share else "this experiment"
    rounds, has_gpus = resolved.spec.rounds, launcher.has_gpus(resolved.spec.placement)
    with db.read() as session:
        _refuse_priority(session, project, resolved.spec.placement)
        existing = repository.existing_runs(session, (spec.digest for spec in specs.values()), private_to)
        new = {key: spec for key, spec in specs.items() if _is_new(existing.get(spec.digest))}
        trained = repository.trained(session, (spec.pretraining for spec in new.values()), private_to)
        guess = estimate(session, _to_train(new.values(), trained, resolved), has_gpus)
        first = [spec for spec in new.values() if spec.seed in resolved.spec.first_seeds]
        least = estimate(session, _to_train(first, trained, resolved), has_gpus) if rounds else None
    known = {digest: run.id for digest, run in existing.items()}
    ids = {key: known.get(spec.digest) or run_id(spec.digest, private_to) for key, spec in specs.items()}
    return Plan(
        arms=[PlannedArm(name=a.name, levels=a.levels, is_baseline=a.is_baseline) for a in resolved.arms],
        runs=[
            PlannedRun(
                id=ids[key], digest=spec.digest, arm=key[0], seed=key[1], total_steps=_steps(spec, resolved),
                already=existing[spec.digest].state if spec.digest in existing else None,
                weights_of=trained.get(spec.pretraining) if key in new else None,
                round=rounds.round_of(spec.seed) if rounds else None,
            )
            for key, spec in specs.items()
        ],
        launch_requests=[launcher.request(Launch(ids[key], 1, resolved.spec.placement)) for key in new],
        estimated_gpu_hours=guess.gpu_hours,
        estimated_cost=prices_of(settings).of_hours(guess.gpu_hours, resolved.spec.placement.pools[0]),
        first_round_gpu_hours=least.gpu_hours if least else None,
        estimate_basis=guess.basis,
        warnings=list(resolved.warnings),
    )  # fmt: skip


def _refuse_priority(session: Session, project: str, placement: Placement) -> None:
    if problems := projects.problems_with(session, project, placement.priority):
        raise InvalidSpec("; ".join(map(str, problems)), problems=problems)


def find_replay(db: Database, project: str, key: str, digest: str) -> Experiment | None:
    """The experiment an Idempotency-Key has made in the project. Raises KeyReused when it came with another body."""
    with db.read() as session:
        found = repository.by_key(session, project, key)
    if found and found.request_digest != digest:
        raise KeyReused(
            f"Idempotency-Key {key!r} has already created {found.id} from another body. "
            "Send a new key with a new request."
        )
    return found


def submit(
    db: Database, resolved: Resolved, key: str | None, digest: str, *, project: str = DEFAULT_PROJECT, by: str = ""
) -> str:  # fmt: skip
    """Write the experiment, and return its id. Of equal requests at the same moment each sees the other's runs.

    `by`: name of the token.
    """
    for attempt in range(CONCURRENT_WRITES):
        try:
            with db.deciding() as session:
                _refuse_priority(session, project, resolved.spec.placement)
                before = projects.going(session, admitted=False).get(project, 0)
                made = _write(session, resolved, key, digest, project, by)
                session.flush()
                projects.refuse_too_many(session, project, before)
                return made
        except IntegrityError:
            # Another request has written the same key or the same runs since we looked.
            if key and (replay := find_replay(db, project, key, digest)):
                return replay.id
            if attempt == CONCURRENT_WRITES - 1:
                raise
    raise AssertionError("unreachable")


def get(session: Session, experiment_id: str, *, lock: bool = False, project: str | None = None) -> Experiment:
    """`project`: the only one to look in. Raises NotFound."""
    query = select(Experiment).where(Experiment.id == experiment_id.replace("\0", ""), Experiment.purged_at.is_(None))
    if project:
        query = query.where(Experiment.project == project)
    found = session.scalar(query.with_for_update(key_share=True) if lock else query)
    if found is None:
        raise NotFound(f"There is no experiment {experiment_id!r}. GET /v1/experiments lists all.")
    return found


def refuse_deleted(experiment: Experiment) -> None:
    """Raises Deleted."""
    if experiment.deleted_at:
        raise Deleted(f"Experiment {experiment.id} was deleted. Restore it first: `mcf restore {experiment.id}`.")


def show(db: Database, settings: Settings, experiment_id: str) -> ExperimentDetail:
    """Raises NotFound."""
    with db.read() as session:
        return views.detail(session, get(session, experiment_id), settings)


def run_id(digest: str, private_to: str, digits: int = DIGITS) -> str:
    """Name of a new run: the same for equal specs, unless it is private to an experiment."""
    if private_to:
        digest = hashlib.sha256((digest + private_to).encode()).hexdigest()
    return f"r{digest[:digits]}"


def _write(session: Session, resolved: Resolved, key: str | None, digest: str, project: str, by: str) -> str:
    spec, now = resolved.spec, _now()
    experiment = Experiment(
        id=f"e{secrets.token_hex(5)}", name=spec.name, project=project, spec=spec.model_dump(mode="json"),
        created_at=now, created_by=by, idempotency_key=key, request_digest=digest, concurrency=spec.concurrency,
        priority=spec.placement.priority, gpu_hours=spec.gpu_hours, next_check_at=now,
    )  # fmt: skip
    arms = [
        Arm(
            experiment_id=experiment.id,
            position=n,
            name=arm.name,
            levels=arm.levels,
            is_baseline=arm.is_baseline,
            sample=sample(resolved, arm),
        )
        for n, arm in enumerate(resolved.arms)
    ]
    session.add(experiment)
    session.flush()
    session.add_all(arms)
    session.flush()
    # Seed by seed, so that as soon as every arm has one every arm has a number.
    wanted = [
        wanted_run(resolved, source.runs[seed], arm.id)
        for seed in spec.first_seeds
        for arm, source in zip(arms, resolved.arms, strict=True)
    ]
    add_trials(session, experiment, wanted)
    return experiment.id


def sample(resolved: Resolved, arm: ArmSpec) -> dict[str, Any] | None:
    """What `Arm.sample` is."""
    return next(iter(arm.runs.values())).model_dump(mode="json") if resolved.spec.rounds else None


@dataclass(frozen=True)
class WantedRun:
    """A run that an experiment is to have."""

    spec: RunSpec
    total_steps: int
    arm_id: int


def wanted_run(resolved: Resolved, spec: RunSpec, arm_id: int) -> WantedRun:
    return WantedRun(spec, _steps(spec, resolved), arm_id)


def add_trials(session: Session, experiment: Experiment, wanted: Sequence[WantedRun]) -> None:
    """Runs that the experiment has not had so far: new ones, and those of others that are equal."""
    runs = ensure_runs(session, experiment, wanted)
    cancelled = {arm.id: arm.cancel_reason for arm in session.scalars(_arms_of(experiment))}
    session.add_all(
        Trial(
            experiment_id=experiment.id, arm_id=item.arm_id, seed=item.spec.seed, run_id=run.id,
            cancel_reason=cancelled[item.arm_id],
        )
        for run, item in zip(runs, wanted, strict=True)
    )  # fmt: skip
    follow(session, [run.id for run in runs], _now())


def ensure_runs(session: Session, experiment: Experiment, wanted: Sequence[WantedRun]) -> list[Run]:
    """Of each one that is wanted: an equal one where there is one, else a new one, queued."""
    now, private_to = _now(), "" if experiment.spec["share"] else experiment.id
    digests = [item.spec.digest for item in wanted]
    existing = repository.existing_runs(session, digests, private_to, lock=True)
    # The same twelve digits of another digest: no accident that is likely, and none that may mix two runs up.
    new = [each for each in digests if each not in existing]
    taken = repository.taken_ids(session, (run_id(each, private_to, n) for each in new for n in (DIGITS, MORE_DIGITS)))
    placement = experiment.spec["placement"]
    found = []
    for item, digest in zip(wanted, digests, strict=True):
        if run := existing.get(digest):
            _join(session, run, experiment, placement, now)
        else:
            ids = [run_id(digest, private_to, n) for n in (DIGITS, MORE_DIGITS)]
            free = [id for id in ids if id not in taken]
            if not free:
                raise Unavailable(
                    f"What deleted runs have left in {' and '.join(ids)} is being removed. Ask again soon."
                )
            run = Run(
                id=free[0], digest=digest,
                pretraining=item.spec.pretraining, private_to=private_to, spec=item.spec.model_dump(mode="json"),
                placement=placement, home_id=experiment.id, created_at=now, next_check_at=now,
                total_steps=item.total_steps,
            )  # fmt: skip
            session.add(run)
        found.append(run)
    session.flush()
    return found


def _arms_of(experiment: Experiment) -> Select[Arm]:
    return select(Arm).where(Arm.experiment_id == experiment.id)


def _join(session: Session, run: Run, experiment: Experiment, placement: dict[str, Any], now: datetime) -> None:
    """An equal run exists: share it, and bring it back where it was given up for no fault of its own."""
    if _is_new(run):
        repository.requeue(session, [run], experiment.id, now)
        run.placement = placement
    elif run.cancel_reason and not run.state.is_final:
        # Being stopped for another experiment: what it is told next is to go on, for this one.
        run.placement = placement


def _is_new(run: Run | None) -> bool:
    """Whether a request for it means training: it does not exist, was cancelled, or failed because of the cluster."""
    return (
        run is None
        or run.state is RunState.CANCELLED
        or (run.state is RunState.FAILED and run.kind == "Infrastructure")
    )


def _steps(spec: RunSpec, resolved: Resolved) -> int:
    return spec.total_steps(resolved.num_images[spec.digest])


def _to_train(
    new: Iterable[RunSpec], trained: Container[str], resolved: Resolved
) -> list[tuple[RunSpec, int]]:  # fmt: skip
    """Each with its optimizer steps: none where a run that is there, or one of these, has trained the weights."""
    found, before = [], set[str]()
    for spec in new:
        again = spec.pretraining in trained or spec.pretraining in before
        found.append((spec, 0 if again else _steps(spec, resolved)))
        before.add(spec.pretraining)
    return found


def _refuse_too_many(payload: Mapping[str, Any]) -> None:
    seeds, factors = payload.get("seeds", 1), payload.get("factors", {})
    if isinstance(seeds, Mapping) and isinstance(rounds := seeds.get("rounds"), list) and rounds:
        # More than that is refused for another reason.
        seeds = min(rounds[-1], MOST) if isinstance(rounds[-1], int) else 1
    count = seeds if isinstance(seeds, int) else len(seeds) if isinstance(seeds, list) else 1
    for levels in factors.values() if isinstance(factors, Mapping) else ():
        count *= max(1, len(levels)) if isinstance(levels, list) else 1
    if count > MAX_RUNS_OF_EXPERIMENT:
        raise SpecError(
            [Problem(field="seeds", asked=f"{count} runs (arms x seeds)", possible=f"at most {MAX_RUNS_OF_EXPERIMENT}")]
        )


def request_digest(payload: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(payload, sort_keys=True).encode()).hexdigest()


def _now() -> datetime:
    return datetime.now(UTC)
