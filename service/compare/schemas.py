"""The comparison as the API returns it: one row an arm, and what may be said about it in words."""

from datetime import datetime

from pydantic import BaseModel, ConfigDict

from service.tables import RunState
from trainer.records import Floors


class Part(BaseModel):
    model_config = ConfigDict(use_attribute_docstrings=True, allow_inf_nan=False)


class RankingMetric(Part):
    name: str
    unit: str
    higher_is_better: bool
    note: str = ""


class SeedValue(Part):
    """One trial: its run, and the probe's value where the run succeeded."""

    seed: int
    run_id: str
    state: RunState
    value: float | None
    reason: str
    tracking_url: str | None


class Estimate(Part):
    n: int
    mean: float | None
    sd: float | None
    low: float | None
    """Lower end of the 95 % interval."""
    high: float | None


class Difference(Estimate):
    """Arm minus baseline over the same seeds."""

    p: float | None
    p_holm: float | None
    verdict: str
    """better, worse, no difference shown, or why there is no verdict."""


class FloorCheck(Floors):
    """Means of the floors over the arm's runs, and whether the arm is above them."""

    above: bool | None
    """Above both floors; None = too few seeds to say."""
    words: str


class ArmRow(Part):
    name: str
    levels: dict[str, str]
    is_baseline: bool
    rank: int | None
    """By the probe's mean; 1 is best. None without a probe."""
    seeds: int
    """Trials that were asked for."""
    probe: Estimate | None
    difference: Difference | None
    floors: FloorCheck | None
    sanity: dict[str, float]
    """Means of metrics that show that training works; they do not rank."""
    images_seen: float | None
    """Mean over the finished runs."""
    gpu_hours: float
    """Process-hours over all attempts of all runs of the arm, however they ended."""
    restarts: int
    runs: list[SeedValue]
    missing: list[SeedValue]
    """Trials that are not in the mean: still to come, failed or cancelled."""


class Comparison(Part):
    experiment_id: str
    name: str
    made_at: datetime
    complete: bool
    """Every trial has succeeded."""
    metric: RankingMetric | None
    baseline: str
    arms: list[ArmRow]
    words: list[str]
    """What the table shows and what it does not."""
