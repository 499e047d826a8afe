"""Masks that are more than a ratio, as noise: whatever its kind, the patches with the smallest values stay visible.

So every image keeps exactly as many patches as the spec says, and the networks do not know of kinds. A mask is a
function of (seed, epoch, index, view) and, with `parts`, of the image's landmarks. docs/masks.md has the definitions.

Letters: B images, L patches, S the side of the square of patches, P points of a part.
"""

from collections.abc import Callable, Iterator

import numpy as np

from trainer.contract import Mask, Part
from trainer.method.draws import Drawn, mask_noise, shape_words

# After BEiT (Bao, Dong and Wei 2021): blocks of this many patches or more, until fewer are left to hide.
SMALLEST_BLOCK = 4
# Height over width, evenly spaced in the logarithm. Written out, because no two libraries promise the same `exp`.
ASPECTS = np.array([0.3, 0.356, 0.423, 0.503, 0.597, 0.71, 0.843, 1, 1.186, 1.408, 1.675, 1.988, 2.364, 2.809, 3.333])
# For a first try: enough blocks for most images.
BLOCKS = 12

# Points of the 68 whose hull is a part, counted from 0; the jaw is a line, whose hull would be the face.
HULLS: dict[Part, tuple[tuple[int, ...], ...]] = {
    "eyes": (tuple(range(36, 42)), tuple(range(42, 48))),
    "brows": (tuple(range(17, 22)), tuple(range(22, 27))),
    "nose": (tuple(range(27, 36)),),
    "mouth": (tuple(range(48, 60)),),
    "contour": tuple((point, point + 1) for point in range(16)),
}


def shaped_noise(
    mask: Mask, num_visible: int, seed: int, drawn: Drawn, view: int, num_patches: int,
    part_BL: np.ndarray | None = None, scores: Callable[[np.ndarray], np.ndarray] | None = None,
) -> np.ndarray:  # fmt: skip
    """Noise [B, L], float32: the `num_visible` patches with the smallest values stay visible.

    `part_BL`: whether a patch is of the parts that the mask names, bool; nowhere for an image without landmarks.
    `scores`: what user code makes of noise [B, L], by which the smallest stay visible.
    """
    noise_BL = mask_noise(seed, drawn, view, num_patches)
    side = round(num_patches**0.5)
    match mask.kind:
        case "random":
            return noise_BL
        case "block":
            return ranks(_blocks(noise_BL, num_patches - num_visible, seed, drawn, view, side), noise_BL)
        case "grid":
            return ranks(_grid(seed, drawn, view, side), noise_BL)
        case "parts":
            assert part_BL is not None, "a mask of parts without parts"
            return ranks(~part_BL if mask.keep else part_BL, noise_BL)
        case "code":
            assert scores is not None, "a mask of user code without the code"
            return ranks(scores(noise_BL), noise_BL)


def ranks(score_BL: np.ndarray, noise_BL: np.ndarray) -> np.ndarray:
    """Place of each patch by rising score, then by noise: float32 [B, L], all different."""
    order_BL = np.lexsort((noise_BL, score_BL), axis=1)
    return order_BL.argsort(axis=1, kind="stable").astype(np.float32)


def _blocks(noise_BL: np.ndarray, num_hidden: int, seed: int, drawn: Drawn, view: int, side: int) -> np.ndarray:
    """Whether each patch is hidden, bool [B, L]: exactly `num_hidden` of every image."""
    hidden_BL = np.zeros(noise_BL.shape, bool)
    count = BLOCKS
    words_BN4 = shape_words(seed, drawn, view, 4 * count).reshape(-1, count, 4)
    number = 0
    while (left_B := num_hidden - hidden_BL.sum(axis=1)).any():
        if number == count:
            count *= 2
            words_BN4 = shape_words(seed, drawn, view, 4 * count).reshape(-1, count, 4)
        new_BL = _block(words_BN4[:, number], left_B, hidden_BL, side) & ~hidden_BL & (left_B > 0)[:, None]
        for image in np.flatnonzero(new_BL.sum(axis=1) > left_B):
            # Of the last block a random choice.
            new = np.flatnonzero(new_BL[image])
            new_BL[image, new[noise_BL[image, new].argsort(kind="stable")[left_B[image] :]]] = False
        hidden_BL |= new_BL
        number += 1
    return hidden_BL


