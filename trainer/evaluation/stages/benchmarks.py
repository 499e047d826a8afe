"""The five benchmarks by name, and faces68: reader, task and published recipe (docs/evaluation.md)."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from torch import Tensor

from trainer.contract.recipe import Recipe
from trainer.evaluation.readers import READERS, Reader, celebamask, lapa
from trainer.evaluation.readers.eyes import Aligned
from trainer.evaluation.readers.hrnet_csv import WFLW_SUBSETS
from trainer.evaluation.stages import augment
from trainer.evaluation.stages.crop import Jitter
from trainer.evaluation.stages.metrics import THRESHOLD, box_side, diagonal, inter_ocular, inter_pupil
from trainer.evaluation.stages.tasks import AlignmentTask, ParsingTask, Unit

ALIGNMENT_JITTER = Jitter(scale=0.1, rotation=0.174, shift_ratio=0.05)
PARSING_JITTER = Jitter(scale=0.1, rotation=0.314, shift_ratio=0.01)
PARSING_RECIPE = Recipe(epochs=300, pyramid_lr=1e-3, head_lr=1e-3)


@dataclass(frozen=True)
class Benchmark:
    """Everything that makes a folder of images a number."""

    name: str
    read: Reader
    """Raises DataError that names what is missing."""
    task: AlignmentTask | ParsingTask
    recipe: Recipe


def _between_eyes(length: Callable[[Tensor, Aligned], Tensor], benchmark: Aligned) -> Unit:
    def unit(point_NP2: Tensor, box_N4: Tensor) -> Tensor:
        return length(point_NP2, benchmark)

    return unit


def _of_box(length: Callable[[Tensor], Tensor]) -> Unit:
    def unit(point_NP2: Tensor, box_N4: Tensor) -> Tensor:
        return length(box_N4)

    return unit


AFLW19 = Benchmark(
    name="aflw19",
    read=READERS["aflw19"],
    task=AlignmentTask(
        num_maps=19, scale=1.0, units={"diag": _of_box(diagonal), "box": _of_box(box_side)}, primary="nme_diag",
        curve=("box", THRESHOLD["aflw19"]), subsets=("frontal",), jitter=ALIGNMENT_JITTER, augment=augment.ALIGNMENT,
    ),
    recipe=Recipe(epochs=150),
)  # fmt: skip
POINTS_300W = AlignmentTask(
    num_maps=68, scale=0.8, primary="nme_inter_ocular", curve=None, subsets=("common", "challenging"),
    units={"inter_ocular": _between_eyes(inter_ocular, "300w"), "inter_pupil": _between_eyes(inter_pupil, "300w")},
    jitter=ALIGNMENT_JITTER, augment=augment.ALIGNMENT,
)  # fmt: skip
W300 = Benchmark(name="300w", read=READERS["300w"], task=POINTS_300W, recipe=Recipe(epochs=250))
WFLW = Benchmark(
    name="wflw",
    read=READERS["wflw"],
    task=AlignmentTask(
        num_maps=98, scale=0.8, primary="nme_inter_ocular", subsets=WFLW_SUBSETS,
        curve=("inter_ocular", THRESHOLD["wflw"]),
        units={
            "inter_ocular": _between_eyes(inter_ocular, "wflw"), "inter_pupil": _between_eyes(inter_pupil, "wflw"),
        },
        jitter=ALIGNMENT_JITTER, augment=augment.ALIGNMENT,
    ),
    recipe=Recipe(epochs=150),
)  # fmt: skip
# Nobody's benchmark: 300W's task on whatever faces there are, which also makes it a test of all of this.
FACES68 = Benchmark(
    name="faces68",
    read=READERS["faces68"],
    task=replace(POINTS_300W, subsets=(), units={**POINTS_300W.units, "diag": _of_box(diagonal)}),
    recipe=W300.recipe,
)
LAPA = Benchmark(
    name="lapa",
    read=READERS["lapa"],
    task=ParsingTask(
        class_names=lapa.CLASSES, align_by=lapa.TEMPLATE_POINTS, warp_factor=0.8, jitter=PARSING_JITTER,
        augment=augment.PARSING,
    ),
    recipe=PARSING_RECIPE,
)  # fmt: skip
CELEBAMASK = Benchmark(
    name="celebamask-hq",
    read=READERS["celebamask-hq"],
    task=ParsingTask(
        class_names=celebamask.CLASSES, align_by=None, warp_factor=0.0, jitter=PARSING_JITTER, augment=augment.PARSING
    ),
    recipe=PARSING_RECIPE,
)
BENCHMARKS: Mapping[str, Benchmark] = {found.name: found for found in (AFLW19, W300, WFLW, FACES68, LAPA, CELEBAMASK)}
