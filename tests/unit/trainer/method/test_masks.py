from itertools import combinations

import numpy as np
import pytest

from trainer.contract import PARTS, Mask, Part
from trainer.method.draws import Drawn, View, mask_noise, shape_words
from trainer.method.masks import ASPECTS, HULLS, bayer, patches_of, shaped_noise

SIZES = [(14, 0.75), (14, 0.5), (8, 0.9), (7, 0.75), (2, 0.5), (14, 0.99)]
SEED = 5


def drawn(count: int, epoch: int = 3) -> Drawn:
    return Drawn(np.full(count, epoch), np.arange(count))


def hidden(kind: str, side: int, ratio: float, count: int, view: int = View.ONLINE, **more: object) -> np.ndarray:
    """What is hidden, bool [B, S, S]."""
    visible = int(side**2 * (1 - ratio))
    part_BL = more.pop("part_BL", None)
    mask = Mask.model_validate({"kind": kind, **more})
    noise_BL = shaped_noise(mask, visible, SEED, drawn(count), view, side**2, part_BL)
    assert noise_BL.dtype == np.float32
    assert noise_BL.shape == (count, side**2)
    return (noise_BL.argsort(axis=1, kind="stable").argsort(axis=1) >= visible).reshape(-1, side, side)


@pytest.mark.parametrize("kind", ["random", "block", "grid", "parts"])
@pytest.mark.parametrize(("side", "ratio"), SIZES)
def test_noise_is_finite_and_no_two_patches_of_a_shape_have_the_same(kind: str, side: int, ratio: float) -> None:
    """So that `visible_patches` of the smallest are meant, and no other choice: 10,000 draws of every kind and size."""
    visible, count = int(side**2 * (1 - ratio)), 10_000
    part_BL = mask_noise(1, drawn(count), View.TARGET, side**2) < 0.4 if kind == "parts" else None
    mask = Mask(kind=kind, landmarks="/l.json", first=("eyes",)) if kind == "parts" else Mask(kind=kind)
    noise_BL = shaped_noise(mask, visible, SEED, drawn(count), View.ONLINE, side**2, part_BL)
    if kind == "random":
        assert np.isfinite(noise_BL).all()
    else:
        assert (np.sort(noise_BL, axis=1) == np.arange(side**2)).all()


def test_a_random_mask_is_the_noise_of_every_release_before() -> None:
    noise_BL = shaped_noise(Mask(), 49, SEED, drawn(20), View.TARGET, 196)
    assert noise_BL.tobytes() == mask_noise(SEED, drawn(20), View.TARGET, 196).tobytes()


@pytest.mark.parametrize(("side", "ratio"), SIZES)
def test_blocks_are_rectangles_of_which_the_last_one_alone_lacks_patches(side: int, ratio: float) -> None:
    found_BSS, visible = hidden("block", side, ratio, 10_000), int(side**2 * (1 - ratio))
    assert (found_BSS.sum(axis=(1, 2)) == side**2 - visible).all()
    words_BN4 = shape_words(SEED, drawn(200), View.ONLINE, 4 * 400).reshape(200, -1, 4)
    for found_SS, words_N4 in zip(found_BSS[:200], words_BN4, strict=True):
        whole, last = by_hand(words_N4.tolist(), side, side**2 - visible)
        assert all(found_SS[place] for place in whole)
        assert {(int(row), int(column)) for row, column in np.argwhere(found_SS)} - whole <= last


def by_hand(words: list[list[int]], side: int, count: int) -> tuple[set[tuple[int, int]], set[tuple[int, int]]]:
    """Patches of all blocks but the last, and of the last, for one image: the definition in docs/masks.md."""
    done: set[tuple[int, int]] = set()
    for size_word, aspect_word, patch_word, place_word in words:
        left = count - len(done)
        least = min(4, left)
        size = least + size_word % (left - least + 1)
        aspect = float(ASPECTS[aspect_word % len(ASPECTS)])
        height, width = (min(side, max(1, round(x**0.5))) for x in (size * aspect, size / aspect))
        visible = [(row, column) for row in range(side) for column in range(side) if (row, column) not in done]
        row, column = visible[patch_word % len(visible)]
        down, right = divmod(place_word % (height * width), width)
        top, start = (
            min(side - length, max(0, place - inside))
            for place, inside, length in ((row, down, height), (column, right, width))
        )
        block = {(top + i, start + j) for i in range(height) for j in range(width)}
        if len(done | block) >= count:
            return done, block
        done |= block
    raise AssertionError("too few words")


def test_patches_of_blocks_lie_together() -> None:
    def neighbours(found_BSS: np.ndarray) -> float:
        return float((found_BSS[:, 1:] == found_BSS[:, :-1]).mean())

    assert neighbours(hidden("random", 14, 0.5, 500)) == pytest.approx(0.5, abs=0.01)
    assert neighbours(hidden("block", 14, 0.5, 500)) > 0.8


