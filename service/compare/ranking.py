"""Which number of its runs a comparison is about: the probe, a metric of a stage of evaluation, or a sanity metric."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from service.schemas.comparison import RankingMetric
from trainer.contract.ranking import FLOORS_OF, NEIGHBOUR_NME, PSNR, RETRIEVAL, short
from trainer.contract.records import Floors, Metric, Result, StageResult
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
SANITY = "sanity/"
HELD_OUT = (
    "This is a sanity metric, measured on held-out faces with fixed masks: it does not say how good the features are "
    "for a task"
)
SANITY_NOTES = {
    RETRIEVAL: (
        "The number says how often one masked view of a held-out face finds the other masked view of the same "
        "face{among}. " + HELD_OUT
    ),
    PSNR: (
        "The number says how well hidden patches of held-out faces are reconstructed, which an arm with a teacher is "
        "not trained to do. " + HELD_OUT
    ),
    NEIGHBOUR_NME: (
        "The number says how far the landmarks of a face are from those of its nearest other face, by cosine of the "
        "features. This is a sanity metric: nothing is fitted, and the faces are those of the probe, of which some may "
        "have been trained on without their landmarks"
    ),
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


def ranking(
    results: Sequence[tuple[Result, Evaluation]], asked: str | None, rank_by: str | None = None
) -> tuple[RankingMetric | None, str]:
    """What finished runs can be ranked by, or None and why. Raises NoSuchMetric where `asked` is in none.

    asked: whoever looks wants this; None = `rank_by` of the spec, else the probe, else the first stage's own metric. A
    stage's metric is asked for by its name, or by that without how its epoch was chosen: alignment/nme_diag for
    alignment/last/nme_diag.
    """
    if not results:
        return None, "No run has finished yet."
    found = [measured(result, asked or rank_by, evaluation) for result, evaluation in results]
    kinds = {each.kind if each else None for each in found}
    if kinds == {None}:
        names = ", ".join(dict.fromkeys(name for result, _ in results for name in _by_name(result, {})))
        possible = f"possible: {names or 'none, nothing was measured'}"
        if asked:
            raise NoSuchMetric(f"No finished run has the metric {asked}; {possible}.")
        if rank_by:
            return (
                None,
                f"No finished run has the metric {rank_by} of evaluation.rank_by, so arms are not ranked; {possible}.",
            )
        return None, (
            "The data has neither landmarks nor labels, so no probe was measured and arms are not ranked; possible "
            f"with evaluation.rank_by: {names or 'none, nothing was measured'}."
        )
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
        return next((each for name, each in found.items() if not name.startswith(SANITY)), None)
    return found.get(asked) or next((each for name, each in found.items() if short(name) == asked), None)


def floors(result: Result, name: str) -> Floors | None:
    """What the metric of that name is without any training; None where that has not been measured."""
    if result.probe and result.probe.name == name:
        return result.floors
    prefix, known = FLOORS_OF.get(name, ""), {metric.name: metric.value for metric in result.sanity}
    pixels, untrained = (known.get(f"{prefix}_{floor}") for floor in Floors.model_fields)
    return Floors(pixels=pixels, random_encoder=untrained) if pixels is not None and untrained is not None else None


def beside(results: Iterable[Result], ranks: str) -> list[Metric]:
    """What stands beside the metric that ranks: the probe, the sanity metrics, and of each stage the metric by which
    its epochs are chosen, whose name then has no slash. Neither what ranks itself nor its floors."""
    of_floors = tuple(f"{FLOORS_OF[ranks]}_{floor}" for floor in Floors.model_fields) if ranks in FLOORS_OF else ()
    found = []
    for result in results:
        found += [
            metric for metric in (result.probe, *result.sanity) if metric and metric.name not in (ranks, *of_floors)
        ]
        found += [
            metric.model_copy(update={"name": metric.name.replace("/", " ")})
            for stage in result.stages
            for metric in stage.metrics
            if metric.name == stage.primary
        ]
    return found


def _by_name(result: Result, evaluation: Evaluation) -> dict[str, Rankable]:
    """The probe first, then the stages', each with its own metric first, then the sanity metrics."""
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
    for metric in result.sanity:
        if metric.name in SANITY_NOTES:
            found[metric.name] = _sanity(metric, result, evaluation)
    return found


def _sanity(metric: Metric, result: Result, evaluation: Evaluation) -> Rankable:
    if metric.name == NEIGHBOUR_NME:
        return Rankable(metric, SANITY_NOTES[metric.name], digest=evaluation.get("sha256") or "")
    faces, hidden = evaluation.get("held_out"), evaluation.get("mask_ratio")
    among = f", among {faces} held-out faces (by chance: {100 / faces:.2g} %)" if faces else ""
    # Behind the digest, of which people see the beginning.
    digest = f"{result.held_out_digest} hidden {hidden}" if hidden is not None else result.held_out_digest
    return Rankable(metric, SANITY_NOTES[metric.name].format(among=among), digest=digest)


def _note(stage: StageResult) -> str:
    return f"{stage.stage} on {stage.benchmark}, {CHOSEN[stage.selection]}"
