"""The page of an experiment: what is best, what it cost, how far it is; curves and pictures come by themselves."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated
from urllib.parse import urlencode

from fastapi import APIRouter, Query, Request, Response

from service.api.auth import Reader
from service.compare.columns import Columns
from service.compare.headline import headline
from service.compare.service import arms_of
from service.compare.table import Question
from service.errors import NotFound
from service.experiments import service as experiments
from service.experiments.curves import tracked_trials
from service.experiments.repository import TrackedTrial
from service.pages import reading_curves
from service.pages.forecast_chart import forecast_chart
from service.pages.forest import forest
from service.pages.overlay import overlay
from service.pages.render import PageRoute, page, polled, slow
from service.pages.run import CURVES
from service.schemas.comparison import Comparison
from service.schemas.experiments import ArmView, ExperimentDetail, TrialView
from service.states import RunState, Scope
from service.text import first_line, short
from service.tracking import Tracker, TrackingAway
from trainer.contract.frozen import MAX_INTEGER

router = APIRouter(route_class=PageRoute, prefix="/experiments/{experiment_id}", include_in_schema=False)

NUM_ARMS = 6
"""Arms whose curves and pictures are shown unless others are asked for: more colours cannot be told apart."""
NUM_REASONS = 5
REACHED = ("rank", "arm", "seeds", "mean and sd", "verdict", "difference", "p", "hours")
FLOORS, SPENT = ("pixels", "untrained", "above"), ("images", "restarts", "processes")

Arms = Annotated[list[int], Query(alias="arm", default_factory=list)]
"""Positions of arms in the request."""


@dataclass(frozen=True)
class Cell:
    """A run in the grid. There may be a thousand, so its words are made here and not in the template."""

    seed: int
    run_id: str
    state: str
    spoken: str
    """What a screen reader says of it."""
    hint: str
    text: str


@dataclass(frozen=True)
class GridRow:
    """An arm and its run of every seed; None where the arm has none of that seed."""

    arm: ArmView
    cells: list[Cell | None]
    done: float
    """Share of the arm's steps; a run that has ended has none to come."""
    has_succeeded: bool


@router.get("")
@polled
def experiment(
    request: Request,
    experiment_id: str,
    principal: Reader,
    arms: Arms,
    metric: str = "",
    step: str = "",
    said: str = "",
    at: str = "",
    forecast: str = "",
) -> Response:
    """`said` is what a screen reader has been told last, so that it is not told again; `at`: a step that the table is
    to be of; `forecast`: images that arms are to be forecast at."""
    state = request.app.state
    detail = experiments.show(state.db, state.settings, experiment_id)
    as_of, size = _number("at", at, 0), _number("forecast", forecast, 1)
    with state.db.read() as session:
        comparison = state.comparisons.of(session, experiment_id, Question(step=as_of, size=size))
    columns = Columns(comparison)
    return page(
        "experiment.html", lasts=_is_over(detail),
        experiment=detail, comparison=comparison, head=headline(comparison), said=said,
        forest=forest(comparison), seeds=_seeds(detail), grid=_grid(detail, comparison),
        reasons=_reasons(detail), warnings=_warnings(detail),
        failed=[(row.name, run) for row in comparison.arms for run in row.missing if run.state is RunState.FAILED],
        shown=arms or _first_arms(detail, comparison), metric=metric, step=step,
        most=NUM_ARMS, columns=columns, reached=REACHED,
        beneath=["arm", *FLOORS, *columns.sanity, *SPENT, *columns.money, *columns.speed],
        may_submit=principal.scope.includes(Scope.SUBMIT), asked=_asked(at=as_of, forecast=size),
        sizes=forecast_chart(comparison.forecast) if comparison.forecast else None,
    )  # fmt: skip


