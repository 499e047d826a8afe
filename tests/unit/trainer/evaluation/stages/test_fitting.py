"""Tasks, fits and benchmarks on a few drawn faces: a dark head with two bright eyes."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from pydantic import ValidationError

from tests.unit.trainer.teamwork import together
from trainer.contract import EncoderSpec
from trainer.contract.recipe import Recipe, Selection
from trainer.data.manifest import DataError
from trainer.evaluation.readers.record import LabelImage, Record
from trainer.evaluation.stages import augment, network
from trainer.evaluation.stages.benchmarks import BENCHMARKS
from trainer.evaluation.stages.crop import TEMPLATE_52, Jitter
from trainer.evaluation.stages.fitting import Diverged, Epoch, Fit, Fitted, epoch_order
from trainer.evaluation.stages.metrics import box_side, diagonal
from trainer.evaluation.stages.splits import split
from trainer.evaluation.stages.tasks import AlignmentTask, Example, ParsingTask
from trainer.evaluation.team import ALONE, Team
from trainer.method.vit import Encoder, initialise

CPU = torch.device("cpu")
TINY = EncoderSpec(width=16, depth=4, heads=2, patch=8)
SIDE = 32
PLAIN = augment.Augment(occlude=False, noise_probability=0.0, grey_probability=0.0, gamma=False, blur_ratio=0.0)
JITTER = Jitter(scale=0.1, rotation=0.1, shift_ratio=0.1)
ALIGNMENT = AlignmentTask(
    num_maps=2, scale=0.8, units={"diag": lambda _, boxes: diagonal(boxes), "box": lambda _, boxes: box_side(boxes)},
    primary="nme_box", curve=("box", 0.1), subsets=("odd",), jitter=JITTER, augment=PLAIN, size=SIDE,
)  # fmt: skip
PARSING = ParsingTask(
    class_names=("background", "head", "eye"), align_by=None, warp_factor=0.0, jitter=JITTER, augment=PLAIN, size=SIDE
)
QUICK = Recipe(
    epochs=2,
    batch=4,
    slice=2,
    encoder_lr=1e-3,
    pyramid_lr=3e-3,
    head_lr=3e-3,
    average_decay=0.5,
    decay_epoch=100,
    validation_share=0.3,
)


@pytest.fixture
def faces(tmp_path: Path) -> list[Record]:
    """Nine faces to train on, four to test on; points and masks are where the eyes are drawn.

    Points and boxes count from the centre of the first pixel, places from its edge.
    """
    found = []
    for number in range(13):
        draw = np.random.default_rng(number)
        left, top = draw.integers(5, 15, size=2)
        pixels, mask = np.full((48, 48, 3), 90, np.uint8), np.zeros((48, 48), np.uint8)
        pixels[top : top + 28, left : left + 28] = 10
        mask[top : top + 28, left : left + 28] = 1
        places = np.array([[left + 8.0, top + 10.0], [left + 20.0, top + 10.0]])
        for x, y in places.astype(int):
            pixels[y - 3 : y + 3, x - 3 : x + 3] = 255
            mask[y - 3 : y + 3, x - 3 : x + 3] = 2
        path = tmp_path / f"face{number}.png"
        Image.fromarray(pixels).save(path)
        Image.fromarray(mask).save(tmp_path / f"mask{number}.png")
        found.append(
            Record(
                image=path, split="train" if number < 9 else "test",
                box=(left - 0.5, top - 0.5, left + 27.5, top + 27.5),
                subsets=frozenset({"odd"} if number % 2 else ()), points_P2=places - 0.5,
                mask=LabelImage(tmp_path / f"mask{number}.png", 3),
            )
        )  # fmt: skip
    return found


def net(num_maps: int = 2, *, frozen: bool = False) -> network.Network:
    encoder = Encoder(TINY, SIDE)
    initialise(encoder, torch.Generator().manual_seed(0))
    return network.build(TINY, encoder.state_dict(), num_maps, frozen=frozen, seed=1, input_size=SIDE, channels=8)


def fit_of(records: list[Record], task: Any = ALIGNMENT, recipe: Recipe = QUICK) -> Fit:
    return Fit(net(task.num_maps, frozen=recipe.frozen), task, split(records, recipe), recipe, CPU)


def assert_equal(one: Any, other: Any, where: str = "") -> None:
    if isinstance(one, torch.Tensor):
        assert torch.equal(one, other), where
    elif isinstance(one, dict):
        assert one.keys() == other.keys(), where
        for key in one:
            assert_equal(one[key], other[key], f"{where}/{key}")
    elif isinstance(one, list):
        assert len(one) == len(other), where
        for place, pair in enumerate(zip(one, other, strict=True)):
            assert_equal(*pair, f"{where}/{place}")
    else:
        assert one == other, where


# ---------------------------------------------------------------- tasks


def test_pixels_that_nobody_knows_are_neither_trained_on_nor_measured(faces: list[Record]) -> None:
    for place, record in enumerate(faces):
        assert isinstance(record.mask, LabelImage)
        mask = record.mask.read()
        mask[:, 20:] = 255
        if place == 0:
            mask[:] = 255
        Image.fromarray(mask).save(record.mask.path)
    fit = fit_of(faces, PARSING, QUICK.model_copy(update={"epochs": 1}))
    epoch = fit.run_epoch()
    assert math.isfinite(epoch.loss)
    assert 0 <= epoch.test["f1"] <= 100
    score = PARSING.score()
    found = score.read(PARSING.example(faces[12], None), torch.zeros(3, SIDE, SIDE))
    assert int(found.sum()) == 48 * 20
    score.add(faces[12], torch.zeros_like(found))
    with pytest.raises(DataError, match="masks of the faces to measure on have no pixel of any class but"):
        score.metrics()


def test_maps_that_point_at_the_truth_have_no_error_and_shifted_ones_a_known_one(faces: list[Record]) -> None:
    along = (torch.arange(64, dtype=torch.float64) + 0.5) / 64
    for shift, error in (0.0, 0.0), (0.05, 0.05 / 0.8):
        score = ALIGNMENT.score()
        for record in faces[9:]:
            example = ALIGNMENT.example(record, None)
            x, y = ((along - place[:, None]) ** 2 for place in (example.target.double() + torch.tensor([shift, 0])).T)
            logits = torch.logit(0.9 * torch.exp(-(y[:, :, None] + x[:, None]) / 2e-3), eps=1e-300)
            score.add(record, score.read(example, logits))
        found = score.metrics()
        # The box takes up 0.8 of the crop, so a shift by s of the crop is s / 0.8 of the box.
        assert found["nme_box"] == pytest.approx(100 * error, abs=0.02)
        assert found["nme_diag/odd"] == pytest.approx(100 * error / math.sqrt(2), abs=0.02)
        assert found["auc_box_10"] == pytest.approx(100 * (1 - error / 0.1), abs=0.5)
        assert found["fr_box_10"] == 0.0
    assert found.keys() == {
        f"{name}{part}" for name in ("nme_diag", "nme_box", "auc_box_10", "fr_box_10") for part in ("", "/odd")
    }


def test_an_example_for_training_follows_its_generator_and_keeps_its_points_on_the_eyes(faces: list[Record]) -> None:
    seeded = [ALIGNMENT.example(faces[0], torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)]
    assert torch.equal(seeded[0].image_CSS, seeded[1].image_CSS)
    assert not torch.equal(seeded[0].target, seeded[2].target)
    for example in seeded:
        for x, y in (example.target * SIDE).long().tolist():
            assert float(example.image_CSS[0, y, x]) > 0.9
    fixed = ALIGNMENT.example(faces[0], None)
    # 8 and 10 of 28 pixels of the box, scaled by 0.8 about its centre.
    assert fixed.target[0].tolist() == pytest.approx([0.5 + 0.8 * (8 / 28 - 0.5), 0.5 + 0.8 * (10 / 28 - 0.5)])


def test_a_point_that_counts_from_the_centre_of_a_pixel_lies_in_the_middle_of_its_eye(faces: list[Record]) -> None:
    example = replace(ALIGNMENT, size=256).example(faces[0], None)
    bright = (example.image_CSS[0] > 0.5)[40:140, 20:128]  # the left eye and some of the head around it
    y, x = (bright.nonzero().double().mean(dim=0) + 0.5 + torch.tensor([40, 20])).tolist()
    # Half a pixel of the image would be 3.7 pixels here.
    assert (example.target[0] * 256).tolist() == pytest.approx([x, y], abs=0.6)


def test_every_second_view_is_mirrored_where_a_task_says_so_and_sides_are_renamed(faces: list[Record]) -> None:
    # Points 6 and 11 of AFLW-19 are the outer corners of the eyes, each the other's mirror image.
    points = np.repeat(faces[0].points_P2[:1], 19, axis=0)  # type: ignore[index]
    points[11] = faces[0].points_P2[1]  # type: ignore[index]
    record, still = replace(faces[0], points_P2=points), Jitter(0, 0, 0)
    task = replace(ALIGNMENT, num_maps=19, mirror=True, jitter=still)
    plain = task.example(record, None)
    seen = [task.example(record, torch.Generator().manual_seed(seed)) for seed in range(40)]
    mirrored = [example for example in seen if not torch.equal(example.target, plain.target)]
    assert 10 <= len(mirrored) <= 30
    for example in mirrored:
        torch.testing.assert_close(example.image_CSS, plain.image_CSS.flip(-1), atol=1e-5, rtol=0)
        torch.testing.assert_close(example.target[6], torch.stack([1 - plain.target[11, 0], plain.target[11, 1]]))
    names = ("background", "left eye", "right eye")
    pixels = replace(PARSING, class_names=names, mirror=True, jitter=still)
    flat = pixels.example(record, None).target
    other = [pixels.example(record, torch.Generator().manual_seed(seed)).target for seed in range(40)]
    changed = [target for target in other if not torch.equal(target, flat)]
    assert 10 <= len(changed) <= 30
    assert all(
        torch.equal(target, torch.tensor([0, 2, 1], dtype=torch.uint8)[flat.flip(-1).long()]) for target in changed
    )


def test_true_masks_score_all_and_a_missing_class_nothing(faces: list[Record]) -> None:
    for hidden, eye in (None, 100.0), (2, 0.0):
        score = PARSING.score()
        for record in faces[9:]:
            example = PARSING.example(record, None)
            fine = replace(example, crop=replace(example.crop, size=SIDE))
            logits = torch.nn.functional.one_hot(fine.target.long(), 3).permute(2, 0, 1).float()
            if hidden:
                logits[hidden] = -9
            score.add(record, score.read(fine, logits))
        found = score.metrics()
        assert found["f1/eye"] == pytest.approx(eye, abs=20)
        assert found["f1"] == pytest.approx((found["f1/eye"] + found["f1/head"]) / 2)
        assert found["f1/head"] > 85


def test_a_warped_and_aligned_view_is_scored_in_the_image(faces: list[Record]) -> None:
    points = 10 + 0.04 * np.array(TEMPLATE_52) - 0.5
    record = replace(faces[0], points_P2=points)
    task = replace(PARSING, align_by=(0, 1, 2, 3, 4), warp_factor=0.8, size=256)
    example = task.example(record, None)
    logits = torch.nn.functional.one_hot(example.target.long(), 3).permute(2, 0, 1).float()
    score = task.score()
    score.add(record, score.read(example, logits))
    assert score.metrics()["f1"] > 95
    with pytest.raises(DataError, match="no mask, or no points"):
        task.example(replace(record, points_P2=None), None)
    with pytest.raises(DataError, match="no box or no points"):
        ALIGNMENT.example(replace(record, box=None), None)


def test_benchmarks_have_the_published_recipes() -> None:
    found = {name: (benchmark.task.num_maps, benchmark.recipe.epochs) for name, benchmark in BENCHMARKS.items()}
    assert found == {
        "aflw19": (19, 150), "300w": (68, 250), "wflw": (98, 150), "faces68": (68, 250), "lapa": (11, 300),
        "celebamask-hq": (19, 300),
    }  # fmt: skip
    assert BENCHMARKS["lapa"].recipe.head_lr == 1e-3
    assert BENCHMARKS["wflw"].recipe.head_lr == 1e-2
    assert BENCHMARKS["300w"].recipe.rate_factor(199) == 1.0
    assert BENCHMARKS["300w"].recipe.rate_factor(200) == 0.1


def test_units_of_the_benchmarks_by_hand() -> None:
    points = torch.zeros(1, 98, 2).double()
    points[0, 72], points[0, 97] = torch.tensor([3.0, 4.0]), torch.tensor([0.0, 2.0])
    boxes = torch.tensor([[0.0, 0.0, 3.0, 4.0]]).double()
    wflw, w300, aflw = (BENCHMARKS[name].task for name in ("wflw", "300w", "aflw19"))
    assert isinstance(wflw, AlignmentTask)
    assert isinstance(w300, AlignmentTask)
    assert isinstance(aflw, AlignmentTask)
    assert {name: float(unit(points, boxes)) for name, unit in wflw.units.items()} == {
        "inter_ocular": 5.0, "inter_pupil": 2.0,
    }  # fmt: skip
    points = torch.zeros(1, 68, 2).double()
    points[0, 42:48, 0], points[0, 45, 0] = 6.0, 12.0
    assert {name: float(unit(points, boxes)) for name, unit in w300.units.items()} == {
        "inter_ocular": 12.0, "inter_pupil": 7.0,
    }  # fmt: skip
    assert float(aflw.units["diag"](points, boxes)) == 5.0
    assert float(aflw.units["box"](points, boxes)) == pytest.approx(math.sqrt(12))


# ---------------------------------------------------------------- fits


def test_a_fit_learns_where_eyes_are(faces: list[Record]) -> None:
    recipe = QUICK.model_copy(update={"epochs": 22, "average_decay": 0.8, "pyramid_lr": 1e-2, "head_lr": 1e-2})
    fit, told = fit_of(faces, recipe=recipe), []
    before = fit.measure(fit.splits.test)["nme_box"]
    result = fit.run(told.append)
    assert [epoch.epoch for epoch in told] == list(range(22))
    assert told == fit.history
    assert told[-1].loss < 0.3 * told[0].loss
    assert result.metrics["nme_box"] < 0.4 * before
    assert (result.selection, result.epoch) == (Selection.LAST, 21)
    assert result.logged["last/nme_box"] == told[-1].test["nme_box"]


def test_a_fit_learns_classes(faces: list[Record]) -> None:
    fit = fit_of(faces, task=PARSING, recipe=QUICK.model_copy(update={"epochs": 8, "average_decay": 0.8}))
    before = fit.measure(fit.splits.test)["f1/head"]
    after = fit.run(lambda epoch: None).metrics["f1/head"]
    assert after > 70
    assert after > before


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("task", [ALIGNMENT, PARSING], ids=["alignment", "parsing"])
def test_an_epoch_after_a_restart_is_the_one_that_would_have_followed(
    faces: list[Record], tmp_path: Path, task: Any, frozen: bool
) -> None:
    recipe = QUICK.model_copy(update={"frozen": frozen, "selection": Selection.BEST_ON_VALIDATION, "fraction": 0.9})
    whole = fit_of(faces, task, recipe)
    whole.run_epoch()
    torch.save(whole.state_dict(), tmp_path / "state.pt")
    torch.rand(5)  # other use of torch's own generator changes nothing
    expected = whole.run_epoch()
    resumed = fit_of(faces, task, recipe)
    resumed.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert resumed.run_epoch() == expected
    assert_equal(whole.state_dict(), resumed.state_dict())
    assert resumed.result() == whole.result()
    other = fit_of(faces, task, recipe.model_copy(update={"seed": 5}))
    with pytest.raises(ValueError, match="another recipe"):
        other.load_state_dict(whole.state_dict())


class Exactly:
    """A task whose images are float64, so that what ranks do differently is not hidden by rounding."""

    def __init__(self, task: Any) -> None:
        self.task = task

    def __getattr__(self, name: str) -> Any:
        return getattr(self.task, name)

    def example(self, record: Record, generator: torch.Generator | None) -> Example:
        found: Example = self.task.example(record, generator)
        target = found.target.double() if found.target.is_floating_point() else found.target
        return replace(found, image_CSS=found.image_CSS.double(), target=target)


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("task", [ALIGNMENT, PARSING], ids=["alignment", "parsing"])
def test_a_team_takes_the_steps_of_one_rank_and_finds_its_metrics(faces: list[Record], task: Any, frozen: bool) -> None:
    recipe = QUICK.model_copy(update={"slice": 4, "batch": 8, "epochs": 2, "frozen": frozen})

    def fitted(team: Team) -> tuple[Fit, Fitted]:
        network = net(task.num_maps, frozen=frozen).double()
        fit = Fit(network, Exactly(task), split(faces, recipe), recipe, CPU, team)
        return fit, fit.run(lambda epoch: None)

    alone, expected = fitted(ALONE)
    for size in 2, 3:
        for fit, found in together(size, fitted):
            assert found.note == expected.note
            assert found.metrics == pytest.approx(expected.metrics, rel=1e-6)
            losses = [epoch.loss for epoch in fit.history]
            assert losses == pytest.approx([epoch.loss for epoch in alone.history], rel=1e-9)
            for (name, value), other in zip(fit.average.named_parameters(), alone.average.parameters(), strict=True):
                torch.testing.assert_close(value, other, rtol=1e-5, atol=1e-8, msg=name)


def test_ranks_stop_together_and_none_is_without_a_face(faces: list[Record]) -> None:
    def spoilt(team: Team) -> str:
        fit = Fit(net(), ALIGNMENT, split(faces, QUICK), QUICK, CPU, team)
        if team.rank == 1:
            with torch.no_grad():
                fit.network.head.classify.bias.fill_(torch.nan)
        with pytest.raises(Diverged) as found:
            fit.run_epoch()
        return str(found.value)

    assert len(set(together(2, spoilt))) == 1
    with pytest.raises(ValueError, match="3 ranks cannot share a slice of 2 faces"):
        together(3, spoilt)


def test_a_frozen_encoder_stays_as_it_was_and_a_tuned_one_moves(faces: list[Record]) -> None:
    before = net().encoder.state_dict()
    for frozen in True, False:
        fit = fit_of(faces, recipe=QUICK.model_copy(update={"frozen": frozen, "epochs": 1}))
        fit.run(lambda epoch: None)
        for trained in fit.network, fit.average:
            same = {name: torch.equal(value, before[name]) for name, value in trained.encoder.state_dict().items()}
            assert same["blocks.0.mlp.fc1.weight"] == frozen
            assert same["pos_embed"]
            assert all(same.values()) == frozen
        assert not torch.equal(fit.network.head.classify.weight, net().head.classify.weight)


def test_the_average_is_that_of_the_weights_of_every_step(faces: list[Record]) -> None:
    class Watched(Fit):
        def _move_average(self) -> None:
            super()._move_average()
            seen.append(self.network.head.classify.bias.detach().clone())

    seen: list[torch.Tensor] = []
    fit = Watched(net(), ALIGNMENT, split(faces, QUICK), QUICK.model_copy(update={"average_decay": 0.75}), CPU)
    expected = fit.network.head.classify.bias.detach().clone()
    fit.run_epoch()
    assert len(seen) == 3  # nine faces in batches of four, the last one filled up
    for value in seen:
        expected = 0.75 * expected + 0.25 * value
    torch.testing.assert_close(fit.average.head.classify.bias, expected)
    moved = fit.network.head.merge.norm.running_mean
    assert not torch.equal(fit.average.head.merge.norm.running_mean, moved)
    assert moved.any()


def test_an_epoch_shows_every_face_as_often_and_another_one_in_another_order() -> None:
    order = epoch_order(3, 9, seed=1, epoch=0)
    assert sorted(order) == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert order == epoch_order(3, 9, seed=1, epoch=0)
    assert len({tuple(epoch_order(20, 20, seed, epoch)) for seed in (1, 2) for epoch in (0, 1)}) == 4


def test_rates_are_those_of_the_parts_and_fall_at_the_decay_epoch(faces: list[Record]) -> None:
    rates = {"encoder_lr": 1e-4, "pyramid_lr": 2e-3, "head_lr": 3e-3}
    fit = fit_of(faces, recipe=QUICK.model_copy(update={**rates, "decay_epoch": 1}))
    fit.run_epoch()
    assert [group["lr"] for group in fit.optimizer.param_groups] == [2e-3, 3e-3, 1e-4]
    fit.run_epoch()
    assert [group["lr"] for group in fit.optimizer.param_groups] == pytest.approx([2e-4, 3e-4, 1e-5])
    assert sum(len(group["params"]) for group in fit.optimizer.param_groups) == sum(
        weight.requires_grad for weight in fit.network.parameters()
    )


def history() -> list[Epoch]:
    numbers = [(3.0, 2.0), (1.0, 5.0), (2.0, 1.0), (4.0, 1.0)]
    return [Epoch(i, 0.0, {"nme_box": test}, {"nme_box": held}) for i, (test, held) in enumerate(numbers)]


@pytest.mark.parametrize(
    ("selection", "epoch", "value", "words"),
    [
        (Selection.LAST, 3, 4.0, "epoch 4, the last one, fixed before the fit"),
        (Selection.BEST_ON_VALIDATION, 2, 2.0, "epoch 3 of 4, the best by nme_box on faces set aside for validation"),
        (Selection.BEST_ON_TEST, 1, 1.0, "epoch 2 of 4, the best by nme_box on the test split itself"),
    ],
)
def test_the_result_says_how_its_epoch_was_chosen(
    faces: list[Record], selection: Selection, epoch: int, value: float, words: str
) -> None:
    fit = fit_of(faces, recipe=QUICK.model_copy(update={"selection": selection, "epochs": 4}))
    with pytest.raises(ValueError, match="0 of 4 epochs are done"):
        fit.result()
    fit.history = history()
    found = fit.result()
    assert (found.epoch, found.logged) == (epoch, {f"{selection.value}/nme_box": value})
    assert found.note.startswith(words)


def test_the_best_f1_is_the_highest(faces: list[Record]) -> None:
    recipe = QUICK.model_copy(update={"selection": Selection.BEST_ON_TEST, "epochs": 3})
    fit = fit_of(faces, PARSING, recipe)
    fit.history = [Epoch(i, 0.0, {"f1": value}, {}) for i, value in enumerate((50.0, 70.0, 70.0))]
    assert fit.result().epoch == 1


def test_a_fit_that_selects_by_validation_needs_faces_for_it(faces: list[Record]) -> None:
    recipe = QUICK.model_copy(update={"selection": Selection.BEST_ON_VALIDATION})
    with pytest.raises(ValueError, match="no faces to validate on"):
        Fit(net(), ALIGNMENT, split(faces, QUICK), recipe, CPU)
    assert fit_of(faces, recipe=recipe).run_epoch().validation["nme_box"] > 0
    with pytest.raises(ValidationError, match="a divisor of batch = 40"):
        Recipe(slice=7)


def test_a_fit_that_diverges_stops_before_it_spoils_its_weights(faces: list[Record]) -> None:
    fit = fit_of(faces)
    with torch.no_grad():
        fit.network.head.classify.bias.fill_(torch.nan)
    before = fit.network.pyramid.doubled.weight.detach().clone()
    with pytest.raises(Diverged, match="step 0 of epoch 0"):
        fit.run_epoch()
    assert torch.equal(fit.network.pyramid.doubled.weight, before)