def _block(word_B4: np.ndarray, left_B: np.ndarray, hidden_BL: np.ndarray, side: int) -> np.ndarray:
    """A rectangle over a patch that is still visible, bool [B, L].

    Its size is drawn from SMALLEST_BLOCK to what is left to hide, its shape from ASPECTS.
    """
    smallest_B = np.clip(left_B, 1, SMALLEST_BLOCK)
    size_B = smallest_B + _below(word_B4[:, 0], np.maximum(left_B, smallest_B) - smallest_B + 1)
    aspect_B = ASPECTS[_below(word_B4[:, 1], len(ASPECTS))]
    height_B, width_B = (
        np.clip(np.rint(np.sqrt(x)), 1, side).astype(np.int64) for x in (size_B * aspect_B, size_B / aspect_B)
    )
    # The visible patch of a random number, and where in the rectangle it lies; what would stick out is pushed in.
    visible_B = (~hidden_BL).sum(axis=1)
    number_B = _below(word_B4[:, 2], np.maximum(visible_B, 1))
    patch_B = ((~hidden_BL).cumsum(axis=1) > number_B[:, None]).argmax(axis=1)
    row_B, column_B = np.divmod(patch_B, side)
    inside_B = _below(word_B4[:, 3], height_B * width_B)
    top_B = np.clip(row_B - inside_B // width_B, 0, side - height_B)
    left_edge_B = np.clip(column_B - inside_B % width_B, 0, side - width_B)
    place_S = np.arange(side)
    in_row_BS = (place_S >= top_B[:, None]) & (place_S < (top_B + height_B)[:, None])
    in_column_BS = (place_S >= left_edge_B[:, None]) & (place_S < (left_edge_B + width_B)[:, None])
    return (in_row_BS[:, :, None] & in_column_BS[:, None, :]).reshape(len(word_B4), -1)


def _grid(seed: int, drawn: Drawn, view: int, side: int) -> np.ndarray:
    """Scores [B, L] of an even pattern: a Bayer matrix, moved by a random number of rows and columns."""
    matrix_SS = bayer(side)
    word_B2 = shape_words(seed, drawn, view, 2)
    moved_B2 = _below(word_B2, len(matrix_SS))
    place_BS = (
        (np.arange(side) + moved_B2[:, :1]) % len(matrix_SS),
        (np.arange(side) + moved_B2[:, 1:]) % len(matrix_SS),
    )
    return matrix_SS[place_BS[0][:, :, None], place_BS[1][:, None, :]].reshape(len(word_B2), -1)


def bayer(side: int) -> np.ndarray:
    """The smallest Bayer matrix [S, S] (1973), S a power of two, that covers `side` patches.

    Its first quarter of numbers stands in every second row and column, its first sixteenth in every fourth, and so on.
    """
    matrix_SS = np.zeros((1, 1), np.int64)
    while len(matrix_SS) < side:
        matrix_SS = np.block([[4 * matrix_SS, 4 * matrix_SS + 2], [4 * matrix_SS + 3, 4 * matrix_SS + 1]])
    return matrix_SS


def patches_of(parts: tuple[Part, ...], point_B68x2: np.ndarray, side: int) -> np.ndarray:
    """Which patches the parts of these faces touch, bool [B, L].

    Points lie at 0..1 from edge to edge of the input, as (x, y). A patch counts when it and the convex hull of a part's
    points have a point in common.
    """
    found_BL = np.zeros((len(point_B68x2), side * side), bool)
    for part in parts:
        for points in HULLS[part]:
            found_BL |= _touched(point_B68x2[:, points] * side, side)
    return found_BL


def _touched(point_BP2: np.ndarray, side: int) -> np.ndarray:
    """Two convex shapes are apart exactly where a line along a side of one of them keeps them apart.

    The sides of the hull are among the lines between two of its points, and no other line separates what touches.
    """
    centre_S = np.arange(side) + 0.5
    touched_BL = np.ones((len(point_BP2), side * side), bool)
    for normal_B2 in _normals(point_BP2):
        shadow_BP = (point_BP2 * normal_B2[:, None]).sum(axis=2)
        patch_BL = (centre_S[:, None] * normal_B2[:, None, None, 1] + centre_S * normal_B2[:, None, None, 0]).reshape(
            len(point_BP2), -1
        )
        half_B1 = 0.5 * np.abs(normal_B2).sum(axis=1, keepdims=True)
        touched_BL &= patch_BL + half_B1 >= shadow_BP.min(axis=1, keepdims=True)
        touched_BL &= patch_BL - half_B1 <= shadow_BP.max(axis=1, keepdims=True)
    return touched_BL


def _normals(point_BP2: np.ndarray) -> Iterator[np.ndarray]:
    """[B, 2] each: of the sides of a patch, and of every line between two points."""
    count = point_BP2.shape[1]
    yield from (np.tile(axis, (len(point_BP2), 1)) for axis in np.eye(2))
    for one in range(count):
        for other in range(one):
            along_B2 = point_BP2[:, one] - point_BP2[:, other]
            yield np.stack([-along_B2[:, 1], along_B2[:, 0]], axis=1)


def _below(word_B: np.ndarray, limit_B: np.ndarray | int) -> np.ndarray:
    """A whole number from 0 to below the limit, int64, of each random word."""
    return (word_B % np.asarray(limit_B).astype(np.uint64)).astype(np.int64)
