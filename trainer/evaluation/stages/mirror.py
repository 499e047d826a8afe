"""What left and right are called after a picture is mirrored. The protocol mirrors nothing; a recipe may.

Letters: P points.
"""

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

from trainer.evaluation.readers.record import IGNORED


def _exchanged(num_points: int, *pairs: tuple[Iterable[int], Iterable[int]]) -> tuple[int, ...]:
    """Number of the point whose place point i takes; points without a pair lie in the middle."""
    order = list(range(num_points))
    for one, other in pairs:
        for left, right in zip(one, other, strict=True):
            order[left], order[right] = right, left
    return tuple(order)


# By number of points. AFLW-19: brows, eyes, nose, mouth. 300W and WFLW: contour, brows, nose, eyes, mouth, pupils.
POINTS: Mapping[int, tuple[int, ...]] = {
    19: _exchanged(19, (range(3), range(5, 2, -1)), (range(6, 9), range(11, 8, -1)), ([12, 15], [14, 17])),
    68: _exchanged(
        68, (range(8), range(16, 8, -1)), (range(17, 22), range(26, 21, -1)), ([31, 32], [35, 34]),
        (range(36, 40), range(45, 41, -1)), ([40, 41], [47, 46]),
        (range(48, 51), range(54, 51, -1)), ([58, 59], [56, 55]), ([60, 61, 67], [64, 63, 65]),
    ),
    98: _exchanged(
        98, (range(16), range(32, 16, -1)), (range(33, 38), range(46, 41, -1)), (range(38, 42), range(50, 46, -1)),
        ([55, 56], [59, 58]), (range(60, 65), range(72, 67, -1)), (range(65, 68), range(75, 72, -1)),
        (range(76, 79), range(82, 79, -1)), ([86, 87], [84, 83]), ([88, 89, 95], [92, 91, 93]), ([96], [97]),
    ),
}  # fmt: skip


def mirrored_points(point_P2: Tensor) -> Tensor:
    """Points of a mirrored view in the order of the benchmark. Raises ValueError for an unknown number of points."""
    if len(point_P2) not in POINTS:
        raise ValueError(f"{len(point_P2)} points have no known mirror order; known are {', '.join(map(str, POINTS))}")
    return point_P2[list(POINTS[len(point_P2)])]


def mirrored_classes(mask: Tensor, class_names: Sequence[str]) -> Tensor:
    """Classes of a mirrored view: `left X` and `right X`, or `l_X` and `r_X`, are exchanged where both exist."""
    number_of = {name: number for number, name in enumerate(class_names)}
    table = torch.arange(IGNORED + 1)
    for name, number in number_of.items():
        for left, right in ("left ", "right "), ("l_", "r_"):
            partner = right + name.removeprefix(left)
            if name.startswith(left) and partner in number_of:
                table[number], table[number_of[partner]] = number_of[partner], number
    return table[mask.long()].to(mask.dtype)
