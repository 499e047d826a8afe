"""What is the same run, pretraining or measurement as before, for as long as there is a schema 1."""

import json
from typing import Any

import pytest
from pydantic import Field, create_model

from tests.contract.identities import BASE, FILE, LAPA, PROBE, SPECS, TAUGHT, WFLW, identity
from trainer.contract import Ema, Evaluation, RunSpec, TeacherSpec
from trainer.contract.stage import Alignment

KNOWN: dict[str, dict[str, Any]] = json.loads(FILE.read_text())
# What asks the same otherwise: by other addresses, or as often as one likes.
SAME = {
    "data moved": ({**BASE, "data": {"uri": "s3://faces/all", "format": "shards", "sha256": "a" * 64}}, BASE),
    "data with an index": ({**BASE, "data": {**BASE["data"], "index": "/data/index"}}, BASE),
    "teacher moved": ({**BASE, "teacher": {"source": "s3://teachers/moco", "sha256": "b" * 64}}, TAUGHT),
    "annotations moved": (
        {**BASE, "evaluation": {**PROBE, "landmarks": "s3://faces/landmarks.json"}},
        {**BASE, "evaluation": PROBE},
    ),
    "a default said": ({**BASE, "ema": {"momentum": 0.99}, "encoder": "vit-b16", "decoder": "512x8x16"}, BASE),
    "cadence": (SPECS["cadence"], BASE),
    "ranking": ({**BASE, "evaluation": {**PROBE, "rank_by": "sanity/psnr"}}, {**BASE, "evaluation": PROBE}),
}


def spec(asked: dict[str, Any]) -> RunSpec:
    return RunSpec.model_validate(asked)


def test_digests_are_those_of_every_release() -> None:
    assert {name: identity(spec(asked)) for name, asked in SPECS.items()} == KNOWN


def test_a_field_that_a_release_adds_changes_no_digest_at_its_default() -> None:
    """A later contract: fields with defaults in every kind of part there is."""
    later_stage = create_model("Alignment", __base__=Alignment, augment=(str, "published"))
    later_evaluation = create_model(
        "Evaluation", __base__=Evaluation, every=(int | None, None), alignment=(later_stage | None, None)
    )
    later_ema = create_model("Ema", __base__=Ema, start=(float, 0.0))
    later_teacher = create_model("TeacherSpec", __base__=TeacherSpec, layers=(list[int], Field(default_factory=list)))
    later = create_model(
        "RunSpec", __base__=RunSpec, hiding=(str | None, None), ema=(later_ema, later_ema()),
        evaluation=(later_evaluation, later_evaluation()), teacher=(later_teacher, later_teacher()),
    )  # fmt: skip
    for name, asked in SPECS.items():
        taught = asked if isinstance(asked["teacher"], dict) else {**asked, "teacher": {"source": asked["teacher"]}}
        assert identity(later.model_validate(taught)) == KNOWN[name], name
        assert identity(later.model_validate({**taught, "hiding": "block"})) != KNOWN[name]


def test_the_decoder_is_in_the_pretraining_where_it_is_not_the_cpus() -> None:
    by_cpu, by_gpu = (spec({**BASE, "data": {**BASE["data"], "decoder": decoder}}) for decoder in ("cpu", "nvjpeg"))
    assert identity(by_cpu) == identity(spec(BASE))
    assert by_gpu.pretraining != by_cpu.pretraining
    assert by_gpu.digest != by_cpu.digest


@pytest.mark.parametrize("seed", [0, 3])
def test_a_run_that_draws_by_its_own_seed_is_the_one_that_names_the_number(seed: int) -> None:
    def drawn(subset_seed: int | str) -> RunSpec:
        return spec({**BASE, "seed": seed, "data": {**BASE["data"], "subset_size": 1000, "subset_seed": subset_seed}})

    assert identity(drawn("run")) == identity(drawn(seed))
    assert drawn("run").subset_seed == drawn(seed).subset_seed == seed
    assert identity(drawn("run")) != identity(drawn(7))
    assert drawn("run").data.subset_seed == "run", "what was asked for is kept"


@pytest.mark.parametrize("name", SAME)
def test_where_files_are_and_how_often_is_logged_makes_no_other_run(name: str) -> None:
    one, other = (identity(spec(asked)) for asked in SAME[name])
    assert one == other


@pytest.mark.parametrize(
    "evaluation", [{"mask_ratio": 0.5}, PROBE, {**PROBE, "sha256": "f" * 64}, {"alignment": WFLW}, {"parsing": LAPA}]
)
def test_what_is_measured_is_in_the_run_and_not_in_its_pretraining(evaluation: dict[str, Any]) -> None:
    run, bare = spec({**BASE, "evaluation": evaluation}), spec(BASE)
    assert run.pretraining == bare.pretraining
    assert run.digest != bare.digest


def test_a_measurement_that_is_added_leaves_the_others_as_they_were() -> None:
    one = spec({**BASE, "evaluation": {**PROBE, "alignment": WFLW}}).measurements
    more = spec({**BASE, "evaluation": {**PROBE, "alignment": WFLW, "parsing": LAPA}}).measurements
    assert more.items() - one.items() == {("parsing", more["parsing"])}


def test_specs_that_differ_in_what_decides_the_weights_are_different_pretrainings() -> None:
    of_evaluation = {"cadence", "sanity", "probe", "probe not looked at", "labels", "alignment", "parsing"}
    # The default is the preset of that name.
    weights = [run["pretraining"] for name, run in KNOWN.items() if name not in of_evaluation | {"everything"}]
    assert len(set(weights)) == len(weights)
    assert {KNOWN[name]["pretraining"] for name in of_evaluation} == {KNOWN["preset vit-b16"]["pretraining"]}
    assert KNOWN["everything"]["pretraining"] == KNOWN["taught"]["pretraining"]
