"""The names of the numbers that a run will have, of which a comparison can rank by one. No torch, no files."""

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from trainer.contract.stage import FACES68, Stage

if TYPE_CHECKING:
    from trainer.contract.run import Evaluation

LANDMARK_NME, ACCURACY = "probe/landmark_nme", "probe/accuracy"
PSNR, RETRIEVAL, NEIGHBOUR_NME = "sanity/psnr", "sanity/retrieval_top1", "sanity/neighbour_nme"
FLOORS_OF: Mapping[str, str] = {RETRIEVAL: "floor/retrieval", NEIGHBOUR_NME: "floor/neighbour"}
"""Sanity metric -> how the names of its floors begin: floor/retrieval_pixels, floor/retrieval_random_encoder."""

_EYES = ("nme_inter_ocular", "nme_inter_pupil")
_WFLW = ("largepose", "expression", "illumination", "makeup", "occlusion", "blur")
_LAPA = (
    "skin", "left_brow", "right_brow", "left_eye", "right_eye", "nose", "upper_lip", "inner_mouth", "lower_lip", "hair",
)  # fmt: skip
_CELEBAMASK = (
    "neck", "skin", "cloth", "l_ear", "r_ear", "l_brow", "r_brow", "l_eye", "r_eye", "nose", "mouth", "l_lip", "u_lip",
    "hair", "eye_g", "hat", "ear_r", "neck_l",
)  # fmt: skip


def _with_subsets(names: tuple[str, ...], subsets: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(name if not subset else f"{name}/{subset}" for subset in ("", *subsets) for name in names)


STAGE_METRICS: Mapping[str, tuple[str, ...]] = {
    "aflw19": _with_subsets(("nme_diag", "nme_box", "auc_box_7", "fr_box_7"), ("frontal",)),
    "300w": _with_subsets(_EYES, ("common", "challenging")),
    "wflw": _with_subsets((*_EYES, "auc_inter_ocular_10", "fr_inter_ocular_10"), _WFLW),
    FACES68: (*_EYES, "nme_diag"),
    "lapa": _with_subsets(("f1",), _LAPA),
    "celebamask-hq": _with_subsets(("f1",), _CELEBAMASK),
}
"""Benchmark -> its metrics, as trainer/evaluation/stages/tasks.py names them."""


def rankable(asked: "Evaluation") -> list[str]:
    """What a run that is measured so can be ranked by, in short: alignment/nme_diag for alignment/last/nme_diag."""
    return [short for short, _ in _names(asked)]


def is_rankable(asked: "Evaluation", name: str) -> bool:
    return any(name in both for both in _names(asked))


def short(name: str) -> str:
    """A stage's metric without how its epoch was chosen; any other name as it is."""
    stage, _, rest = name.partition("/")
    chosen, _, metric = rest.partition("/")
    return f"{stage}/{metric}" if metric and chosen.startswith(("last", "best_on_")) else name


def _names(asked: "Evaluation") -> Iterator[tuple[str, str]]:
    """In short and in full."""
    sanity = [PSNR, RETRIEVAL]
    if asked.landmarks:
        yield LANDMARK_NME, LANDMARK_NME
        sanity.append(NEIGHBOUR_NME)
    if asked.labels:
        yield ACCURACY, ACCURACY
    for name, stage in asked.stages.items():
        yield from _of_stage(name, stage)
    for metric in sanity:
        yield metric, metric


def _of_stage(name: str, stage: Stage) -> Iterator[tuple[str, str]]:
    for metric in STAGE_METRICS[stage.benchmark]:
        yield f"{name}/{metric}", f"{name}/{stage.selection.value}/{metric}"
