"""The comparison as the API returns it: one row an arm, and what may be said about it in words."""

from datetime import datetime
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from service.schemas.costs import Cost
from service.states import RunState
from trainer.contract.records import Floors
from trainer.contract.rounds import Spending, Target


class Part(BaseModel):
    model_config = ConfigDict(use_attribute_docstrings=True, allow_inf_nan=False)


class RankingMetric(Part):
    name: str
    unit: str
    higher_is_better: bool
    note: str = ""
    benchmark: str = ""
    """Of a stage's metric; empty for the probe."""
    digest: str = ""
    """Of the images and annotations it is measured on. Only numbers of one benchmark and digest can be compared."""


class SeedValue(Part):
    """One trial: its run, and the ranking metric's value where the run succeeded."""

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


class Tested(Estimate):
    """A difference over seeds, tested against zero."""

    p: float | None
    p_holm: float | None
    verdict: str
    """better, worse, no difference shown, or why there is no verdict."""


class Difference(Tested):
    """Arm minus baseline over the same seeds."""

    more_seeds: int | None
    """Seeds to add until a difference like this one would be shown (80 % power, 0.05 / number of arms compared);
    10000 = that or more, None = unknown, and where seeds come in rounds."""
    level: float | None = None
    """Where seeds come in rounds: what p has to be below at the look that these numbers are of. Then low and high are
    the repeated confidence interval, and p_holm is the smallest error rate over all looks and arms that shows it."""


class ArmInRounds(Part):
    """Where an arm is whose seeds come in rounds."""

    seeds: int
    """That it has been given."""
    most: int
    """That it could have."""
    goes_on: bool
    """Whether it waits for a look."""
    is_given_up: bool
    """It gets no more seeds and is not decided: it has little chance to be, or its runs failed."""
    decided_after: int | None
    """Seeds after which it was shown to differ from what it is held against: the baseline, or the best arm."""
    worse_than: str | None
    """With the target `best`: the arm that it is shown to be worse than, and then it is out."""
    loss: Difference | None
    """Its difference to that arm."""
    chance: float | None
    """That the last look would decide it, as predicted at its last look; null where it is decided, or had all looks."""
    words: str


class RoundsSoFar(Part):
    """Seeds in rounds: the design, and how far it is."""

    rounds: list[int]
    """Seeds of an arm after each round."""
    first: int
    """The first seed."""
    spending: Spending
    target: Target
    futility: float
    comparisons: int
    """Differences that are tested: arms less the baseline, or pairs of arms."""
    levels: list[float]
    """p at each look below which the first of these differences is shown, if no seed is missing."""
    looks: int
    """Taken so far."""
    is_over: bool
    """No arm gets more seeds."""
    is_cancelled: bool = False
    has_failed: bool = False
    """It is over because of the baseline, or of no arm, a run had finished: nothing could be tested."""
    runs: int
    most_runs: int
    """If every arm had all seeds."""
    runs_saved: int
    """Seeds that arms did not need, once it is over; 0 where it was cancelled. An arm that failed has saved none."""
    hours_saved: float
    """The same, at the cost of a run of their arms."""
    uncounted: int
    """Runs that finished after the last look, once it is over: in the means, and in no test."""


class Effect(Tested):
    """A level minus the baseline's level of the same factor: the mean over the other factors' cells, in each seed."""

    pairs: int
    """Pairs of runs that differ in this factor alone and have both finished."""
    missing_pairs: int


class FactorLevel(Part):
    level: str
    estimate: Estimate
    """Mean over the other factors' cells, over the seeds that have all of them."""
    effect: Effect | None
    """None for the baseline's own level."""


class Factor(Part):
    """A factor with its levels in the order of the request."""

    name: str
    baseline: str
    """Level of the baseline."""
    levels: list[FactorLevel]


class FactorCell(Part):
    level: str
    other_level: str
    estimate: Estimate


class Contrast(Tested):
    """Difference of differences: what `level` does at `other_level`, minus what it does at the baseline's."""

    level: str
    other_level: str


class Interaction(Part):
    """Two factors: every cell, and every 2 x 2 contrast against the baseline's levels."""

    factor: str
    other: str
    cells: list[FactorCell]
    contrasts: list[Contrast]


class FloorCheck(Floors):
    """Means of the floors over the arm's runs, and whether the arm is above them."""

    above: bool | None
    """Above both floors: for each, the 95 % interval of the paired difference over seeds, which is not adjusted for
    the number of arms. None = too few seeds to say."""
    words: str


