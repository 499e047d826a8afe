"""What a comparison needs of the database: three statements, however many runs there are."""

from sqlalchemy import select
from sqlalchemy.orm import Session

from service.compare.table import ArmTrials, TrialRow
from service.tables import Arm, Experiment, Run, Trial
from trainer.records import Result


def load(session: Session, experiment_id: str, tracking_uri: str | None) -> tuple[Experiment, list[ArmTrials]] | None:
    """The experiment and its arms with their trials, in the order of the request; None when there is none."""
    experiment = session.get(Experiment, experiment_id)
    if experiment is None:
        return None
    arms = session.scalars(select(Arm).where(Arm.experiment_id == experiment_id).order_by(Arm.position)).all()
    rows = session.execute(
        select(
            Trial.arm_id, Trial.seed, Run.id, Run.state, Run.reason, Run.result, Run.process_seconds, Run.restarts,
            Run.tracking_id, Run.tracking_run_id, Run.world_sizes,
        )
        .join(Run, Run.id == Trial.run_id)
        .where(Trial.experiment_id == experiment_id)
        .order_by(Trial.seed)
    )  # fmt: skip
    trials: dict[int, list[TrialRow]] = {arm.id: [] for arm in arms}
    for arm_id, seed, run_id, state, reason, result, seconds, restarts, tracking_id, tracking_run_id, sizes in rows:
        url = None
        if tracking_uri and tracking_run_id:
            url = f"{tracking_uri.rstrip('/')}/#/experiments/{tracking_id}/runs/{tracking_run_id}"
        parsed = Result.model_validate(result) if result else None
        trials[arm_id].append(TrialRow(seed, run_id, state, reason, parsed, seconds, restarts, url, sizes))
    return experiment, [ArmTrials(arm.name, arm.levels, arm.is_baseline, trials[arm.id]) for arm in arms]
