"""The arithmetic of an image, counted without doing it, against a step that does it."""

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from tests.bench.step import flop_of_pass, prepared
from tests.unit.trainer.test_launches import SMALL
from trainer.contract import RunSpec
from trainer.elastic.distributed import joined_world
from trainer.method.flop import flop_an_image
from trainer.teachers import build

IMAGES = 4


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"teacher": {"source": "random", "input_size": 48, "resize": "bilinear"}, "pixels": {"weight": 0.5}},
        {"teacher": {"source": "random", "arch": "face-api", "taps": [0, 2], "input_size": 64}},
    ],
    ids=["plain", "a teacher of another size, and pixels", "face-api"],
)
def test_it_is_what_a_step_computes(changes: dict[str, object]) -> None:
    with joined_world() as world, sdpa_kernel(SDPBackend.MATH):  # others compute the scores twice
        bench = prepared(world, IMAGES, **SMALL | changes)
        assert flop_an_image(bench.run, bench.parts.teacher) == flop_of_pass(bench) / IMAGES


def test_without_teacher_or_contrastive_branch_there_is_less_to_do() -> None:
    spec = {"data": {"uri": "/none"}, "batch": {"slice": 4, "contrastive_group": 4, "global_batch": 4}, **SMALL}
    full, no_keys = (
        RunSpec.model_validate({**spec, "teacher": "none", "contrastive": {**SMALL["contrastive"], "weight": weight}})
        for weight in (1.0, 0.0)
    )
    with_teacher = RunSpec.model_validate({**spec, "teacher": "random"})
    taught = flop_an_image(with_teacher, build(with_teacher, torch.device("cpu")))
    assert flop_an_image(no_keys, None) < flop_an_image(full, None) < taught


def test_the_published_recipe_takes_what_the_table_of_performance_says() -> None:
    run = RunSpec.model_validate({"data": {"uri": "/none"}, "teacher": "random"})
    teacher = build(run, torch.device("cpu"))
    before = {name: weight.clone() for name, weight in list(teacher.named_parameters())[:3]} if teacher else {}
    # docs/performance.md counts the scores that attention computes twice: 0.6 % more.
    assert flop_an_image(run, teacher) == pytest.approx(1.747e11, rel=0.01)
    assert teacher
    now = dict(teacher.named_parameters())
    assert all(torch.equal(now[name], weight) for name, weight in before.items())


def test_a_teacher_of_timms_is_counted_too() -> None:
    batch = {"slice": 4, "contrastive_group": 4, "global_batch": 4}
    arch = {"source": "random", "arch": "vit_tiny_patch16_224", "taps": [2, 11], "input_size": 64}
    alone, taught = (
        RunSpec.model_validate({"data": {"uri": "/none"}, "batch": batch, **SMALL, "teacher": teacher})
        for teacher in ("none", arch)
    )
    assert flop_an_image(taught, build(taught, torch.device("cpu"))) > flop_an_image(alone, None)
