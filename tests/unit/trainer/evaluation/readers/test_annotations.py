"""Files of annotations: everything that would fail after training is refused before it, with the image's name."""

import json
import math
from pathlib import Path
from typing import Any

import pytest

from trainer.contract import SpecError
from trainer.data.manifest import DataError
from trainer.evaluation.readers.annotations import read_labels, read_landmarks
from trainer.resolve import check_and_resolve

POINTS = [[float(i), float(2 * i % 50)] for i in range(68)]


def with_point(number: int, point: Any) -> list[Any]:
    return [*POINTS[:number], point, *POINTS[number + 1 :]]


BAD_FACES: list[tuple[Any, str]] = [
    ({"points68": POINTS[:5]}, "'b.png': .* 68 points .* shape 5 x 2"),
    ({"points68": [[*point, 1.0] for point in POINTS]}, "'b.png': .* shape 68 x 3"),
    ({"points68": [*POINTS[:67], [1.0]]}, "'b.png': .* points differ in length"),
    ({"points68": None}, "'b.png': .* is no list"),
    ({"points68": "68"}, "'b.png': .* is no list"),
    ({"points68": with_point(3, [None, 2.0])}, "'b.png': .* something else than numbers"),
    ({"points68": with_point(3, ["1", "2"])}, "'b.png': .* something else than numbers"),
    ({"points68": with_point(3, [10**40, 2])}, "'b.png': .* something else than numbers"),
    ({"points68": with_point(3, [math.nan, 2.0])}, r"'b.png': .* point 3 \(from 0\) is \[nan, 2.0\]"),
    ({"points68": with_point(67, [math.inf, 2.0])}, "'b.png': .* point 67 .*inf"),
    ({"points68": with_point(9, [1e200, 2.0])}, r"'b.png': .* point 9 .*1e\+200"),
    ({"points68": [[7.0, 9.0]] * 68}, r"'b.png': the centres of both eyes .* one point, \[7.0, 9.0\]"),
    ({"landmarks_ok": True}, "'b.png': .* not there; landmarks_ok: false leaves an image out"),
    ({"points68": POINTS, "landmarks_ok": "no"}, "'b.png': landmarks_ok is a str; possible: true, false"),
    (POINTS, "holds a list where a face is expected"),
]


@pytest.mark.parametrize(("face", "told"), BAD_FACES)
def test_a_face_that_cannot_be_measured_is_refused_by_name(face: Any, told: str) -> None:
    with pytest.raises(DataError, match=f"(?s){told}"):
        read_landmarks(json.dumps({"a.png": {"points68": POINTS}, "b.png": face}).encode())


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (b"[]", "holds a list; expected is an object"),
        (b"[" * 100_000, "is no JSON"),
        (b"\xff\xfe", "is no JSON"),
        (b"{", "is no JSON"),
        (b"{}", "none of its 0 images"),
        (b'{"a.png": {"landmarks_ok": false}}', "none of its 1 images"),
        (b'{"a.png": {"landmarks_ok": false}, "a.png": {}}', "the key 'a.png' comes twice"),
        (b'{"a.png": {"points68": [], "points68": []}}', "the key 'points68' comes twice"),
    ],
)
def test_what_is_no_landmark_file_is_refused(text: bytes, told: str) -> None:
    with pytest.raises(DataError, match=told):
        read_landmarks(text)


def test_what_the_file_itself_calls_unusable_is_left_out_whatever_it_holds() -> None:
    faces = {"a.png": {"points68": POINTS}, "b.png": {"points68": None, "landmarks_ok": False}}
    found = read_landmarks(json.dumps(faces).encode())
    assert found.points["a.png"].tolist() == POINTS
    assert (found.points.keys(), found.num_left_out) == ({"a.png"}, 1)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (b"", "first line"),
        (b"a.png,one\nb.png,two\n", "first line"),
        (b"file,label\na.png,one\nb.png,one\n", "1 different labels in 2 rows; a classifier needs two"),
        (b"file,label\na.png,one\nb.png\n", "line 3 has no file"),
        (b"file,label\na.png,one\nb.png,\n", "line 3 has no file, no label"),
        (b"file,label\na.png,one\nb.png,two,three\n", "line 3 .* a comma too many"),
        (b"file,label\na.png,one\na.png,two\n", "line 3: image 'a.png' has another label"),
        (b'file,label\na.png,"one\n', "no CSV in UTF-8"),
        (b"file,label\na.png,\xff\n", "no CSV in UTF-8"),
    ],
)
def test_labels_that_no_classifier_can_be_measured_by_are_refused_by_line(text: bytes, told: str) -> None:
    with pytest.raises(DataError, match=told):
        read_labels(text)


def test_labels_may_come_from_a_spreadsheet() -> None:
    found = read_labels("\ufefffile,age,label\r\na.png,7,one\r\n\r\nb.png,8,two\r\n".encode())
    assert found == {"a.png": "one", "b.png": "two"}


@pytest.mark.parametrize("field", ["landmarks", "alignment"])
@pytest.mark.parametrize(("face", "told"), [*BAD_FACES, ([], "")])
def test_a_submission_looks_at_every_face(tiny_faces: Path, tmp_path: Path, field: str, face: Any, told: str) -> None:
    file = tmp_path / "faces.json"
    faces = {path.name: {"points68": POINTS} for path in tiny_faces.iterdir()}
    file.write_text(json.dumps({**faces, "b.png": face} if told else []))
    asked = str(file) if field == "landmarks" else {"benchmark": "faces68", "uri": str(file)}
    base = {"preset": "tiny", "data": {"uri": str(tiny_faces)}, "teacher": "none", "evaluation": {field: asked}}
    with pytest.raises(SpecError, match=f"(?s)evaluation.{field}.*{told}"):
        check_and_resolve({"name": "x", "base": base, "seeds": 1})


def test_a_submission_reads_no_device_and_nothing_that_does_not_fit_into_memory(
    tiny_faces: Path, tmp_path: Path
) -> None:
    large = tmp_path / "large.csv"
    with large.open("wb") as file:
        file.truncate(1 << 40)
    for source, told in ("/dev/zero", "is no file that can be read"), (str(large), "has 1099511627776 bytes"):
        base = {"preset": "tiny", "data": {"uri": str(tiny_faces)}, "teacher": "none"}
        with pytest.raises(SpecError, match=told):
            check_and_resolve({"name": "x", "base": {**base, "evaluation": {"labels": source}}, "seeds": 1})


def test_half_a_character_names_no_image(tiny_faces: Path, tmp_path: Path) -> None:
    file = tmp_path / "faces.json"
    file.write_text(json.dumps({"\ud800.png": {"points68": POINTS}}))
    base = {"preset": "tiny", "data": {"uri": str(tiny_faces)}, "teacher": "none"}
    with pytest.raises(SpecError, match=r"such as '\\ud800.png'") as refused:
        check_and_resolve({"name": "x", "base": {**base, "evaluation": {"landmarks": str(file)}}, "seeds": 1})
    str(refused.value).encode()