class ArmRow(Part):
    name: str
    levels: dict[str, str]
    is_baseline: bool
    rank: int | None
    """By the ranking metric's mean; 1 is best. None without one."""
    seeds: int
    """Trials that were asked for."""
    probe: Estimate | None
    """Of the ranking metric, which is the probe unless another was asked for, here or by `evaluation.rank_by`."""
    difference: Difference | None
    floors: FloorCheck | None
    sanity: dict[str, float]
    """Means of metrics that show that training works, of the probe, and of each stage of evaluation; but for the one
    that ranks here."""
    images_seen: float | None
    """Mean over the finished runs."""
    gpu_hours: float
    """Process-hours over all attempts of all runs of the arm, however they ended."""
    # Without these fields, too, as a report or a service of the version before has none.
    cost: Cost | None = None
    """Of these hours, where node pools have prices."""
    images_per_second: float | None = None
    """Of training: mean over the arm's runs, as the three after it; None where it has not been measured."""
    peak_share: float | None = None
    """Of the FLOP/s that the GPUs can do at best; None where that is not known, as on CPUs."""
    waiting_share: float | None = None
    """Of the time of training, the share in which it waited for images."""
    compile_seconds: float | None = None
    """Spent on compiling networks, apart from training."""
    rounds: ArmInRounds | None = None
    """Where seeds come in rounds and arms are ranked."""
    restarts: int
    world_sizes: list[int]
    """Numbers of processes that its runs have been trained with, each once."""
    runs: list[SeedValue]
    missing: list[SeedValue]
    """Trials that are not in the mean: still to come, failed or cancelled."""


class Predicted(Part):
    """A number that was not measured, with its 95 % interval."""

    value: float
    low: float
    high: float


class CurvePoint(Predicted):
    size: float
    """In images."""


class ArmForecast(Part):
    """Arms that differ in `data.subset_size` alone: the curve a + b n^-c through them, and where it leads."""

    name: str
    """The levels of the other factors."""
    levels: dict[str, str]
    is_baseline: bool
    declined: str
    """Why there is no forecast; empty where there is one, and then nothing below is null."""
    at_size: Predicted | None = None
    check: Predicted | None = None
    """The largest size, as predicted from the smaller ones."""
    check_holds: bool | None = None
    """Whether its interval holds what was seen there. Where not, the forecast is not to be believed."""
    seen: float | None = None
    """What it was there: mean over the seeds that have finished at every size."""
    seeds: int | None = None
    shares_draw: bool | None = None
    """Whether all seeds were trained on the same images at each size: the interval then does not count what other
    images would change."""
    limit: float | None = None
    """a: what no number of images would get past, if the curve holds."""
    means: list[tuple[int, float]] = Field(default_factory=list)
    """Size in images, and the mean there."""
    curve: list[CurvePoint] = Field(default_factory=list)


class Standing(Part):
    """An arm against the baseline: at the largest size, and at the size that is forecast."""

    name: str
    seen: float
    """Its mean minus the baseline's, at the largest size."""
    forecast: Predicted
    """The same of the forecasts, as if they were independent."""
    is_ahead: bool
    """At the largest size."""
    order: Literal["stays", "changes", "not shown"]


class Forecasts(Part):
    """What the arms would be if they were trained on so many images."""

    size: int
    largest: int | None
    """Images of the largest subset."""
    is_far: bool
    """More than a hundred times the largest subset: a guess."""
    declined: str
    """Why there are none."""
    arms: list[ArmForecast]
    standings: list[Standing]


class AsOf(Part):
    """A step of training at which runs were measured before their end."""

    step: int
    images: float
    """Seen by then: mean over the runs."""

    def __str__(self) -> str:
        return f"as of step {self.step:,} ({self.images:,.0f} images)"


class Comparison(Part):
    experiment_id: str
    name: str
    made_at: datetime
    complete: bool
    """Every trial has succeeded."""
    hours: Literal["GPU-hours", "process-hours"] = "process-hours"
    """What `gpu_hours` are: of GPUs where every run that has ended was trained on one, one process on each."""
    metric: RankingMetric | None
    baseline: str
    arms: list[ArmRow]
    factors: list[Factor]
    """Main effects of factors with two levels or more; empty without a probe."""
    interactions: list[Interaction]
    """Of every pair of such factors."""
    words: list[str]
    """What the table shows and what it does not."""
    at: AsOf | None = None
    """The step that the numbers are of; null: of the end of each run."""
    rounds: RoundsSoFar | None = None
    """Where seeds come in rounds."""
    forecast: Forecasts | None = None
    """With more images, where that was asked for."""
    steps: list[int] = Field(default_factory=list)
    """At which a run was measured while it trained: the table can be had as of each."""

    @property
    def title(self) -> str:
        """The experiment's name, with the step that the numbers are of, where that is not the end."""
        return f"{self.name}, {self.at}" if self.at else self.name

    @property
    def heading(self) -> str:
        """The same with the experiment's id."""
        named = f"{self.name} ({self.experiment_id})"
        return f"{named}, {self.at}" if self.at else named


class Digest(Part):
    """What the numbers are of."""

    what: str
    name: str
    sha256: str


class Report(Part):
    """Everything a report shows, so that it can be read back and submitted again."""

    spec: dict[str, Any]
    """The request as it was understood, defaults filled in."""
    comparison: Comparison
    digests: list[Digest]
    software: dict[str, str]
    """Versions of what made the report."""
    trained_with: dict[str, list[str]] = Field(default_factory=dict)
    """Versions that the finished runs were trained with, and their commits: more than one where they differ."""
