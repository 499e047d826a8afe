"""How masks are asked for, what is refused, and what makes two of them the same."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.unit.trainer.contract.test_ablation import problems, request
from trainer.contract import Mask, RunSpec
from trainer.resolve import check_and_resolve

BASE: dict[str, Any] = {"data": {"uri": "/data/faces"}, "teacher": "none"}
PARTS = {"kind": "parts", "landmarks": "/data/landmarks.json", "first": ["eyes"]}


def spec(**asked: Any) -> RunSpec:
    return RunSpec.model_validate({**BASE, **asked})


def landmarks(file: Path, images: Path, count: int | None = None) -> str:
    """A landmark file of drawn faces, or of the first of them."""
    points = [[10 + 0.4 * number, 12 + 0.2 * number] for number in range(68)]
    names = sorted(path.name for path in images.iterdir())[:count]
    file.write_text(json.dumps({name: {"points68": points, "landmarks_ok": True} for name in names}))
    return str(file)


def test_a_ratio_is_kept_in_one_place_wherever_it_was_asked_for() -> None:
    short, long = spec(mask_ratio=0.5), spec(mask={"ratio": 0.5})
    assert long == short
    assert long.digest == short.digest
    theirs = spec(contrastive={"target_mask": {"ratio": 0.25}})
    assert theirs == spec(contrastive={"target_mask_ratio": 0.25})
    both = spec(mask={"kind": "grid", "ratio": 0.5}, contrastive={"target_mask": {"kind": "block", "ratio": 0.25}})
    assert (both.mask_ratio, both.contrastive.target_mask_ratio) == (0.5, 0.25)
    assert (both.mask, both.target_mask) == (Mask(kind="grid"), Mask(kind="block"))
    assert RunSpec.model_validate_json(both.model_dump_json()) == both
    assert spec(mask=Mask(kind="grid", ratio=0.5), mask_ratio=0.5) == spec(mask="grid", mask_ratio=0.5)


def test_a_random_mask_is_the_run_of_before_and_every_other_is_a_run_of_its_own() -> None:
    masks: list[Any] = ["random", {}, {"kind": "random"}, "block", "grid", PARTS, {**PARTS, "keep": True}]
    digests = [spec(mask=mask).digest for mask in masks]
    assert digests[:3] == [spec().digest] * 3
    assert len(set(digests)) == 5
    assert spec(contrastive={"target_mask": "block"}).digest not in digests
    assert spec(mask={**PARTS, "first": ["nose", "eyes"]}) == spec(mask={**PARTS, "first": ["eyes", "nose", "eyes"]})


def test_a_target_mask_equal_to_the_online_one_is_not_asked_for() -> None:
    for mask in "random", "block", PARTS:
        same = spec(mask=mask, contrastive={"target_mask": mask})
        assert same.contrastive.target_mask is None
        assert same == spec(mask=mask)
    assert spec(contrastive={"target_mask": {"kind": "random"}}) == spec()
    assert spec(mask="block", contrastive={"target_mask": "random"}).target_mask == Mask()


def test_where_the_landmarks_of_a_mask_are_makes_no_other_run() -> None:
    for make in (lambda mask: {"mask": mask}), (lambda mask: {"contrastive": {"target_mask": mask}}):
        known = {**PARTS, "sha256": "a" * 64}
        here, there = (spec(**make({**known, "landmarks": at})) for at in ("/here.json", "s3://bucket/there.json"))
        assert here.digest == there.digest
        assert spec(**make({**known, "sha256": "b" * 64})).digest != here.digest
        assert spec(**make({**PARTS, "landmarks": "/here.json"})).digest != here.digest


def test_masks_are_levels_of_a_factor(tiny_faces: Path, tmp_path: Path) -> None:
    file = landmarks(tmp_path / "landmarks.json", tiny_faces)
    eyes = {"kind": "parts", "landmarks": file, "first": ["mouth", "eyes"]}
    levels = ["random", "block", {"kind": "grid", "ratio": 0.5}, eyes, {**eyes, "keep": True}]
    arms = check_and_resolve(request(tiny_faces, factors={"mask": levels})).arms
    assert [arm.name for arm in arms] == [
        "mask=random", "mask=block", "mask=grid,ratio:0.5", "mask=parts,first:mouth+eyes",
        "mask=parts,first:mouth+eyes,keep:true",
    ]  # fmt: skip
    assert [arm.runs[0].mask_ratio for arm in arms] == [0.75, 0.75, 0.5, 0.75, 0.75]
    assert [arm.runs[0].mask.sha256 is None for arm in arms] == [True, True, True, False, False]
    crossed = {"mask": ["random", "block"], "mask_ratio": [0.75, 0.5], "contrastive.target_mask": ["grid", "random"]}
    arms = check_and_resolve(request(tiny_faces, factors=crossed)).arms
    assert len({arm.runs[0].digest for arm in arms}) == len(arms) == 8
    assert arms[0].name == "mask=random mask_ratio=0.75 target_mask=grid"


def test_a_field_of_a_mask_is_a_factor(tiny_faces: Path) -> None:
    factors = {"mask.kind": ["block", "grid"], "mask.ratio": [0.75, 0.5]}
    arms = check_and_resolve(request(tiny_faces, factors=factors)).arms
    assert [arm.name for arm in arms][:2] == ["mask.kind=block mask.ratio=0.75", "mask.kind=block mask.ratio=0.5"]
    assert [(arm.runs[0].mask.kind, arm.runs[0].mask_ratio) for arm in arms][3] == ("grid", 0.5)
    short = check_and_resolve(request(tiny_faces, base={"mask": "block"}, factors={"mask.ratio": [0.5, 0.75]})).arms
    assert {arm.runs[0].mask.kind for arm in short} == {"block"}


def test_arms_whose_target_has_the_mask_it_would_have_anyway_are_the_same_run(tiny_faces: Path) -> None:
    factors = {"contrastive.target_mask": ["random", None]}
    assert "the same run" in problems(request(tiny_faces, factors=factors))["factors"]


@pytest.mark.parametrize(
    ("asked", "field", "words"),
    [
        ({"mask": "blocks"}, "mask", "'random', 'block', 'grid', 'parts' or 'code'"),
        ({"mask": {"kind": "Block"}}, "mask.kind", "'random', 'block', 'grid', 'parts' or 'code'"),
        ({"mask": {"kind": "block", "first": ["eyes"]}}, "mask.first", "first with kind parts only"),
        ({"mask": {"keep": True}}, "mask.keep", "keep with kind parts only"),
        ({"mask": {"kind": "grid", "landmarks": "/l.json"}}, "mask.landmarks", "with kind parts or code only"),
        ({"mask": {"kind": "parts", "first": ["eyes"]}}, "mask.landmarks", "a landmark file for a mask"),
        ({"mask": {"kind": "parts", "landmarks": "/l.json"}}, "mask.first", "one or more of eyes, brows, nose, mouth"),
        ({"mask": {**PARTS, "first": ["ears"]}}, "mask.first", "'eyes', 'brows', 'nose', 'mouth' or 'contour'"),
        ({"mask": {"ratio": 0.5}, "mask_ratio": 0.6}, "mask.ratio", "0.5 beside mask_ratio = 0.6; one of the two"),
        ({"mask": {"ratio": 1.5}}, "mask_ratio", "a ratio that keeps 1 to 63 patches"),
        ({"mask": {"ratio": "half"}}, "mask.ratio", "a valid number"),
        ({"mask": {"side": 3}}, "mask.side", "kind, ratio, landmarks"),
        ({"mask": {**PARTS, "landmarks": "l.json"}}, "mask.landmarks", "an absolute path or s3://bucket/key"),
        ({"mask": {**PARTS, "landmarks": "/no/l.json"}}, "mask.landmarks", "a file of annotations that can be used"),
        (
            {"contrastive": {"target_mask": {"kind": "block", "keep": True}}},
            "contrastive.target_mask.keep", "keep with kind parts only",
        ),
        (
            {"contrastive": {"target_mask": {"ratio": 0.5}, "target_mask_ratio": 0.6}},
            "contrastive.target_mask.ratio", "0.5 beside contrastive.target_mask_ratio = 0.6; one of the two",
        ),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused_in_words(tiny_faces: Path, asked: dict[str, Any], field: str, words: str) -> None:
    told = problems(request(tiny_faces, base=asked, factors={}))
    assert words in told[field]


def test_landmarks_of_other_images_or_other_contents_are_refused(tiny_faces: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / "nobody.png").touch()
    mask = {**PARTS, "landmarks": landmarks(tmp_path / "l.json", other)}
    told = problems(request(tiny_faces, base={"mask": mask}, factors={}))
    assert "names none of the images, but 'nobody.png'" in told["mask.landmarks"]
    mask = {**PARTS, "landmarks": landmarks(tmp_path / "l.json", tiny_faces, 3), "sha256": "0" * 64}
    told = problems(request(tiny_faces, base={"contrastive": {"target_mask": mask}}, factors={}))
    assert "the digest of" in told["contrastive.target_mask.sha256"]


def test_a_mask_equal_to_the_targets_but_for_a_digest_given_is_one_mask(tiny_faces: Path, tmp_path: Path) -> None:
    mask = {**PARTS, "landmarks": landmarks(tmp_path / "l.json", tiny_faces)}
    [arm] = check_and_resolve(request(tiny_faces, base={"mask": mask}, factors={})).arms
    given = {**mask, "sha256": arm.runs[0].mask.sha256}
    both = request(tiny_faces, base={"mask": mask, "contrastive": {"target_mask": given}}, factors={})
    assert check_and_resolve(both).arms[0].runs[0] == arm.runs[0]