@pytest.mark.parametrize("side", [2, 8, 14, 16])
def test_a_grid_of_three_quarters_leaves_one_patch_of_every_two_by_two(side: int) -> None:
    visible_BSS = ~hidden("grid", side, 0.75, 300)
    of_four = visible_BSS.reshape(300, side // 2, 2, side // 2, 2).sum(axis=(2, 4))
    assert (of_four == 1).all()
    patterns = {pattern.tobytes() for pattern in visible_BSS}
    assert len(patterns) == 4, "each of the four places, in some image"


def test_a_grid_of_any_ratio_is_as_dense_everywhere() -> None:
    for ratio in 0.5, 0.6, 0.9:
        visible_BSS = ~hidden("grid", 16, ratio, 200)
        of_sixteen = visible_BSS.reshape(200, 4, 4, 4, 4).sum(axis=(2, 4))
        assert of_sixteen.max() - of_sixteen.min() <= 1
    checked = ~hidden("grid", 14, 0.5, 50)
    assert (checked[:, 1:] != checked[:, :-1]).all(), "at one half a chess board"
    assert (checked[:, :, 1:] != checked[:, :, :-1]).all()


def test_bayers_matrix_is_the_one_of_1973() -> None:
    assert bayer(3).tolist() == [[0, 8, 2, 10], [12, 4, 14, 6], [3, 11, 1, 9], [15, 7, 13, 5]]
    assert bayer(1).tolist() == [[0]]


def test_parts_are_hidden_first_kept_first_or_chosen_of_at_random() -> None:
    parts = {"landmarks": "/l.json", "first": ["nose"]}
    part_BL = np.zeros((500, 64), bool)
    part_BL[:, 20:30] = True
    part_BSS = part_BL.reshape(-1, 8, 8)
    fits = hidden("parts", 8, 0.75, 500, part_BL=part_BL, **parts)
    assert fits[part_BSS].all()
    assert (fits.sum(axis=(1, 2)) == 48).all()
    too_many = hidden("parts", 8, 0.125, 500, part_BL=part_BL, **parts)
    assert not too_many[~part_BSS].any(), "8 to hide, and the part has 10 patches"
    assert too_many.reshape(500, -1)[:, 20:30].mean(axis=0) == pytest.approx([0.8] * 10, abs=0.06)
    kept = hidden("parts", 8, 0.75, 500, part_BL=part_BL, keep=True, **parts)
    assert not kept[part_BSS].any()
    assert (kept.sum(axis=(1, 2)) == 48).all()
    assert kept.reshape(500, -1)[:, 30:].mean() == pytest.approx(48 / 54, abs=0.01), "the rest is random"


@pytest.mark.parametrize("keep", [False, True])
def test_a_face_without_landmarks_has_a_random_mask(keep: bool) -> None:
    nowhere = np.zeros((20, 64), bool)
    found = hidden("parts", 8, 0.75, 20, part_BL=nowhere, landmarks="/l.json", first=["eyes"], keep=keep)
    assert (found == hidden("random", 8, 0.75, 20)).all()


def test_patches_of_a_part_are_those_that_its_hull_touches() -> None:
    """Against a fine raster: a patch counts when a point of the hull lies in it."""
    rng = np.random.default_rng(0)
    point_B68x2 = 0.5 + 0.25 * rng.standard_normal((20, 68, 2))
    step = np.linspace(0, 1, 81)
    u, v = (x.ravel() for x in np.meshgrid(step, step))
    inside = u + v <= 1
    u, v = u[inside], v[inside]
    for part in PARTS:
        found_BSS = patches_of((part,), point_B68x2, 8).reshape(-1, 8, 8)
        expected_BSS = np.zeros_like(found_BSS)
        for image, points in enumerate(point_B68x2):
            for corners in triangles(part):
                a, b, c = points[list(corners)]
                x, y = (a + u[:, None] * (b - a) + v[:, None] * (c - a)).T * 8
                within = (x >= 0) & (x < 8) & (y >= 0) & (y < 8)
                expected_BSS[image, y[within].astype(int), x[within].astype(int)] = True
        assert not (expected_BSS & ~found_BSS).any(), part
        assert (found_BSS & ~expected_BSS).mean() < 0.01, "corners that the raster has missed"


def triangles(part: Part) -> list[tuple[int, ...]]:
    """A hull is the union of the triangles between its points; a line is a triangle of no height."""
    return [
        (*corners, corners[-1]) if len(corners) == 2 else corners
        for points in HULLS[part]
        for corners in combinations(points, min(3, len(points)))
    ]


@pytest.mark.parametrize("kind", ["block", "grid"])
def test_a_mask_is_a_function_of_seed_epoch_image_and_view_and_of_nothing_else(kind: str) -> None:
    def noise(seed: int, epoch: int, indices: list[int], view: int) -> np.ndarray:
        at = Drawn(np.full(len(indices), epoch), np.array(indices))
        return shaped_noise(Mask.model_validate({"kind": kind}), 49, seed, at, view, 196)

    together = noise(0, 2, [5, 9, 700], View.ONLINE)
    for row, index in enumerate([5, 9, 700]):
        assert (noise(0, 2, [index], View.ONLINE)[0] == together[row]).all()
    others = [noise(1, 2, [5], 0), noise(0, 3, [5], 0), noise(0, 2, [6], 0), noise(0, 2, [5], View.TARGET)]
    assert all((other[0] != together[0]).any() for other in others)


@pytest.mark.parametrize("kind", ["random", "block", "grid"])
def test_the_masks_of_both_views_are_independent(kind: str) -> None:
    """Over many images, what one view hides says nothing of what the other does."""
    one, other = (hidden(kind, 8, 0.5, 4000, view).reshape(4000, -1).astype(float) for view in View)
    assert abs(((one - one.mean(axis=0)) * (other - other.mean(axis=0))).mean()) < 0.004
