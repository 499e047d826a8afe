"""Which number of its runs a comparison is about: the probe, or a metric of a stage of evaluation."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from service.schemas.comparison import RankingMetric
from trainer.contract.records import Metric, Result, StageResult
from trainer.contract.stage import FACES68

Kind = tuple[str, str, bool, str, str]
Evaluation = Mapping[str, Any]
"""Of a run's spec, with the digests of what it was measured on."""
NOTHING: Evaluation = {}

CHOSEN = {
    "last": "the last epoch, fixed before the fit",
    "best_on_validation": "the epoch that is best on faces set aside for validation",
    "best_on_test": "the epoch that is best on the test split itself, which is too good an estimate of unseen faces",
}


class NoSuchMetric(Exception):
    """The metric that was asked for is in no finished run; the text names those that are."""


@dataclass(frozen=True)
class Rankable:
    """A number of a run, and what it is of: only equal kinds can be ranked."""

    metric: Metric
    note: str
    benchmark: str = ""
    digest: str = ""

    @property
    def ranks(self) -> RankingMetric:
        metric = self.metric
        return RankingMetric(
            name=metric.name, unit=metric.unit, higher_is_better=metric.higher_is_better, note=self.note,
            benchmark=self.benchmark, digest=self.digest,
        )  # fmt: skip

    @property
    def kind(self) -> Kind:
        return kind(self.ranks)


def kind(metric: RankingMetric) -> Kind:
    """What has to be equal for two numbers to be compared."""
    return metric.name, metric.unit, metric.higher_is_better, metric.benchmark, metric.digest


def in_words(kind: Kind) -> str:
    """`alignment/last/nme_diag on wflw 0123456789ab`."""
    name, _, _, benchmark, digest = kind
    of = f"{benchmark} {digest[:12]}".strip()
    return f"{name} on {of}" if of else name


def ranking(results: Sequence[tuple[Result, Evaluation]], asked: str | None) -> tuple[RankingMetric | None, str]:
    """What finished runs can be ranked by, or None and why. Raises NoSuchMetric.

    asked: None = the probe, else the first stage's own metric. A stage's metric is asked for by its name, or by that
    without how its epoch was chosen: alignment/nme_diag for alignment/last/nme_diag.
    """
    if not results:
        return None, "No run has finished yet."
    found = [measured(result, asked, evaluation) for result, evaluation in results]
    kinds = {each.kind if each else None for each in found}
    if kinds == {None}:
        if asked:
            names = ", ".join(dict.fromkeys(name for result, _ in results for name in _by_name(result, {})))
            raise NoSuchMetric(
                f"No finished run has the metric {asked}; possible: {names or 'none, nothing was measured'}."
            )
        return None, "The data has neither landmarks nor labels, so no probe was measured and arms are not ranked."
    if len(kinds) > 1:
        names = ", ".join(sorted(in_words(kind) if kind else "none" for kind in kinds))
        return None, f"Runs were measured by different probes ({names}), so arms are not ranked."
    first = next(each for each in found if each)
    note = next((each.note for each in found if each and each.note), "")
    return first.ranks.model_copy(update={"note": note}), ""


def measured(result: Result, asked: str | None, evaluation: Evaluation = NOTHING) -> Rankable | None:
    """A run's number by its name, see `ranking`; None where it has none of that name."""
    found = _by_name(result, evaluation)
    if asked is None:
        return next(iter(found.values()), None)
    return found.get(asked) or next((each for name, each in found.items() if _short(name) == asked), None)


def beside(results: Iterable[Result]) -> list[Metric]:
    """The metric of each stage by which its epochs are chosen, to stand beside what ranks; its name has no slash."""
    return [
        metric.model_copy(update={"name": metric.name.replace("/", " ")})
        for result in results
        for stage in result.stages
        for metric in stage.metrics
        if metric.name == stage.primary
    ]


def _by_name(result: Result, evaluation: Evaluation) -> dict[str, Rankable]:
    """The probe first, then the stages', each with its own metric first."""
    found = {}
    if result.probe:
        digest = evaluation.get("sha256") or ""
        found[result.probe.name] = Rankable(result.probe, result.probe_note, digest=digest)
    for stage in result.stages:
        digest = (evaluation.get(stage.stage) or {}).get("sha256") or ""
        if stage.benchmark == FACES68:
            # Its test split are the images that are held out.
            digest = f"{digest} {result.held_out_digest}"
        for metric in sorted(stage.metrics, key=lambda metric: metric.name != stage.primary):
            found[metric.name] = Rankable(metric, _note(stage), stage.benchmark, digest)
    return found


def _note(stage: StageResult) -> str:
    return f"{stage.stage} on {stage.benchmark}, {CHOSEN[stage.selection]}"


def _short(name: str) -> str:
    stage, _, rest = name.partition("/")
    return f"{stage}/{rest.partition('/')[2]}"