@router.get("/curves")
@slow
def curves(request: Request, experiment_id: str, arms: Arms, metric: str = "", step: str = "") -> Response:
    """One metric of the arms asked for; asked for by itself, because MLflow may be slow.

    What ranks comes first, where it was measured while the runs trained; the database has that, and MLflow the rest.
    """
    state = request.app.state
    trials, shown = _shown(request, experiment_id, arms)
    names, mine = _names(trials), [trial for trial in trials if trial.position in shown]
    with state.db.read() as session:
        comparison = state.comparisons.of(session, experiment_id)
        # All results are read for it, so only where there is something to draw.
        of_arms, rank_by = arms_of(session, experiment_id) if comparison.steps else ([], None)
    ranks = comparison.metric
    read = reading_curves.names(of_arms, ranks.name if ranks else rank_by)
    drawn = metric if metric in read else next(iter(read), "")
    found = reading_curves.curves(of_arms, drawn)
    try:
        logged = sorted(set(state.curves.names(mine)) & set(CURVES), key=CURVES.index) if state.tracker else []
        missing = ""
        if metric in logged or not read:
            drawn = metric if metric in logged else next(iter(logged), "")
            found = state.curves.of(mine, drawn) if drawn else []
    except TrackingAway as error:
        logged, missing = [], str(error)
    metric, found = drawn, [curve for curve in found if curve.arm in {names[position] for position in shown}]
    metrics = [*read, *logged]
    return page(
        "arm_curves.html", lasts=not (missing or _is_live(trials)),
        experiment_id=experiment_id, step=step, metric=metric, metrics=metrics, shown=shown,
        chart=overlay(found, {names[position]: index for index, position in enumerate(shown)}), missing=missing,
        is_live=_is_live(trials), along="images seen" if metric in read else "step",
    )  # fmt: skip


@router.get("/pictures")
@slow
def pictures(request: Request, experiment_id: str, arms: Arms, metric: str = "", step: str = "") -> Response:
    """Panels of the arms at one step: the one asked for, else the newest that all of them have."""
    state = request.app.state
    trials, shown = _shown(request, experiment_id, arms)
    # One seed, so that the arms hide the same patches.
    first = {trial.position: trial for trial in reversed(trials) if trial.position in shown}
    try:
        steps = {position: _steps(state.tracker, trial) for position, trial in first.items()}
        missing = ""
    except TrackingAway as error:
        steps, missing = {}, str(error)
    drawn = [set(found) for found in steps.values() if found]
    every = sorted(set().union(*drawn))
    common = sorted(set.intersection(*drawn)) if drawn else []
    named = {str(choice): choice for choice in every}
    chosen = named.get(step, max(common or every, default=0))
    panels = [(first[p].arm, first[p].run_id, chosen in steps.get(p, ())) for p in shown]
    return page(
        "pictures.html", lasts=not (missing or _is_live(trials)),
        experiment_id=experiment_id, metric=metric, shown=shown, steps=every, step=chosen,
        panels=panels, seed=first[shown[0]].seed, asked=step if step in named else "", missing=missing,
        is_live=_is_live(trials), differ=_differ_in_data(request, experiment_id),
    )  # fmt: skip


def _steps(tracker: Tracker | None, trial: TrackedTrial) -> list[int]:
    return list(tracker.pictures(trial.tracking_run_id)) if tracker and trial.tracking_run_id else []


def _differ_in_data(request: Request, experiment_id: str) -> bool:
    with request.app.state.db.read() as session:
        factors = experiments.get(session, experiment_id).spec.get("factors", {})
    return any(name.partition(".")[0] in ("data", "evaluation", "input_size") for name in factors)


def _shown(request: Request, experiment_id: str, arms: Sequence[int]) -> tuple[list[TrackedTrial], list[int]]:
    """All trials, and the positions of arms to show: those asked for that there are, else the first ones."""
    with request.app.state.db.read() as session:
        trials = tracked_trials(session, experiment_id)
    there = sorted(_names(trials))
    return trials, ([position for position in there if position in arms] or there)[:NUM_ARMS]


