"""Crops, the tanh warp, mirroring and augmentations: there and back, and by hand."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from trainer.evaluation.readers import celebamask, lapa
from trainer.evaluation.stages import augment
from trainer.evaluation.stages.crop import TEMPLATE_52, Crop, Jitter, Pose, box_crop, template_crop, whole_crop
from trainer.evaluation.stages.mirror import POINTS, mirrored_classes, mirrored_points
from trainer.evaluation.stages.warp import unwarp, warp


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def points(seed: int = 0, count: int = 30) -> torch.Tensor:
    return torch.rand(count, 2, generator=generator(seed), dtype=torch.float64) * 100


@settings(max_examples=100, deadline=None)
@given(place=st.floats(-4, 4), factor=st.floats(0.3, 1))
def test_the_warp_and_its_inverse_cancel(place: float, factor: float) -> None:
    there = warp(torch.tensor(place, dtype=torch.float64), factor)
    assert -1 <= float(there) <= 1
    if abs(float(there)) < 1 - 1e-6:
        assert float(unwarp(there, factor)) == pytest.approx(place, abs=1e-6)


def test_the_warp_by_hand() -> None:
    place = torch.tensor([-0.15, 0.2, 1.0, -1e6], dtype=torch.float64)
    assert warp(place, 0.8).tolist() == pytest.approx([-0.15, 0.2, 0.8 * math.tanh(1) + 0.2, -1.0])
    assert warp(place, 0) is place
    with pytest.raises(ValueError, match="possible: 0 to 1"):
        warp(place, 1.5)


def test_a_box_is_stretched_to_the_crop_and_then_scaled_about_its_centre() -> None:
    crop = box_crop((10.0, 20.0, 50.0, 40.0), 100)
    corners = torch.tensor([[10.0, 20.0], [50.0, 40.0], [30.0, 30.0]])
    assert crop.to_crop(corners).tolist() == [[0, 0], [100, 100], [50, 50]]
    smaller = crop.moved(Pose(scale=0.8))
    assert smaller.to_crop(corners).flatten().tolist() == pytest.approx([10, 10, 90, 90, 50, 50])
    turned = crop.moved(Pose(rotation=math.pi / 2, shift_ratio=(0.1, 0.0)))
    # The left upper corner turns clockwise to the right upper one, and everything shifts by ten pixels.
    assert turned.to_crop(corners[:1]).flatten().tolist() == pytest.approx([110, 0])
    with pytest.raises(ValueError, match="no width or no height"):
        box_crop((5.0, 0.0, 5.0, 9.0))


def test_five_points_that_are_a_moved_template_are_moved_back_exactly() -> None:
    template_52 = torch.tensor(TEMPLATE_52, dtype=torch.float64)
    turn = torch.tensor([[math.cos(0.4), -math.sin(0.4)], [math.sin(0.4), math.cos(0.4)]], dtype=torch.float64)
    seen_52 = 0.3 * template_52 @ turn.T + torch.tensor([40.0, 7.0])
    torch.testing.assert_close(template_crop(seen_52).to_crop(seen_52), template_52)
    torch.testing.assert_close(template_crop(seen_52, size=128).to_crop(seen_52), template_52 / 4)
    with pytest.raises(ValueError, match="one and the same"):
        template_crop(torch.ones(5, 2))
    with pytest.raises(ValueError, match="five points"):
        template_crop(torch.ones(4, 2))


def test_no_similarity_is_nearer_to_the_template_than_the_one_found() -> None:
    seen_52, template_52 = points(5, 5), torch.tensor(TEMPLATE_52, dtype=torch.float64)
    found = template_crop(seen_52)
    best = (found.to_crop(seen_52) - template_52).square().sum()
    for pose in Pose(1.01), Pose(0.99), Pose(1, 0.01), Pose(1, -0.01), Pose(1, 0, (0.01, 0)), Pose(1, 0, (0, -0.01)):
        assert (found.moved(pose).to_crop(seen_52) - template_52).square().sum() > best


@pytest.mark.parametrize("factor", [0.0, 0.8])
def test_points_come_back_from_the_crop(factor: float) -> None:
    base = box_crop((20.0, 10.0, 80.0, 90.0), 64)
    crop = Crop(base.matrix_33, 64, factor).moved(Pose(0.7, 0.3, (0.05, -0.02))).mirrored()
    torch.testing.assert_close(crop.to_image(crop.to_crop(points())), points(), atol=1e-6, rtol=0)


@pytest.mark.parametrize("factor", [0.0, 0.8])
def test_a_blob_lies_in_the_crop_where_its_point_does(factor: float) -> None:
    y, x = torch.meshgrid(torch.arange(100) + 0.5, torch.arange(120) + 0.5, indexing="ij")
    place = torch.tensor([[70.0, 40.0]])
    image_CHW = torch.exp(-((x - 70) ** 2 + (y - 40) ** 2) / 50)[None]
    crop = Crop(box_crop((10.0, 5.0, 110.0, 95.0), 128).matrix_33, 128, factor).moved(Pose(0.9, 0.2))
    view = crop.sample(image_CHW)[0].double()
    y, x = torch.meshgrid(torch.arange(128) + 0.5, torch.arange(128) + 0.5, indexing="ij")
    # The warp shrinks one side of a blob more than the other, so its peak is looked at and not its centroid.
    sharp = view**8
    centre = torch.stack([(sharp * x).sum(), (sharp * y).sum()]) / sharp.sum()
    torch.testing.assert_close(centre, crop.to_crop(place)[0], atol=0.3, rtol=0)


def test_the_identity_crop_gives_back_pixels_and_a_mask_of_half_the_size_fits_it() -> None:
    image_CHW = torch.rand(3, 16, 16, generator=generator(1))
    crop = whole_crop(16, 16, 16)
    torch.testing.assert_close(crop.sample(image_CHW), image_CHW)
    torch.testing.assert_close(crop.unsample(image_CHW, (16, 16)), image_CHW)
    mask_1HW = torch.zeros(1, 8, 8)
    mask_1HW[0, 2, 3] = 5
    seen = crop.sample(mask_1HW, (16, 16), mode="nearest")[0]
    assert seen.nonzero().tolist() == [[4, 6], [4, 7], [5, 6], [5, 7]]
    back = crop.unsample(seen[None], (16, 16), out=(8, 8))[0]
    torch.testing.assert_close(back, mask_1HW[0])


@pytest.mark.parametrize("factor", [0.0, 0.8])
def test_a_smooth_view_returns_to_the_image(factor: float) -> None:
    y, x = torch.meshgrid(torch.arange(60) / 60, torch.arange(80) / 80, indexing="ij")
    image_CHW = torch.stack([torch.sin(3 * x + 1), torch.cos(2 * y) * x])
    crop = Crop(box_crop((15.0, 5.0, 65.0, 55.0), 256).matrix_33, 256, factor).moved(Pose(0.6, 0.1))
    back = crop.unsample(crop.sample(image_CHW), (80, 60))
    torch.testing.assert_close(back[:, 10:50, 20:60], image_CHW[:, 10:50, 20:60], atol=0.01, rtol=0)


def test_a_mirrored_view_shows_mirrored_pixels_and_points() -> None:
    image_CHW = torch.rand(1, 16, 16, generator=generator(2))
    crop = whole_crop(16, 16, 16)
    torch.testing.assert_close(crop.mirrored().sample(image_CHW), image_CHW.flip(-1))
    assert crop.mirrored().to_crop(torch.tensor([[3.0, 5.0]])).tolist() == [[13.0, 5.0]]


PAIRS = {
    # Outer brow, outer eye corner, mouth corner; then points in the middle.
    19: ([(0, 5), (6, 11), (8, 9), (12, 14), (15, 17)], [13, 16, 18]),
    68: ([(0, 16), (7, 9), (17, 26), (21, 22), (31, 35), (36, 45), (39, 42), (41, 46), (37, 44), (48, 54), (59, 55),
          (60, 64), (67, 65)], [8, 27, 28, 29, 30, 33, 51, 57, 62, 66]),
    98: ([(0, 32), (15, 17), (33, 46), (37, 42), (38, 50), (41, 47), (55, 59), (60, 72), (64, 68), (65, 75), (67, 73),
          (76, 82), (83, 87), (88, 92), (89, 91), (95, 93), (96, 97)], [16, 51, 52, 53, 54, 57, 79, 85, 90, 94]),
}  # fmt: skip


@pytest.mark.parametrize("count", PAIRS)
def test_the_orders_of_points_exchange_sides_and_are_their_own_inverse(count: int) -> None:
    pairs, middle = PAIRS[count]
    order = POINTS[count]
    assert [order[order[i]] for i in range(count)] == list(range(count))
    assert [i for i in range(count) if order[i] == i] == middle
    assert all(order[one] == other for one, other in pairs)
    assert mirrored_points(torch.arange(2 * count).view(count, 2))[pairs[0][0]].tolist() == [
        2 * pairs[0][1], 2 * pairs[0][1] + 1,
    ]  # fmt: skip
    with pytest.raises(ValueError, match="no known mirror order"):
        mirrored_points(torch.zeros(5, 2))


@pytest.mark.parametrize(
    ("classes", "one", "other", "same"),
    [(lapa.CLASSES, "left eye", "right eye", "hair"), (celebamask.CLASSES, "l_ear", "r_ear", "l_lip")],
)
def test_classes_of_sides_are_exchanged(classes: tuple[str, ...], one: str, other: str, same: str) -> None:
    named = [classes.index(name) for name in (one, other, same)]
    mask = torch.tensor([named], dtype=torch.uint8)
    assert mirrored_classes(mask, classes).tolist() == [[named[1], named[0], named[2]]]
    assert mirrored_classes(torch.tensor([[255]], dtype=torch.uint8), classes).tolist() == [[255]]
    everything = torch.arange(len(classes))
    assert torch.equal(mirrored_classes(mirrored_classes(everything, classes), classes), everything)


def test_jitter_stays_within_its_bounds_and_reaches_near_them() -> None:
    jitter = Jitter(scale=0.1, rotation=0.174, shift_ratio=0.05)
    source = generator(3)
    poses = [jitter.draw(source, scale=0.8) for _ in range(500)]
    for values, low, high in (
        ([pose.scale for pose in poses], 0.7, 0.9),
        ([pose.rotation for pose in poses], -0.174, 0.174),
        ([pose.shift_ratio[0] for pose in poses], -0.05, 0.05),
        ([pose.shift_ratio[1] for pose in poses], -0.05, 0.05),
    ):
        assert low <= min(values) < low + 0.05 * (high - low)
        assert high >= max(values) > high - 0.05 * (high - low)


def test_augmentations_are_drawn_from_the_generator_and_leave_the_image_alone() -> None:
    image_CHW = torch.rand(3, 64, 64, generator=generator(4))
    before = image_CHW.clone()
    one, again = (augment.ALIGNMENT(image_CHW, generator(7)) for _ in range(2))
    assert torch.equal(one, again)
    assert not torch.equal(one, augment.ALIGNMENT(image_CHW, generator(8)))
    assert torch.equal(image_CHW, before)
    assert 0 <= float(one.min()) <= float(one.max()) <= 1
    # Nothing applied draws as much as everything does, so that the next image's changes are the same.
    sources = generator(9), generator(9)
    augment.ALIGNMENT(image_CHW, sources[0])
    augment.PARSING(image_CHW, sources[1])
    assert torch.equal(*(torch.rand(3, generator=source) for source in sources))


def test_each_augmentation_does_what_it_says() -> None:
    ones, source = torch.ones(3, 100, 100), generator(10)
    bare = {"occlude": False, "noise_probability": 0.0, "grey_probability": 0.0, "gamma": False, "blur_ratio": 0.0}
    assert torch.equal(augment.Augment(**bare)(ones, source), ones)
    sides = []
    for _ in range(200):
        black = augment.Augment(**(bare | {"occlude": True}))(ones, source)[0] == 0
        sides.append((int(black.any(1).sum()), int(black.any(0).sum())))
        assert int(black.sum()) == sides[-1][0] * sides[-1][1]
    assert max(height for height, _ in sides) in range(36, 41)
    assert max(width for _, width in sides) <= 48
    colour = torch.rand(3, 8, 8, generator=source)
    grey = augment.Augment(**(bare | {"grey_probability": 1.0}))(colour, source)
    assert torch.equal(grey[0], grey[2])
    torch.testing.assert_close(grey[0], 0.299 * colour[0] + 0.587 * colour[1] + 0.114 * colour[2])
    gamma = {round(float(augment.Augment(**(bare | {"gamma": True}))(ones / 4, source)[0, 0, 0]), 4) for _ in range(40)}
    assert gamma == {0.5, 0.25, 0.0625}
    noisy = [augment.Augment(**(bare | {"noise_probability": 0.5}))(ones, source) for _ in range(100)]
    assert 30 <= sum(not torch.equal(image, ones) for image in noisy) <= 70
    assert min(float(image.min()) for image in noisy) >= 0.5 - 1e-6
    step = torch.zeros(3, 100, 100)
    step[:, :, 50:] = 1
    blurred = [augment.Augment(**(bare | {"blur_ratio": 0.1}))(step, source)[0, 0] for _ in range(50)]
    widths = {int(((row > 0.001) & (row < 0.999)).sum()) for row in blurred}
    assert widths <= set(range(10))
    assert max(widths) >= 8
    assert blurred[0].shape == (100,)
