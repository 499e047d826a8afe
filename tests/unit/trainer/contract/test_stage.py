"""What a spec may ask of its stages, and what is found of a benchmark before anything runs."""

import json
import os
import time
from pathlib import Path
from typing import Any

import pytest

from tests.benchmarks import colour_a_mask, draw_lapa, upload
from tests.integration.faults import Gateway
from trainer import resolve
from trainer.contract import Data, RunSpec, SpecError
from trainer.contract.recipe import Recipe, Selection
from trainer.contract.stage import Alignment
from trainer.data.manifest import DataError, open_images, read_manifest
from trainer.evaluation.readers.faces68 import read_faces68
from trainer.evaluation.readers.source import Files, local_folder
from trainer.evaluation.stages.faces68 import write_faces68
from trainer.resolve import check_and_resolve
from trainer.store import objects
from trainer.store.objects import open_store

BARE: dict[str, Any] = {"data": {"uri": "/data/faces"}, "teacher": "none"}
POINTS = [[10 + i % 10, 20 + i // 10] for i in range(68)]


def test_a_stage_that_is_asked_for_makes_another_run() -> None:
    bare = RunSpec.model_validate(BARE)
    said = RunSpec.model_validate({**BARE, "evaluation": {"alignment": None, "parsing": None}})
    assert said.digest == bare.digest
    asked = {"alignment": {"benchmark": "wflw", "uri": "/data/WFLW"}}
    staged = RunSpec.model_validate({**BARE, "evaluation": asked})
    assert staged.digest != bare.digest
    assert RunSpec.model_validate_json(staged.model_dump_json()) == staged


def test_a_stage_changes_of_the_published_recipe_what_it_says_and_takes_the_run_s_seed() -> None:
    published = Recipe(epochs=300, head_lr=1e-3)
    asked = Alignment.model_validate({"benchmark": "wflw", "uri": "/", "batch": 8, "selection": "best_on_test"})
    assert asked.recipe(published, seed=7) == published.model_copy(
        update={"batch": 8, "slice": 8, "selection": Selection.BEST_ON_TEST, "seed": 7}
    )


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        ({"benchmark": "lfw"}, "alignment.benchmark: asked for 'lfw'; possible: 'aflw19', '300w', 'wflw' or 'faces68'"),
        ({"selection": "best"}, "selection: asked for 'best'; possible: 'last', 'best_on_validation' or"),
        ({"epoch": 3}, r"unknown field 'epoch'; possible: epochs \(did you mean it\?\)"),
        ({"slice": 7}, "slice: asked for 7; possible: a divisor of batch = 40"),
        ({"input_size": 100}, "input_size: asked for 100; possible: a multiple of encoder.patch = 8, such as 96"),
        ({"uri": "WFLW"}, "uri: asked for WFLW; possible: an absolute path or s3://"),
        ({}, "face_landmarks_wflw_test_largepose.csv is missing"),
        ({"benchmark": "faces68"}, "alignment.uri: .* a file of annotations that can be used: .* is no file"),
    ],
)
def test_what_cannot_be_is_refused_with_what_can(tiny_faces: Path, asked: dict[str, Any], told: str) -> None:
    stage = {"benchmark": "wflw", "uri": str(tiny_faces), **asked}
    base = {"preset": "tiny", "data": {"uri": str(tiny_faces)}, "teacher": "none", "evaluation": {"alignment": stage}}
    with pytest.raises(SpecError, match=told):
        check_and_resolve({"name": "x", "base": base, "seeds": 1})


def asked_for(faces: Path, **stages: Any) -> dict[str, Any]:
    base = {"preset": "tiny", "data": {"uri": str(faces)}, "teacher": "none", "evaluation": stages}
    return {"name": "x", "base": base, "seeds": 1}


@pytest.mark.parametrize("remote", [False, True])
def test_contents_of_a_benchmark_are_looked_at_before_anything_runs_wherever_they_are(
    tiny_faces: Path, tmp_path: Path, s3_server: str, remote: bool
) -> None:
    lapa = draw_lapa(tmp_path / "LaPa")
    uri = s3_server if remote else str(lapa)
    asked = asked_for(tiny_faces, parsing={"benchmark": "lapa", "uri": uri})
    upload(lapa, s3_server)
    found = check_and_resolve(asked)
    assert found.arms[0].runs[0].evaluation.parsing
    assert not found.warnings
    colour_a_mask(lapa)
    upload(lapa, s3_server)
    with pytest.raises(SpecError, match=rf"evaluation.parsing.uri: .* mask {uri}/val/labels/a.png is in colours"):
        check_and_resolve(asked)
    (lapa / "val/landmarks/a.txt").write_text("106\n" + "1 2\n" * 105 + "nan 1")
    upload(lapa, s3_server)
    with pytest.raises(SpecError, match=rf"the face of {uri}/val/images/a.jpg has a point that is no place"):
        check_and_resolve(asked)
    (lapa / "val/landmarks/a.txt").unlink()
    open_store(s3_server).delete(["val/landmarks/a.txt"])
    with pytest.raises(SpecError, match=rf"{uri}/val/landmarks/a.txt is missing"):
        check_and_resolve(asked)