def _names(trials: Sequence[TrackedTrial]) -> dict[int, str]:
    return {trial.position: trial.arm for trial in trials}


def _is_live(trials: Sequence[TrackedTrial]) -> bool:
    return any(not trial.state.is_final for trial in trials)


def _is_over(detail: ExperimentDetail) -> bool:
    """Whether the page stays as it is unless somebody wants something else."""
    return detail.state.is_final and all(trial.state.is_final for arm in detail.arms for trial in arm.trials)


def _seeds(detail: ExperimentDetail) -> list[int]:
    return sorted({trial.seed for arm in detail.arms for trial in arm.trials})


def _grid(detail: ExperimentDetail, comparison: Comparison) -> list[GridRow]:
    """In the order of the request, so that nothing moves while one looks."""
    values = {(row.name, run.seed): run.value for row in comparison.arms for run in row.runs}
    seeds, rows = _seeds(detail), []
    for arm in detail.arms:
        cells = {trial.seed: _cell(arm.name, trial, values.get((arm.name, trial.seed))) for trial in arm.trials}
        done = sum(1.0 if trial.state.is_final else trial.progress for trial in arm.trials) / len(arm.trials)
        has_succeeded = all(trial.state is RunState.SUCCEEDED for trial in arm.trials)
        rows.append(GridRow(arm, [cells.get(seed) for seed in seeds], done, has_succeeded))
    return rows


def _cell(arm: str, trial: TrialView, value: float | None) -> Cell:
    """`value`: the probe's, once it has finished."""
    state, says = trial.state.value, [f"{arm}, seed {trial.seed}: {trial.state.value}"]
    text = state
    if trial.state is RunState.RUNNING:
        text = f"{trial.progress * 100:.0f} %"
        says.append(f"{trial.progress * 100:.0f} percent")
    if value is not None:
        text = short(value)
        says.append(text)
    hints = ["shared with another experiment"] if trial.shared else []
    hints += [line for line in [first_line(trial.reason or trial.waiting_reason)] if line]
    return Cell(trial.seed, trial.run_id, state, ", ".join(says), "; ".join(hints), text)


def _reasons(detail: ExperimentDetail) -> list[tuple[int, str]]:
    """Why runs are not training, the most common reason first: how many, and for what they wait."""
    waiting = (trial for arm in detail.arms for trial in arm.trials if not trial.state.is_final)
    reasons = Counter(trial.waiting_reason for trial in waiting if trial.state is not RunState.RUNNING)
    told = [(count, reason or "not looked at yet") for reason, count in reasons.most_common(NUM_REASONS)]
    return told


def _asked(**asked: int | None) -> str:
    """What the page was asked to show, as the end of an address."""
    return urlencode({name: value for name, value in asked.items() if value is not None})


def _number(name: str, text: str, least: int) -> int | None:
    """None where nothing is asked for, as by an empty field of a form. Raises NotFound."""
    if not text:
        return None
    if text.isascii() and text.isdecimal() and len(text) <= len(str(MAX_INTEGER)) and least <= int(text) <= MAX_INTEGER:
        return int(text)
    raise NotFound(f"{name}: {text[:40]!r} was asked for; possible: a number from {least} to {MAX_INTEGER}.")


def _warnings(detail: ExperimentDetail) -> list[tuple[str, TrialView]]:
    """Runs that train although somebody has to see to them, as when they learn nothing."""
    return [
        (arm.name, trial)
        for arm in detail.arms
        for trial in arm.trials
        if trial.state is RunState.RUNNING and trial.waiting_reason
    ]


def _first_arms(detail: ExperimentDetail, comparison: Comparison) -> Sequence[int]:
    """The best ones and the baseline, by position."""
    position = {arm.name: index for index, arm in enumerate(detail.arms)}
    names = [row.name for row in comparison.arms][:NUM_ARMS]
    if comparison.baseline not in names:
        names[-1] = comparison.baseline
    return sorted(position[name] for name in names)
