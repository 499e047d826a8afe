"""Which points of a benchmark are the eyes: the distance between them is its unit of length. No torch."""

from typing import Literal

Aligned = Literal["aflw19", "300w", "wflw"]
Points = tuple[int, ...]
Eyes = tuple[Points, Points]
"""Points of one eye and of the other, from 0."""

# The outer corners:
INTER_OCULAR: dict[Aligned, Eyes] = {
    "aflw19": ((6,), (11,)),
    "300w": ((36,), (45,)),
    "wflw": ((60,), (72,)),
}
# The pupils; 300W has none, so the contours stand for them.
INTER_PUPIL: dict[Aligned, Eyes] = {
    "aflw19": ((7,), (10,)),
    "300w": ((36, 37, 38, 39, 40, 41), (42, 43, 44, 45, 46, 47)),
    "wflw": ((96,), (97,)),
}


def units_of(benchmark: Aligned) -> tuple[Eyes, Eyes]:
    """Both, for a benchmark that is scored by both."""
    return INTER_OCULAR[benchmark], INTER_PUPIL[benchmark]