def test_a_store_that_falls_silent_holds_a_submission_up_for_so_long_and_what_was_not_looked_at_is_said(
    tiny_faces: Path, tmp_path: Path, s3_server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    upload(draw_lapa(tmp_path / "LaPa"), s3_server)
    # The client goes through a gateway, which passes listings on and swallows what asks for a mask.
    gateway = Gateway(int(os.environ["AWS_ENDPOINT_URL"].rpartition(":")[2]))
    monkeypatch.setenv("AWS_ENDPOINT_URL", gateway.url)
    objects._s3.cache_clear()
    asked = asked_for(tiny_faces, parsing={"benchmark": "lapa", "uri": s3_server})
    try:
        gateway.held = b"/labels/"
        started = time.monotonic()
        found = check_and_resolve(asked)
        assert time.monotonic() - started < resolve.NAMING_SECONDS / 2
        assert found.arms[0].runs[0].evaluation.parsing
        [warning] = found.warnings
        assert warning.startswith(f"{s3_server}: its store gave no answer within 1.5 s")
        assert "before its first step" in warning
        # Without a listing there is nothing that a run's digest could be of.
        gateway.held = b"GET"
        monkeypatch.setattr(resolve, "NAMING_SECONDS", 0.5)
        with pytest.raises(SpecError, match=r"parsing.uri: .*listing .* took longer than 0.5 s"):
            check_and_resolve(asked)
    finally:
        objects._s3.cache_clear()


def test_faces68_needs_faces_on_both_sides_and_corners_of_eyes_apart(tiny_faces: Path, tmp_path: Path) -> None:
    file = tmp_path / "landmarks.json"
    asked = asked_for(tiny_faces, alignment={"benchmark": "faces68", "uri": str(file)}, held_out=8)
    split = read_manifest(Data(uri=str(tiny_faces))).split(held_out=8, subset_size=None, subset_seed=0)
    sides = list(split.held_out.keys()), list(split.train.keys())
    for keys, told in (
        (sides[0], "8 annotated images, of which 8"),
        (sides[1], "40 annotated images, of which 0"),
    ):
        file.write_text(json.dumps({key: {"points68": POINTS} for key in keys}))
        with pytest.raises(SpecError, match=rf"alignment.uri: asked for {told} are held out; possible: landmarks"):
            check_and_resolve(asked)
    closed = [*POINTS[:45], POINTS[36], *POINTS[46:]]
    file.write_text(json.dumps({key: {"points68": closed} for key in sides[0] + sides[1]}))
    with pytest.raises(SpecError, match=r"face of face\d+.png has both eyes \(points 36 and 45, from 0\) on one place"):
        check_and_resolve(asked)


def test_a_stage_may_be_a_factor_and_its_landmarks_are_in_the_digest(tiny_faces: Path, tmp_path: Path) -> None:
    file = tmp_path / "landmarks.json"
    stage = {"benchmark": "faces68", "uri": str(file)}
    base = {"preset": "tiny", "data": {"uri": str(tiny_faces)}, "teacher": "none", "evaluation": {"alignment": stage}}
    request = {"name": "x", "base": base, "factors": {"evaluation.alignment.frozen": [True, False]}, "seeds": 1}
    digests = set()
    for moved in 0, 1:
        moved_points = [[x + moved, y] for x, y in POINTS]
        file.write_text(json.dumps({path.name: {"points68": moved_points} for path in tiny_faces.iterdir()}))
        arms = check_and_resolve(request).arms
        assert [arm.name for arm in arms] == ["alignment.frozen=true", "alignment.frozen=false"]
        digests |= {arm.runs[0].digest for arm in arms}
    assert len(digests) == 4


def test_faces68_tests_on_what_is_held_out_and_trains_on_no_copy_of_it(tiny_faces: Path, tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    for file in tiny_faces.iterdir():
        (tmp_path / "images" / file.name).write_bytes(file.read_bytes())
    manifest = read_manifest(Data(uri=str(tmp_path / "images")))
    split = manifest.split(held_out=8, subset_size=None, subset_seed=0)
    held_out = split.held_out.key(0)
    (tmp_path / "images/copy.png").write_bytes((tiny_faces / held_out).read_bytes())
    manifest = read_manifest(Data(uri=str(tmp_path / "images")))
    split = manifest.split(held_out=8, subset_size=None, subset_seed=0)
    keys = ["copy.png", *(file.name for file in tiny_faces.iterdir())]
    text = json.dumps({key: {"points68": POINTS, "landmarks_ok": key != "face001.png"} for key in keys}).encode()
    (tmp_path / "laid").mkdir()
    images = open_images(Data(uri=str(tmp_path / "images")), manifest)
    write_faces68(text, split, images, tmp_path / "laid")
    records = read_faces68(tmp_path / "laid")
    tested = {record.image.read_bytes() for record in records if record.split == "test"}
    trained = {record.image.read_bytes() for record in records if record.split == "train"}
    known = {images.get(row) for row in split.held_out if images.key(row) != "face001.png"}
    assert tested == known
    assert not tested & trained
    assert len(records) >= 46
    # The square around points that lie 9 wide and 6 high, from the centre of the first pixel.
    assert records[0].box == (9.5, 18.0, 18.5, 27.0)
    with pytest.raises(DataError, match="1 images that are not there: other"):
        write_faces68(json.dumps({"other": {"points68": POINTS}}).encode(), split, images, tmp_path / "laid")


def test_a_benchmark_in_s3_is_fetched_whole_and_has_the_digest_it_has_in_a_folder(
    s3_server: str, tmp_path: Path
) -> None:
    files = {"train/images/a.jpg": b"one", "train/labels/a.png": b"three"}
    for uri in s3_server, str(tmp_path / "here"):
        for name, data in files.items():
            open_store(uri).put(name, data)
    found = local_folder(s3_server, tmp_path / "scratch")
    assert {name: (found / name).read_bytes() for name in files} == files
    assert Files(s3_server).digest == Files(str(tmp_path / "here")).digest
    with pytest.raises(DataError, match="holds no files"):
        Files(f"{s3_server}/nothing")
