"""The columns of a comparison, each defined once: every format chooses among them and sets its own type.

A column has a text for people, and, where programs want more than the text, fields of numbers in full.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from service.schemas.comparison import ArmRow, Comparison, Estimate, Predicted, Tested
from service.text import duration, hours, metric_name, percent, short, speed

ABOVE = {True: "yes", False: "not shown", None: "no verdict"}
DIFFERENCE_FIELDS = ("n", "mean", "low", "high", "p", "p_holm", "verdict", "more_seeds")


@dataclass(frozen=True)
class Column:
    heading: str
    cell: Callable[[ArmRow], str]
    is_number: bool = True
    """Set flush right where a format can."""
    fields: Callable[[ArmRow], Mapping[str, Any]] = lambda row: {}
    """For programs: name -> value in full, None where there is none."""


class Columns:
    """The columns of one comparison by name, in the order in which CSV has their fields."""

    def __init__(self, table: Comparison) -> None:
        self.sanity = list(dict.fromkeys(name for row in table.arms for name in row.sanity))
        """Names of the columns for what stands beside the ranking metric."""
        rounds, sanity = ROUNDS if table.rounds else {}, {name: _sanity(name) for name in self.sanity}
        self._columns = _columns(table) | rounds | sanity | _spent(table) | SPEED
        self.money = ["money"] if any(row.cost for row in table.arms) else []
        """Names of the column for what it cost, where node pools have prices."""
        self.rounds = ["rounds"] if table.rounds else []
        """Names of the column for where an arm is whose seeds come in rounds."""
        self.speed = [name for name, column in SPEED.items() if any(map(column.cell, table.arms))]
        """Names of the columns for how fast the runs trained; only those that are known of an arm."""

    def __getitem__(self, name: str) -> Column:
        return self._columns[name]

    def choose(self, *names: str) -> list[Column]:
        return [self[name] for name in names]

    def fields(self, row: ArmRow) -> dict[str, Any]:
        return {name: value for column in self._columns.values() for name, value in column.fields(row).items()}


def _columns(table: Comparison) -> dict[str, Column]:
    factors = list(dict.fromkeys(name for row in table.arms for name in row.levels))
    metric = table.metric
    unit = f" ({metric.unit})" if metric and metric.unit else ""
    measured = f"{metric_name(metric.name)}{unit}" if metric else "probe"
    at_look = ("level",) if table.rounds else ()
    named = {"metric": metric.name if metric else None, "unit": metric.unit if metric else None}
    return {
        "rank": Column("rank", lambda row: str(row.rank or ""), fields=lambda row: {"rank": row.rank}),
        "arm": Column(
            "arm", lambda row: row.name, is_number=False,
            fields=lambda row: {"arm": row.name, **{name: row.levels.get(name) for name in factors}},
        ),
        "seeds": Column(
            "seeds", seeds,
            fields=lambda row: {
                "baseline": row.is_baseline, "seeds": row.seeds, "n": row.seeds - len(row.missing), **named,
            },
        ),
        "mean": Column(
            measured, lambda row: mean(row.probe),
            fields=lambda row: _fields(row.probe, "", ("mean", "sd", "low", "high")),
        ),
        "mean and sd": Column(measured, lambda row: mean_and_sd(row.probe)),
        "sd": Column("sd", lambda row: short(row.probe.sd) if row.probe else ""),
        "interval": Column("95 % interval", lambda row: interval(row.probe)),
        "difference": Column(
            "to baseline", _difference,
            fields=lambda row: _fields(row.difference, "difference_", (*DIFFERENCE_FIELDS, *at_look)),
        ),
        "difference's interval": Column(
            "repeated interval" if table.rounds else "95 % interval", lambda row: signed_interval(row.difference)
        ),
        "p": Column("p (all looks)" if table.rounds else "p (Holm)", lambda row: p_value(row.difference)),
        "verdict": Column("verdict", lambda row: row.difference.verdict if row.difference else "", is_number=False),
        "pixels": Column(
            "raw pixels", lambda row: short(row.floors.pixels) if row.floors else "",
            fields=lambda row: _fields(row.floors, "floor_", ("pixels",)),
        ),
        "untrained": Column(
            "untrained encoder", lambda row: short(row.floors.random_encoder) if row.floors else "",
            fields=lambda row: _fields(row.floors, "floor_", ("random_encoder", "above")),
        ),
        "above": Column(
            "better than floors", lambda row: ABOVE[row.floors.above] if row.floors else "", is_number=False
        ),
        "floors": Column("floors", lambda row: row.floors.words if row.floors else "", is_number=False),
    }  # fmt: skip


def _sanity(name: str) -> Column:
    return Column(metric_name(name), lambda row: short(row.sanity.get(name)), fields=lambda row: _of(row, name))


def _of(row: ArmRow, name: str) -> dict[str, Any]:
    return {name: row.sanity.get(name)}


def _spent(table: Comparison) -> dict[str, Column]:
    return {
        "images": Column(
            "images seen", lambda row: f"{row.images_seen:,.0f}" if row.images_seen is not None else "",
            fields=lambda row: {"images_seen": row.images_seen},
        ),
        "hours": Column(table.hours, lambda row: hours(row.gpu_hours), fields=lambda row: {"gpu_hours": row.gpu_hours}),
        "money": Column(
            "cost", lambda row: str(row.cost or ""),
            fields=lambda row: _fields(row.cost, "cost_", ("amount", "currency", "unpriced_hours")) if row.cost else {},
        ),
        "restarts": Column("restarts", lambda row: str(row.restarts), fields=lambda row: {"restarts": row.restarts}),
        "processes": Column(
            "processes", lambda row: ", ".join(map(str, row.world_sizes)),
            fields=lambda row: {
                "world_sizes": " ".join(map(str, row.world_sizes)),
                "runs": " ".join(f"{run.seed}:{run.run_id}:{run.state.value}" for run in row.runs),
            },
        ),
    }  # fmt: skip


ROUNDS = {
    "rounds": Column(
        "rounds", lambda row: row.rounds.words if row.rounds else "", is_number=False,
        fields=lambda row: _fields(row.rounds, "rounds_", ("goes_on", "decided_after", "worse_than", "chance")),
    )
}  # fmt: skip
SPEED = {
    "images a second": Column(
        "images/s", lambda row: speed(row.images_per_second),
        fields=lambda row: {"images_per_second": row.images_per_second},
    ),
    "peak": Column(
        "share of peak", lambda row: percent(row.peak_share), fields=lambda row: {"peak_share": row.peak_share}
    ),
    "waiting": Column(
        "waiting for images", lambda row: percent(row.waiting_share),
        fields=lambda row: {"waiting_share": row.waiting_share},
    ),
    "compiling": Column(
        "compiling", lambda row: duration(row.compile_seconds) if row.compile_seconds else "",
        fields=lambda row: {"compile_seconds": row.compile_seconds},
    ),
}  # fmt: skip


def seeds(row: ArmRow) -> str:
    """`3`, or `2 of 3` while some are missing."""
    return f"{row.seeds - len(row.missing)} of {row.seeds}" if row.missing else str(row.seeds)


def mean(found: Estimate | None) -> str:
    return short(found.mean) if found else ""


def mean_and_sd(found: Estimate | None) -> str:
    return mean(found) + (f" \N{PLUS-MINUS SIGN} {found.sd:.2g}" if found and found.sd is not None else "")


def interval(found: Estimate | None) -> str:
    return f"{short(found.low)} to {short(found.high)}" if found and found.low is not None else ""


def predicted_interval(found: Predicted) -> str:
    return f"{short(found.low)} to {short(found.high)}"


def signed(found: Estimate | None) -> str:
    return f"{found.mean:+.3g}" if found and found.mean is not None else ""


def signed_interval(found: Estimate | None) -> str:
    return f"{found.low:+.3g} to {found.high:+.3g}" if found and found.low is not None else ""


def p_value(found: Tested | None) -> str:
    """Empty where nothing was tested."""
    return f"{found.p_holm:.2g}" if found and found.p_holm is not None else ""


def _difference(row: ArmRow) -> str:
    return "baseline" if row.is_baseline else signed(row.difference)


def _fields(found: object, prefix: str, names: tuple[str, ...]) -> dict[str, Any]:
    return {prefix + name: getattr(found, name, None) for name in names}
