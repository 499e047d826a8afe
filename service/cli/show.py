"""Experiments, runs and comparisons as tables for a terminal."""

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from service.client import Comparison
from service.compare.columns import Column, Columns, interval, mean, p_value, signed, signed_interval
from service.compare.headline import Headline, headline
from service.schemas.audit import AuditView
from service.schemas.comparison import ArmRow
from service.schemas.costs import Cost
from service.schemas.experiments import ExperimentDetail, ExperimentSummary, Plan
from service.schemas.pools import PoolView
from service.schemas.runs import RunDetail
from service.schemas.tokens import TokenView
from service.states import DEFAULT_PROJECT
from service.text import age, duration, first_line, hours, now_and_mean, percent
from trainer.contract.records import Checkpoint

REACHED = (
    "rank", "arm", "seeds", "mean and sd", "interval", "difference", "difference's interval", "p", "verdict",
)  # fmt: skip
FLOORS, COST = ("pixels", "untrained", "above"), ("images", "hours", "restarts", "processes")
COLOURS = {
    "succeeded": "green", "failed": "red", "running": "cyan", "starting": "cyan", "interrupted": "yellow",
    "paused": "yellow",
}  # fmt: skip


def terminal() -> Console:
    """Standard output; where it is a file or a pipe, wide enough that no table is cut."""
    console = Console(highlight=False)
    return console if console.is_terminal else Console(highlight=False, width=200)


def experiments(found: Iterable[ExperimentSummary]) -> RenderableType:
    table = columns("id", "name", "project", "state", "done", "arms", "runs", "left", "process-hours", "submitted")
    for item in found:
        table.add_row(
            item.id, item.name, item.project, state(item.state), f"{item.progress:.0%}", str(item.num_arms),
            counts(item), duration(item.eta_seconds), hours(item.gpu_hours), age(item.created_at),
        )  # fmt: skip
    return table if table.row_count else Text("No experiments yet; `mcf submit FILE` makes one.")


def pools(found: Iterable[PoolView]) -> RenderableType:
    found = list(found)
    priced = ["price an hour"] if any(pool.price for pool in found) else []
    table = columns("pool", "GPUs a node", "nodes", "GPUs free", "room", "running", "waiting", "queue", *priced)
    for pool in found:
        nodes = f"{pool.nodes}" + (f" ({pool.nodes_not_ready} not ready)" if pool.nodes_not_ready else "")
        free = f"{pool.gpus_free} of {pool.gpus}" if pool.gpus_per_node else ""
        table.add_row(
            pool.name, str(pool.gpus_per_node or "CPU"), nodes, free, str(pool.room), str(pool.running),
            str(pool.waiting), pool.queue or "", *(pool.price for _ in priced),
        )  # fmt: skip
    return table if table.row_count else Text("No node pools: runs are processes of the service's machine.")


def spent(cost: Cost | None) -> str:
    """`, 12.30 USD`; empty where nothing has a price."""
    return f", {cost}" if cost else ""


def pools_of(found: RunDetail) -> str:
    """Of the processes of its newest stretch of training, where these are in several."""
    return found.sessions[-1].places if found.sessions else ""


def experiment(found: ExperimentDetail) -> RenderableType:
    table = columns("arm", "seed", "run", "state", "step", "restarts", "")
    for arm in found.arms:
        for index, trial in enumerate(arm.trials):
            name = f"{arm.name}{' (baseline)' if arm.is_baseline else ''}" if index == 0 else ""
            why = trial.reason or trial.waiting_reason or ("shared" if trial.shared else "")
            step = f"{trial.step}/{trial.total_steps}"
            table.add_row(
                name, str(trial.seed), trial.run_id, state(trial.state), step, str(trial.restarts), first_line(why)
            )
    head = Text.assemble((found.name, "bold"), f"  {found.id}  ", state(found.state), f"  {found.progress:.0%} done")
    if found.eta_seconds:
        head.append(f", about {duration(found.eta_seconds)} left")
    facts = [f"{counts(found)}; {hours(found.gpu_hours)} process-hours so far{spent(found.cost)}"]
    facts += [f"project {found.project}"] if found.project != DEFAULT_PROJECT else []
    facts += [f"submitted by {found.created_by}"] if found.created_by else []
    facts += [reason for reason in (found.cancel_reason, found.pause_reason) if reason]
    facts += [f"MLflow: {found.tracking_url}"] if found.tracking_url else []
    return Group(head, *facts, "", table)


