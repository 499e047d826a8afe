"""The demo's request is one that the service accepts, with scikit-image's faces and with anybody's folder."""

import csv
from pathlib import Path

import pytest

from service.cli.demo import _spec
from service.client import McfError
from service.text import run_in_mlflow, run_of_page
from tests.conftest import draw_faces
from trainer.resolve import check_and_resolve


def test_it_trains_on_the_faces_and_ranks_by_faces_held_out(tmp_path: Path) -> None:
    pytest.importorskip("skimage")
    spec = _spec(tmp_path, None)
    assert len(list((tmp_path / "data/lfw/faces").iterdir())) == 100
    assert len(list((tmp_path / "data/lfw/all").iterdir())) == 200
    rows = list(csv.DictReader((tmp_path / "data/lfw/labels.csv").open()))
    assert {row["file"] for row in rows if row["label"] == "face"} == {
        path.name for path in (tmp_path / "data/lfw/faces").iterdir()
    }
    resolved = check_and_resolve(spec)
    run = resolved.arms[0].runs[0]
    assert (resolved.num_images[run.digest], run.evaluation.held_out) == (60, 40)
    assert resolved.spec.rank_by == "sanity/retrieval_top1"
    assert len(resolved.arms) >= 2
    # One test of an arm needs three.
    assert len(resolved.spec.seed_list) >= 3


def test_it_takes_any_folder_of_images(tmp_path: Path, tiny_faces: Path) -> None:
    resolved = check_and_resolve(_spec(tmp_path, tiny_faces))
    run = resolved.arms[0].runs[0]
    assert run.data.uri == str(tiny_faces)
    assert (run.evaluation.labels, run.evaluation.rank_by) == (None, "sanity/retrieval_top1")
    with pytest.raises(McfError, match="no such folder"):
        _spec(tmp_path, tmp_path / "missing")


def test_a_small_folder_keeps_images_to_train_on(tmp_path: Path) -> None:
    (few := tmp_path / "few").mkdir()
    draw_faces(few, 8)
    run = check_and_resolve(_spec(tmp_path, few)).arms[0].runs[0]
    assert run.evaluation.held_out == 2
    (empty := tmp_path / "empty").mkdir()
    with pytest.raises(McfError, match="holds no images"):
        _spec(tmp_path, empty)


def test_the_run_that_the_demo_waits_for_is_the_one_of_the_page() -> None:
    page = run_in_mlflow("http://127.0.0.1:5000", "7", "0123abcd")
    assert page
    assert run_of_page(page) == "0123abcd"
