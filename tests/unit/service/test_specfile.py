"""What people write is what the service is sent, with paths that mean the same to both."""

from pathlib import Path
from typing import Any

import pytest

from service.specfile import UnreadableSpec, read, with_absolute_paths
from trainer.contract.ablation import expand, parse_experiment

HERE = Path("/specs")
EXAMPLES = Path(__file__).resolve().parents[3] / "examples"


def test_paths_start_at_the_folder_of_the_spec_wherever_they_stand() -> None:
    spec = {
        "base": {"data": {"uri": "lfw/faces"}, "teacher": "w.pt", "evaluation": {"images": "../all", "labels": "/l"}},
        "factors": {
            "teacher": ["none", "random", "w.pt", {"source": "v.pt", "taps": [1]}, "s3://weights/w.pt"],
            "data.uri": ["lfw/faces", "more"],
            "data": [{"uri": "lfw/faces", "subset_size": 5}],
            "decoder": ["512x8"],
            "mask": ["block", {"kind": "parts", "landmarks": "l.json"}, {"kind": "code", "code": "mask.py"}],
            "teacher.loss": [None, "loss.py", {"uri": "loss.py"}],
        },
        "baseline": {"teacher": "w.pt", "data.uri": "more", "decoder": "512x8"},
    }  # fmt: skip
    found = with_absolute_paths(spec, HERE)
    assert found["base"] == {
        "data": {"uri": "/specs/lfw/faces"},
        "teacher": "/specs/w.pt",
        "evaluation": {"images": "/all", "labels": "/l"},
    }
    assert found["factors"] == {
        "teacher": ["none", "random", "/specs/w.pt", {"source": "/specs/v.pt", "taps": [1]}, "s3://weights/w.pt"],
        "data.uri": ["/specs/lfw/faces", "/specs/more"],
        "data": [{"uri": "/specs/lfw/faces", "subset_size": 5}],
        "decoder": ["512x8"],
        "mask": ["block", {"kind": "parts", "landmarks": "/specs/l.json"}, {"kind": "code", "code": "/specs/mask.py"}],
        "teacher.loss": [None, "/specs/loss.py", {"uri": "/specs/loss.py"}],
    }
    assert found["baseline"] == {"teacher": "/specs/w.pt", "data.uri": "/specs/more", "decoder": "512x8"}


def test_a_baseline_may_name_a_level_by_its_label() -> None:
    spec = {"base": {}, "factors": {"teacher": ["none", {"source": "moco.pt"}]}, "baseline": {"teacher": "moco"}}
    assert with_absolute_paths(spec, HERE)["baseline"] == {"teacher": "moco"}


@pytest.mark.parametrize(
    "wrong", [{"base": [1]}, {"base": {"data": "x"}}, {"factors": {"teacher": "w.pt"}}, {"factors": 3, "baseline": 4}]
)
def test_what_is_out_of_place_is_left_for_the_service_to_judge(wrong: dict[str, Any]) -> None:
    assert with_absolute_paths(wrong, HERE) == wrong


@pytest.mark.parametrize(
    ("text", "told"),
    [(None, "does not exist"), ("name: [", "not YAML"), ("- a\n- b", "holds a list"), ("", "holds nothing")],
)
def test_an_unreadable_file_is_named_with_what_is_wrong(tmp_path: Path, text: str | None, told: str) -> None:
    file = tmp_path / "spec.yaml"
    if text is not None:
        file.write_text(text)
    with pytest.raises(UnreadableSpec, match=told) as caught:
        read(file)
    assert str(file) in str(caught.value)


def test_a_date_in_yaml_is_sent_as_it_was_written(tmp_path: Path) -> None:
    (tmp_path / "spec.yaml").write_text("name: 2026-11-24")
    assert read(tmp_path / "spec.yaml") == {"name": "2026-11-24"}


@pytest.mark.parametrize(
    "file", [*sorted(EXAMPLES.glob("*.yaml")), *sorted((EXAMPLES / "specs").iterdir())], ids=lambda file: file.stem
)
def test_every_example_is_a_spec_without_problems(file: Path) -> None:
    spec, problems = parse_experiment(read(file))
    assert spec is not None
    assert [*problems, *expand(spec)[1]] == []