def run(found: RunDetail, checkpoints: Iterable[Checkpoint]) -> RenderableType:
    head = Text.assemble((found.id, "bold"), "  ", state(found.state), f"  step {found.step} of {found.total_steps}")
    if found.eta_seconds:
        head.append(f", about {duration(found.eta_seconds)} left")
    facts = columns("", "")
    facts.show_header = False
    rows = {
        "reason": found.reason or found.waiting_reason,
        "losses": ", ".join(f"{name} {value:.4g}" for name, value in found.losses.items()),
        "weights": f"of run {found.weights_of}" if found.weights_of else "",
        "images/s": now_and_mean(found.images_per_second, found.mean_images_per_second),
        "share of peak": percent(found.peak_share),
        "waiting for images": f"{percent(found.waiting_share)} of the time" if found.waiting_share is not None else "",
        "compiling": duration(found.compile_seconds) if found.compile_seconds else "",
        "world sizes": ", ".join(map(str, found.world_sizes)),
        "nodes": found.nodes_wait,
        "restarts": str(found.restarts),
        "pools": pools_of(found),
        "process-hours": hours(found.gpu_hours) + spent(found.cost),
        "checkpoints": ", ".join(f"step {item.step} ({item.bytes / 1e6:.1f} MB)" for item in checkpoints),
        "directory": found.uri,
        "MLflow": found.tracking_url or "",
        "used by": ", ".join(f"{use.experiment} ({use.arm}, seed {use.seed})" for use in found.used_by),
    }
    if made := found.readings.readings:
        note = f"; {found.readings.note}" if found.readings.note else ""
        rows["readings"] = f"{len(made)}, the last at step {made[-1].step}{note}"
    if found.stage and not found.result:
        rows["stage"] = found.stage
    if found.result and found.result.probe:
        rows["probe"] = f"{found.result.probe.name} {found.result.probe.value:.4g} {found.result.probe.unit}"
    if found.result:
        for stage in found.result.stages:
            metrics = ", ".join(
                f"{m.name.removeprefix(stage.stage + '/')} {m.value:.4g} {m.unit}" for m in stage.metrics
            )
            rows[stage.stage] = f"{metrics} ({stage.note})"
        rows["export"] = found.result.export
        if undecodable := found.result.undecodable:
            rows["undecodable images"] = f"{len(undecodable)}, such as {undecodable[0]}"
        if without := found.result.without_landmarks:
            rows["without landmarks"] = f"{without} of {found.result.subset_size} images: their masks cannot go by them"
    for name, value in rows.items():
        if value:
            facts.add_row(name, value)
    attempts = columns("attempt", "state", "steps", "started", "reason")
    for item in found.attempts:
        steps = f"{item.first_step} to {item.last_step}"
        attempts.add_row(item.name, state(item.state), steps, age(item.created_at), first_line(item.reason))
    return Group(head, facts, "", attempts)


def comparison(found: Comparison) -> RenderableType:
    """The answer, then three tables, so that each fits a terminal: what the arms reached, what lies beneath, and what
    it cost."""
    known, head = Columns(found), headline(found)
    reached = _of_arms(known.choose(*REACHED, *known.rounds), found.arms)
    beneath = _of_arms(known.choose("arm", *FLOORS, *known.sanity), found.arms)
    cost = _of_arms(known.choose("arm", *COST, *known.money, *known.speed), found.arms)
    words = [Text(f"* {word}") for word in found.words if word not in head.cautions]
    return Group(
        Text(found.heading, style="bold"),
        *_answer(head),
        "",
        reached,
        "",
        beneath,
        "",
        cost,
        "",
        *_factors(found),
        *words,
        *(Text(f"  missing: {line}", style="yellow") for row in found.arms for line in _missing(row)),
    )


def _missing(row: ArmRow) -> list[str]:
    """`ARM, seeds 3, 4: queued`: a line for each reason."""
    seeds: dict[str, list[str]] = {}
    for run in row.missing:
        seeds.setdefault(f"{run.state} {first_line(run.reason)}".rstrip(), []).append(str(run.seed))
    return [f"{row.name}, seed{'s' * (len(same) > 1)} {', '.join(same)}: {why}" for why, same in seeds.items()]


