"""What moved between a report and the same request trained again, number by number."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from service.schemas.comparison import Comparison, Digest, Report
from service.schemas.experiments import Plan


@dataclass(frozen=True)
class Number:
    """One number of a comparison, in the report and today; None = it was or is missing."""

    arm: str
    name: str
    was: float | None
    now: float | None

    @property
    def has_moved(self) -> bool:
        return self.was != self.now


def numbers(was: Comparison, now: Comparison, tolerance: float = 0.0) -> list[Number]:
    """Every measured number of both; `tolerance` is relative: what moved by less has not moved."""
    before, after = dict(_measured(was, _names(now.arms))), dict(_measured(now, {}))
    found = []
    for arm, name in dict.fromkeys([*before, *after]):
        old, new = before.get((arm, name)), after.get((arm, name))
        if old is not None and new is not None and math.isclose(old, new, rel_tol=tolerance, abs_tol=0.0):
            new = old
        found.append(Number(arm, name, old, new))
    return found


def other_runs(report: Report, planned: Plan) -> list[str]:
    """Arms and seeds whose runs would not be those of the report, because the data, a teacher or mcf has changed.

    A shared run is named by the digest of its spec and of all it sees; runs that were trained again on purpose are not.
    """
    if not report.spec.get("share", True):
        return []
    names = _names(planned.arms)
    known = {
        (names.get(_key(row), row.name), run.seed): run.run_id for row in report.comparison.arms for run in row.runs
    }
    # Of seeds in rounds a report has those alone that were needed.
    return [
        f"{run.arm}, seed {run.seed}"
        for run in planned.runs
        if (run.round is None or (run.arm, run.seed) in known) and known.get((run.arm, run.seed)) != run.id
    ]


def other_digests(was: Sequence[Digest], now: Sequence[Digest]) -> list[str]:
    """What the numbers are of, where that is not the same."""
    before, after = ({(item.what, item.sha256): item.name for item in items} for items in (was, now))
    gone = [
        f"{what} {before[what, digest]} {digest[:12]}: only in the report" for what, digest in before.keys() - after
    ]
    new = [f"{what} {after[what, digest]} {digest[:12]}: only today" for what, digest in after.keys() - before]
    return sorted(gone) + sorted(new)


class _Arm(Protocol):
    @property
    def name(self) -> str: ...
    @property
    def levels(self) -> dict[str, str]: ...


Levels = frozenset[tuple[str, str]]


def _names(arms: Iterable[_Arm]) -> dict[Levels, str]:
    """Arms by their levels: how they are called may have changed since the report."""
    return {_key(arm): arm.name for arm in arms}


def _key(arm: _Arm) -> Levels:
    return frozenset(arm.levels.items())


def _measured(table: Comparison, names: Mapping[Levels, str]) -> Iterator[tuple[tuple[str, str], float | None]]:
    probe = table.metric.name if table.metric else "probe"
    for row in table.arms:
        arm = names.get(_key(row), row.name)
        for run in row.runs:
            yield (arm, f"{probe}, seed {run.seed}"), run.value
        if row.floors:
            yield (arm, "floor: raw pixels"), row.floors.pixels
            yield (arm, "floor: untrained encoder"), row.floors.random_encoder
        for name, value in row.sanity.items():
            yield (arm, name), value
