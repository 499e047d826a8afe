"""A request is expanded into arms and seeds, and refused whole with everything that is wrong with it."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from trainer.contract import MAX_PIXELS, RunSpec, SpecError
from trainer.contract.ablation import arm_name
from trainer.resolve import check_and_resolve


def request(images: Path, **changes: Any) -> dict[str, Any]:
    base = {"preset": "tiny", "data": {"uri": str(images)}, "teacher": "none"}
    base |= changes.pop("base", {})
    return {"name": "ask", "base": base, "factors": {"mask_ratio": [0.75, 0.5]}, **changes}


def problems(payload: dict[str, Any]) -> dict[str, str]:
    with pytest.raises(SpecError) as refused:
        check_and_resolve(payload)
    assert len({p.field for p in refused.value.problems}) == len(refused.value.problems)
    return {p.field: f"{p.asked}; {p.possible}" for p in refused.value.problems}


def test_factors_and_seeds_make_arms_times_runs(tiny_faces: Path) -> None:
    factors = {"teacher": ["none", "random"], "mask_ratio": [0.75, 0.5]}
    resolved = check_and_resolve(request(tiny_faces, factors=factors, seeds=[3, 5], baseline={"mask_ratio": 0.5}))
    assert [arm.name for arm in resolved.arms] == [
        "teacher=none mask_ratio=0.75", "teacher=none mask_ratio=0.5",
        "teacher=random mask_ratio=0.75", "teacher=random mask_ratio=0.5",
    ]  # fmt: skip
    assert [arm.is_baseline for arm in resolved.arms] == [False, True, False, False]
    assert len({run.digest for arm in resolved.arms for run in arm.runs.values()}) == 8
    assert [run.seed for run in resolved.arms[0].runs.values()] == [3, 5]


def test_many_mistakes_are_all_told_at_once(tiny_faces: Path) -> None:
    told = problems(
        request(
            tiny_faces,
            base={
                "data": {"uri": str(tiny_faces), "subset_size": 500},
                "teacher": "/nowhere/teacher.pt",
                "mask_ration": 0.7,
                "batch": {"slice": 16, "contrastive_group": 24},
            },
            factors={"mask_ratio": [0.75, 0.999], "decoder.depth": [1, 1]},
            placement={"max_nodes": 12},
        )
    )
    assert set(told) == {
        "mask_ration", "mask_ratio", "data.subset_size", "batch.contrastive_group", "teacher.source",
        "placement.max_nodes", "factors.decoder.depth",
    }  # fmt: skip
    assert "mask_ratio (did you mean it?)" in told["mask_ration"]
    assert "1 to 28 (48 images less 20 held out)" in told["data.subset_size"]
    assert "at most 4 workers" in told["placement.max_nodes"]


def test_a_teacher_file_with_another_digest_is_refused(tiny_faces: Path, tmp_path: Path) -> None:
    weights = tmp_path / "teacher.safetensors"
    save_file({"weight": np.zeros(1)}, weights)
    told = problems(request(tiny_faces, base={"teacher": {"source": str(weights), "sha256": "0" * 64}}))
    assert list(told) == ["teacher.sha256"]


def test_a_level_may_be_a_whole_teacher_and_its_digest_enters_the_run(tiny_faces: Path, tmp_path: Path) -> None:
    weights = tmp_path / "faces.safetensors"
    factors = {"teacher": ["none", {"source": str(weights), "arch": "as-encoder"}]}
    digests = []
    for content in 1, 2:
        save_file({"weight": np.full(1, content)}, weights)
        arm = check_and_resolve(request(tiny_faces, factors=factors)).arms[1]
        assert arm.levels == {"teacher": "faces"}
        digests.append(arm.runs[0].digest)
    assert digests[0] != digests[1], "other weights under the same name are another run"


def test_arms_that_differ_in_words_only_are_duplicates(tiny_faces: Path) -> None:
    factors = {"encoder": ["vit-tiny8", {"width": 96, "depth": 4, "heads": 3, "patch": 8}]}
    assert "the same run" in problems(request(tiny_faces, factors=factors))["factors"]


def test_every_seed_of_an_arm_may_draw_its_own_subset(tiny_faces: Path) -> None:
    factors = {"data.subset_seed": ["run", 5]}
    one, other = check_and_resolve(request(tiny_faces, factors=factors, seeds=3)).arms
    assert (one.name, other.name) == ("subset_seed=run", "subset_seed=5")
    assert [run.subset_seed for run in one.runs.values()] == [0, 1, 2]
    assert [run.subset_seed for run in other.runs.values()] == [5, 5, 5]


def test_arms_that_are_the_same_run_at_one_seed_are_duplicates(tiny_faces: Path) -> None:
    factors = {"data.subset_seed": ["run", 2]}
    told = problems(request(tiny_faces, factors=factors, seeds=3))["factors"]
    assert told == "'subset_seed=run' and 'subset_seed=2', which are the same run with seed 2; arms that differ"


@pytest.mark.parametrize("asked", ["seed", -1, None])
def test_what_is_no_seed_of_a_subset_is_refused_with_what_is(asked: Any, tiny_faces: Path) -> None:
    told = problems(request(tiny_faces, base={"data": {"uri": str(tiny_faces), "subset_seed": asked}}))
    assert "'run'" in told["data.subset_seed"]


def test_seeds_are_not_an_axis(tiny_faces: Path) -> None:
    assert list(problems(request(tiny_faces, factors={"seed": [1, 2]}))) == ["factors.seed"]


def test_a_bound_on_pixels_is_in_the_digest_where_it_is_asked_for() -> None:
    bare, usual, small = (
        RunSpec.model_validate({"data": {"uri": "/data", **asked}, "teacher": "none"})
        for asked in ({}, {"max_pixels": MAX_PIXELS}, {"max_pixels": 10_000})
    )
    assert bare.digest == usual.digest != small.digest
    assert RunSpec.model_validate_json(small.model_dump_json()) == small


def test_what_a_preset_says_is_kept_where_the_request_is_silent(tiny_faces: Path) -> None:
    run = check_and_resolve(request(tiny_faces, base={"schedule": {"length": 5, "warmup": 1}})).arms[0].runs[0]
    assert (run.schedule.unit, run.schedule.length) == ("steps", 5)
    assert RunSpec.model_validate_json(run.model_dump_json()).digest == run.digest


@pytest.mark.parametrize(
    ("factor", "shown"),
    [
        ("contrastive.weight", "contrastive.weight"), ("pixels.weight", "pixels.weight"),
        ("encoder.depth", "encoder.depth"), ("teacher.seed", "teacher.seed"), ("ema.per", "per"),
        ("data.subset_size", "subset_size"), ("mask_ratio", "mask_ratio"), ("optimizer.base_lr", "base_lr"),
        ("evaluation.mask_ratio", "evaluation.mask_ratio"), ("teacher", "teacher"),
        ("evaluation.alignment.frozen", "alignment.frozen"),
    ],
)  # fmt: skip
def test_an_arm_is_called_by_as_much_of_its_factor_as_only_it_has(factor: str, shown: str) -> None:
    assert arm_name({factor: "1"}) == f"{shown}=1"


def test_one_ranking_holds_for_all_arms_and_every_run_will_have_its_metric(tiny_faces: Path) -> None:
    def ask(rank_by: str, **evaluation: Any) -> dict[str, Any]:
        return request(tiny_faces, base={"evaluation": {"held_out": 20, "rank_by": rank_by, **evaluation}})

    for name in "sanity/psnr", "sanity/retrieval_top1":
        assert check_and_resolve(ask(name)).spec.rank_by == name
    for name in "probe/landmark_nme", "sanity/neighbour_nme", "alignment/nme_diag", "retrieval_top1", "loss/total":
        told = problems(ask(name))
        assert told == {"evaluation.rank_by": f"{name}, which no such run has; sanity/psnr, sanity/retrieval_top1"}
    factor = request(tiny_faces, factors={"evaluation.rank_by": ["sanity/psnr", "sanity/retrieval_top1"]})
    assert "one metric for all arms" in problems(factor)["factors.evaluation.rank_by"]
    whole = [{"held_out": 20, "mask_ratio": ratio, "rank_by": "sanity/psnr"} for ratio in (0.5, 0.75)]
    told = problems(request(tiny_faces, factors={"evaluation": whole}))
    assert told["evaluation.rank_by"].startswith("sanity/psnr in 'evaluation=")
    same = request(tiny_faces, base={"evaluation": {"rank_by": "sanity/psnr"}}, factors={"evaluation": whole})
    assert check_and_resolve(same).spec.rank_by == "sanity/psnr"


@pytest.mark.parametrize(
    ("part", "asked", "field", "possible"),
    [
        ("evaluation", {"every": "often"}, "evaluation.every", "a number of steps, such as 500, or {images: 1000000}"),
        ("evaluation", {"every": {}}, "evaluation.every", "steps or images, one of the two (neither given)"),
        ("evaluation", {"every": {"images": 0}}, "evaluation.every.images", "greater than or equal to 1"),
        ("evaluation", {"every": {"step": 5}}, "evaluation.every.step", "steps (did you mean it?)"),
        ("mask", ["block"], "mask", "a word, or a mapping of its fields"),
    ],
)
def test_what_is_possible_is_told_in_the_words_of_a_spec_and_once(
    tiny_faces: Path, part: str, asked: Any, field: str, possible: str
) -> None:
    told = problems(request(tiny_faces, base={part: asked}))
    assert list(told) == [field]
    assert possible in told[field]


def test_a_forecast_needs_sizes(tiny_faces: Path) -> None:
    assert "a forecast where data.subset_size is a factor" in problems(request(tiny_faces, forecast=1000))["forecast"]
    check_and_resolve(
        request(
            tiny_faces,
            forecast=1000,
            factors={"data.subset_size": [5, 10, 20, 40]},
            base={"evaluation": {"held_out": 5}},
        )
    )