def _answer(head: Headline) -> list[Text]:
    if not head.best_arm:
        return [Text(f"{head.answer}. {head.why}")]
    lead, rest = head.best_arm
    return [
        Text.assemble((lead, "bold"), f" {rest}"),
        Text.assemble((f"Is the difference real? {head.answer}.", "bold"), f" {head.why}"),
        *(Text(caution) for caution in head.cautions),
    ]


def plan(found: Plan) -> RenderableType:
    table = columns("arm", "seed", "run", "steps", "")
    for item in found.runs:
        new = f"new, measures the weights of {item.weights_of}" if item.weights_of else "new"
        table.add_row(item.arm, str(item.seed), item.id, str(item.total_steps), item.already or new)
    measured = sum(item.weights_of is not None for item in found.runs)
    training = f"{len(found.launch_requests) - measured} to train"
    training += f", {measured} to measure" if measured else ""
    money = spent(found.estimated_cost)
    cost = f"about {hours(found.estimated_gpu_hours)} process-hours{money} ({found.estimate_basis})"
    runs = f"{len(found.runs)} runs"
    if found.first_round_gpu_hours is not None:
        first = sum(item.round == 1 for item in found.runs)
        runs = f"at most {runs}"
        cost += f"; the first round, {first} runs, {hours(found.first_round_gpu_hours)}. Decided arms get no more seeds"
    total = f"\n{len(found.arms)} arms, {runs}, {training}: {cost}. Nothing was submitted."
    return Group(table, total, *(Text(f"warning: {warning}") for warning in found.warnings))


def tokens(found: Iterable[TokenView]) -> RenderableType:
    table = columns("id", "name", "scope", "project", "made", "by", "last used", "good until")
    for item in found:
        used = age(item.last_used_at) if item.last_used_at else "never"
        table.add_row(
            item.id, item.name, item.scope.value, project(item.project), age(item.created_at), item.created_by, used,
            _good_until(item),
        )  # fmt: skip
    return table if table.row_count else Text("No tokens yet; `mcf token create NAME` makes one.")


def audit(found: Iterable[AuditView]) -> RenderableType:
    table = columns("number", "when", "who", "token", "action", "what", "", "answer", "from")
    for item in found:
        answer = str(item.status) if item.status else "none: the service was stopped"
        table.add_row(
            str(item.id), age(item.at), item.name, item.token_id, item.action, item.object, item.asked, answer,
            item.address,
        )  # fmt: skip
    return table if table.row_count else Text("Nobody has asked for anything yet.")


def project(name: str | None) -> str:
    return name or "every project"


def state(name: str) -> Text:
    return Text(str(name), style=COLOURS.get(str(name), ""))


def counts(found: ExperimentSummary) -> str:
    """`12 runs: 3 running, 9 queued`, with the round where seeds come in rounds."""
    parts = ", ".join(f"{count} {name}" for name, count in found.counts.items())
    rounds = f"; {found.rounds}" if found.rounds else ""
    return f"{found.num_runs} run{'s' * (found.num_runs != 1)}: {parts}{rounds}"


def _good_until(found: TokenView) -> str:
    if found.revoked_at:
        return f"revoked {age(found.revoked_at)}"
    if found.expires_at is None:
        return "it is revoked"
    return f"{found.expires_at:%Y-%m-%d}{' (expired)' if found.expires_at <= datetime.now(UTC) else ''}"


def _of_arms(chosen: Sequence[Column], arms: Iterable[ArmRow]) -> Table:
    table = columns(*(column.heading for column in chosen))
    for row in arms:
        table.add_row(*(column.cell(row) for column in chosen))
    return table


def _factors(found: Comparison) -> list[RenderableType]:
    """Where there is one factor, the arms are its levels."""
    if len(found.factors) < 2:
        return []
    table = columns(
        "factor", "level", "mean over the others", "95 % interval", "to baseline", "95 % interval", "p (Holm)"
    )
    for factor in found.factors:
        for level in factor.levels:
            effect = level.effect
            table.add_row(
                factor.name, level.level, mean(level.estimate), interval(level.estimate),
                signed(effect) if effect else "baseline", signed_interval(effect), p_value(effect),
            )  # fmt: skip
    return [table, ""]


def columns(*names: str) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    for column in names:
        # Where the terminal is narrow, the other columns give way.
        table.add_column(column, no_wrap=column == "arm")
    return table
