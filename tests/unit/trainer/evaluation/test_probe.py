"""The probe: which images, which folds, which unit, and the published floors."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from trainer.contract import RunSpec
from trainer.contract.presets import TINY
from trainer.data.manifest import DataError
from trainer.evaluation import probe
from trainer.evaluation.annotations import Landmarks
from trainer.evaluation.readers.annotations import Faces
from trainer.method.mcf import build

CPU = torch.device("cpu")
POINTS = [[float(i), float(2 * i % 50)] for i in range(68)]


def spec(folder: Path | str, **evaluation: Any) -> RunSpec:
    return RunSpec.model_validate(
        {**TINY, "data": {"uri": str(folder)}, "teacher": {"source": "none"}, "evaluation": evaluation}
    )


@pytest.fixture
def annotated(tiny_faces: Path, tmp_path: Path) -> tuple[Path, Path]:
    """A folder of faces, and a landmark file for it in which one face is marked as unusable."""
    faces = {file.name: {"points68": POINTS, "landmarks_ok": True} for file in sorted(tiny_faces.iterdir())}
    faces["face007.png"]["landmarks_ok"] = False
    (tmp_path / "landmarks.json").write_text(json.dumps(faces))
    return tiny_faces, tmp_path / "landmarks.json"


def test_shared_faces_reproduce_the_published_floors(faces: Path) -> None:
    run = spec(faces / "images", landmarks=str(faces / "landmarks.json"))
    task = probe.probe_task(run)
    assert task is not None
    assert task.note.startswith("279 images in 5 folds, 26 annotated ones left out")
    mean_shape = task.measure(torch.zeros(279, 1)).value
    pixels = task.measure(probe.pixel_features(task.image_nCHW, CPU)).value
    random = task.measure(probe.encoder_features(build(run).encoder, task.image_nCHW, CPU)).value
    assert mean_shape == pytest.approx(17.4, abs=0.6)
    assert pixels == pytest.approx(13.5, abs=0.5)
    assert random == pytest.approx(13.6, abs=0.5)


def test_unusable_faces_are_left_out(annotated: tuple[Path, Path]) -> None:
    images, landmarks = annotated
    task = probe.probe_task(spec(images, landmarks=str(landmarks), folds=4))
    assert task is not None
    assert len(task.contents) == 47
    assert sorted(task.fold_N.bincount().tolist()) == [11, 12, 12, 12]
    assert task.note.startswith("47 images in 4 folds, 1 annotated ones left out")


def test_folds_follow_the_content_and_a_copy_sits_in_its_originals_fold(tiny_faces: Path, tmp_path: Path) -> None:
    folds = []
    for name in "images", "renamed":
        folder = tmp_path / name
        folder.mkdir()
        for number, file in enumerate(sorted(tiny_faces.iterdir(), reverse=name == "renamed")):
            shutil.copy(file, folder / f"{number}.png")
        if name == "renamed":
            shutil.copy(folder / "0.png", folder / "copy.png")
        annotations = {file.name: {"points68": POINTS} for file in folder.iterdir()}
        (tmp_path / f"{name}.json").write_text(json.dumps(annotations))
        task = probe.probe_task(spec(folder, landmarks=str(tmp_path / f"{name}.json")))
        assert task is not None
        folds.append(sorted(set(zip(task.contents, task.fold_N.tolist(), strict=True))))
    assert folds[0] == folds[1]
    assert len(folds[0]) == 48


def test_missing_images_changed_files_and_too_few_faces_are_data_errors(
    annotated: tuple[Path, Path], tmp_path: Path
) -> None:
    images, landmarks = annotated
    with pytest.raises(DataError, match="twice as many"):
        probe.probe_task(spec(images, landmarks=str(landmarks), folds=24))
    with pytest.raises(DataError, match="have changed"):
        probe.probe_task(spec(images, landmarks=str(landmarks), sha256="0" * 64))
    landmarks.write_text(json.dumps({**json.loads(landmarks.read_text()), "gone.png": {"points68": POINTS}}))
    with pytest.raises(DataError, match=r"names 1 images that are not there: gone.png"):
        probe.probe_task(spec(images, landmarks=str(landmarks)))
    landmarks.write_text('{"a.png": {"points68": [[1, 2]]}}')
    with pytest.raises(DataError, match=r"landmarks.json: image 'a.png': points68"):
        probe.probe_task(spec(images, landmarks=str(landmarks)))
    assert probe.probe_task(spec(images)) is None


def test_landmarks_follow_the_resize_and_the_centre_crop() -> None:
    points = np.array([[100.0, 50.0]] * 67 + [[150.0, 100.0]])
    found = Landmarks(Faces({"wide": points}, 0)).targets(["wide"], [(200, 100)], 64, "crop").view(68, 2)
    # 200 x 100 becomes 128 x 64, of which 32 columns go on either side.
    torch.testing.assert_close(found[0], torch.tensor([0.5, 0.5]).double())
    torch.testing.assert_close(found[67], torch.tensor([1.0, 1.0]).double())


def test_an_error_of_a_tenth_of_the_eye_distance_is_ten_percent() -> None:
    points = torch.rand(68, 2).double()
    points[36:42], points[42:48] = torch.tensor([0.2, 0.4]), torch.tensor([0.7, 0.4])
    annotations = Landmarks(Faces({"a": points.numpy()}, 0))
    metric = annotations.score((points + torch.tensor([0.05, 0.0])).view(1, -1), points.view(1, -1))
    assert (metric.name, metric.higher_is_better) == ("probe/landmark_nme", False)
    assert metric.value == pytest.approx(10.0)


def test_labels_are_read_off_pixels_where_they_can_be(tmp_path: Path) -> None:
    rows = ["file,label"]
    for i in range(40):
        bright = i % 2
        Image.new("RGB", (16, 16), (i + 120 * bright,) * 3).save(tmp_path / f"{i}.png")
        rows.append(f"{i}.png,{'light' if bright else 'dark'}")
    (tmp_path / "labels.csv").write_text("\n".join(rows))
    task = probe.probe_task(spec(tmp_path, labels=str(tmp_path / "labels.csv")))
    assert task is not None
    metric = task.measure(probe.pixel_features(task.image_nCHW, CPU))
    assert (metric.name, metric.unit, metric.value) == ("probe/accuracy", "%", 100.0)
    assert "always the commonest one would reach 50.0 %" in task.note
