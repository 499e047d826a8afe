"""Readers of the benchmarks, on a few faces written in exactly the published formats."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import scipy.io
from PIL import Image

from tests.benchmarks import upload
from trainer.data.manifest import DataError
from trainer.evaluation.readers import READERS, aflw19, celebamask, hrnet_csv, lapa
from trainer.evaluation.readers.record import IGNORED, LabelImage, Layers, Record, sample
from trainer.evaluation.readers.source import Files


def picture(path: Path, side: int = 4) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (side, side), (90, 60, 30)).save(path)


def grey(path: Path, values: Sequence[Sequence[int]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.array(values, dtype=np.uint8)).save(path)


def hrnet_line(name: str, first: float, num_points: int, scale: float = 0.5) -> str:
    points = [str(first + place) for place in range(2 * num_points)]
    return ",".join([name, str(scale), "60.0", "70.0", *points])


def hrnet_list(path: Path, lines: list[str], num_points: int) -> None:
    points = [f"original_{place}_{axis}" for place in range(num_points) for axis in "xy"]
    header = ",".join(["image_name", "scale", "center_w", "center_h", *points])
    path.write_text("\n".join([header, *lines]) + "\n")


def by_name(records: list[Record]) -> dict[str, Record]:
    return {record.image.name: record for record in records}


@pytest.fixture
def three_hundred_w(tmp_path: Path) -> Path:
    for name, image in ("train", "afw/1.jpg"), ("valid_common", "helen/2.jpg"), ("valid_challenge", "ibug/3.jpg"):
        hrnet_list(tmp_path / f"face_landmarks_300w_{name}.csv", [hrnet_line(image, 10, 68)], 68)
        picture(tmp_path / "images" / image)
    return tmp_path


def test_300w_is_moved_by_two_pixels_and_split_into_common_and_challenging(three_hundred_w: Path) -> None:
    found = by_name(hrnet_csv.read_300w(three_hundred_w))
    assert {name: (record.split, set(record.subsets)) for name, record in found.items()} == {
        "1.jpg": ("train", set()), "2.jpg": ("test", {"common"}), "3.jpg": ("test", {"challenging"}),
    }  # fmt: skip
    record = found["1.jpg"]
    assert record.points_P2 is not None
    assert record.points_P2.shape == (68, 2)
    assert record.points_P2[0].tolist() == [8.0, 9.0]
    assert record.points_P2[67].tolist() == [142.0, 143.0]
    assert record.box == (8.0, 18.0, 108.0, 118.0)


def test_300w_images_may_stand_beside_the_lists_and_the_one_with_a_blank_is_found(three_hundred_w: Path) -> None:
    for file in sorted((three_hundred_w / "images").iterdir()):
        file.rename(three_hundred_w / file.name)
    (three_hundred_w / "images").rmdir()
    picture(three_hundred_w / "ibug/image_092 _01.jpg")
    hard = three_hundred_w / "face_landmarks_300w_valid_challenge.csv"
    hard.write_text(hard.read_text() + hrnet_line("ibug/image_092_01.jpg", 1, 68) + "\n")
    assert by_name(hrnet_csv.read_300w(three_hundred_w)).keys() == {"1.jpg", "2.jpg", "3.jpg", "image_092 _01.jpg"}


def test_a_missing_list_and_a_short_line_and_a_missing_image_are_named(three_hundred_w: Path) -> None:
    (three_hundred_w / "images/ibug/3.jpg").unlink()
    with pytest.raises(DataError, match=r"names 1 images that are missing, such as .*ibug/3.jpg"):
        hrnet_csv.read_300w(three_hundred_w)
    broken = three_hundred_w / "face_landmarks_300w_valid_common.csv"
    broken.write_text(broken.read_text() + "4.jpg,1,2\n")
    with pytest.raises(DataError, match=r"valid_common.csv line 3: it has 3 columns; 140 were expected"):
        hrnet_csv.read_300w(three_hundred_w)
    broken.write_text(broken.read_text().replace("60.0", "sixty"))
    with pytest.raises(DataError, match=r"line 2: it has something else than numbers"):
        hrnet_csv.read_300w(three_hundred_w)
    broken.write_text(hrnet_line("helen/2.jpg", 10, 68) + "\n")
    with pytest.raises(DataError, match=r"valid_common.csv line 1: it is a face; the names of the columns"):
        hrnet_csv.read_300w(three_hundred_w)
    broken.unlink()
    with pytest.raises(DataError, match=r"valid_common.csv is missing: the HRNet list with .* 68 points"):
        hrnet_csv.read_300w(three_hundred_w)


@pytest.mark.parametrize(
    ("column", "value", "told"),
    [
        (1, "0", "line 3: the scale is 0.0; possible: more than 0"),
        (1, "nan", "line 3: it has a number that is not finite"),
        (2, "inf", "line 3: it has a number that is not finite"),
        (50, "nan", "line 3: it has a number that is not finite"),
        (50, "1e300", "the face of .*4.jpg has a point that is no place of an image"),
        (50, "\x00\xff", "is no text in UTF-8"),
    ],
)
def test_a_face_that_no_error_can_be_measured_by_is_refused_with_its_line(
    three_hundred_w: Path, column: int, value: str, told: str
) -> None:
    picture(three_hundred_w / "images/4.jpg")
    line = hrnet_line("4.jpg", 10, 68).split(",")
    line[column] = value
    broken = three_hundred_w / "face_landmarks_300w_valid_common.csv"
    broken.write_text(broken.read_text() + ",".join(line) + "\n", encoding="latin-1")
    with pytest.raises(DataError, match=told):
        hrnet_csv.read_300w(three_hundred_w)


def test_eyes_on_one_place_are_refused_where_their_distance_is_the_unit(three_hundred_w: Path, wflw: Path) -> None:
    for path, corners, points, read in (
        ("300w_valid_challenge", (36, 45), 68, hrnet_csv.read_300w),
        ("wflw_train", (96, 97), 98, hrnet_csv.read_wflw),
    ):
        file = three_hundred_w / f"face_landmarks_{path}.csv"
        header, line = file.read_text().splitlines()
        values = line.split(",")
        first, second = (4 + 2 * corner for corner in corners)
        values[second : second + 2] = values[first : first + 2]
        file.write_text(f"{header}\n{','.join(values)}\n")
        assert points == (len(values) - 4) / 2
        with pytest.raises(DataError, match=rf"has both eyes \(points {corners[0]} and {corners[1]}, from 0\) on one"):
            read(three_hundred_w)


@pytest.fixture
def wflw(tmp_path: Path) -> Path:
    faces = {"parade/a.jpg": 5.0, "parade/b.jpg": 6.0}
    hrnet_list(tmp_path / "face_landmarks_wflw_train.csv", [hrnet_line("parade/t.jpg", 1, 98)], 98)
    # Two faces of one image, of which the second alone is blurred.
    lines = [hrnet_line(name, first, 98) for name, first in faces.items()] + [hrnet_line("parade/a.jpg", 7, 98)]
    hrnet_list(tmp_path / "face_landmarks_wflw_test.csv", lines, 98)
    chosen = {"largepose": [0, 1], "blur": [2], "occlusion": [0]}
    for subset in hrnet_csv.WFLW_SUBSETS:
        kept = [lines[place] for place in chosen.get(subset, [])]
        hrnet_list(tmp_path / f"face_landmarks_wflw_test_{subset}.csv", kept, 98)
    for name in "parade/t.jpg", *faces:
        picture(tmp_path / "WFLW_images" / name)
    return tmp_path


def test_wflw_has_six_subsets_that_tell_faces_of_one_image_apart(wflw: Path) -> None:
    train, *test = hrnet_csv.read_wflw(wflw)
    assert (train.split, train.subsets) == ("train", frozenset())
    assert [(record.image.name, set(record.subsets)) for record in test] == [
        ("a.jpg", {"largepose", "occlusion"}), ("b.jpg", {"largepose"}), ("a.jpg", {"blur"}),
    ]  # fmt: skip
    assert train.points_P2 is not None
    assert train.points_P2[97].tolist() == [195.0, 196.0]


def test_a_wflw_subset_with_a_face_that_is_not_tested_is_refused(wflw: Path) -> None:
    hrnet_list(wflw / "face_landmarks_wflw_test_makeup.csv", [hrnet_line("parade/b.jpg", 99, 98)], 98)
    with pytest.raises(DataError, match=r"1 faces of WFLW subsets .* such as one of parade/b.jpg in makeup"):
        hrnet_csv.read_wflw(wflw)


@pytest.fixture
def aflw(tmp_path: Path) -> Path:
    data = np.arange(3 * 38, dtype=np.float64).reshape(3, 38)
    visible = np.ones((3, 19))
    visible[0, 4] = 0
    names = np.empty((3, 1), dtype=object)
    for place in range(3):
        names[place, 0] = f"0/image{place}.jpg"
        picture(tmp_path / f"data/flickr/0/image{place}.jpg")
    contents = {
        "bbox": np.array([[1.0, 5.0, 2.0, 9.0]] * 3), "data": data, "mask_new": visible, "nameList": names,
        "ra": np.array([[2, 3, 1]], dtype=np.uint16),
    }  # fmt: skip
    scipy.io.savemat(tmp_path / "AFLWinfo_release.mat", contents)
    return tmp_path


def test_aflw_is_in_the_order_of_its_permutation_and_its_frontal_faces_show_all_points(aflw: Path) -> None:
    records = aflw19.read_aflw19(aflw, num_train=1)
    assert [record.image.name for record in records] == ["image1.jpg", "image2.jpg", "image0.jpg"]
    assert [record.split for record in records] == ["train", "test", "test"]
    assert [set(record.subsets) for record in records] == [set(), {"frontal"}, set()]
    assert records[0].box == (1.0, 2.0, 5.0, 9.0)
    assert records[0].points_P2 is not None
    assert records[0].points_P2[:2].tolist() == [[38.0, 57.0], [39.0, 58.0]]
    assert records[0].image == aflw / "data/flickr/0/image1.jpg"


def test_what_is_wrong_with_an_aflw_list_is_said(aflw: Path) -> None:
    path = aflw / "AFLWinfo_release.mat"
    contents = {name: value for name, value in scipy.io.loadmat(path).items() if not name.startswith("__")}
    scipy.io.savemat(path, contents | {"data": contents["data"][:, :30]})
    with pytest.raises(DataError, match=r"data is \(3, 30\); \(3, 38\) was expected"):
        aflw19.read_aflw19(aflw)
    scipy.io.savemat(path, contents | {"ra": np.array([[1, 1, 2]])})
    with pytest.raises(DataError, match="ra is no permutation"):
        aflw19.read_aflw19(aflw)
    del contents["mask_new"]
    scipy.io.savemat(path, contents)
    with pytest.raises(DataError, match="lacks mask_new; expected are bbox"):
        aflw19.read_aflw19(aflw)
    path.write_bytes(b"no such thing")
    with pytest.raises(DataError, match="cannot be read as a MATLAB file"):
        aflw19.read_aflw19(aflw)
    path.unlink()
    with pytest.raises(DataError, match=r"AFLWinfo_release.mat is missing: the list of AFLW-19"):
        aflw19.read_aflw19(aflw)


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        ("bbox", [[1.0, 1.0, 2.0, 9.0]] * 3, "image1.jpg has the box .* without width or height"),
        ("bbox", [[np.nan, 5.0, 2.0, 9.0]] * 3, "image1.jpg has the box .* without width or height"),
        ("data", [[np.nan] * 38] * 3, "image1.jpg has a point that is no place"),
        ("data", [["x"] * 38] * 3, "data holds something else than numbers"),
        ("ra", [[np.nan, 1, 2]], "ra is no permutation"),
        ("nameList", [[1.0], [2.0], [3.0]], "nameList is no list of names"),
    ],
)
def test_a_face_of_aflw_that_no_error_can_be_measured_by_is_refused_by_name(
    aflw: Path, name: str, value: list[list[float]], told: str
) -> None:
    path = aflw / "AFLWinfo_release.mat"
    contents = {key: value for key, value in scipy.io.loadmat(path).items() if not key.startswith("__")}
    scipy.io.savemat(path, contents | {name: np.array(value)})
    with pytest.raises(DataError, match=told):
        aflw19.read_aflw19(aflw)


@pytest.fixture
def lapa_root(tmp_path: Path) -> Path:
    for folder in "train", "val", "test":
        picture(tmp_path / folder / "images" / f"{folder}_1.jpg")
        grey(tmp_path / folder / "labels" / f"{folder}_1.png", [[0, 10], [6, 1]])
        points = "\n".join(f"{place}.5 {place}.25" for place in range(106))
        landmarks = tmp_path / folder / "landmarks" / f"{folder}_1.txt"
        landmarks.parent.mkdir()
        landmarks.write_text(f"106\n{points}\n")
    return tmp_path


def test_lapa_has_masks_and_points_in_three_splits(lapa_root: Path) -> None:
    records = lapa.read_lapa(lapa_root)
    assert [(record.image.name, record.split) for record in records] == [
        ("train_1.jpg", "train"), ("val_1.jpg", "validation"), ("test_1.jpg", "test"),
    ]  # fmt: skip
    mask, points_P2 = records[0].mask, records[0].points_P2
    assert isinstance(mask, LabelImage)
    assert mask.read().tolist() == [[0, 10], [6, 1]]
    assert points_P2 is not None
    assert (points_P2.shape, points_P2[105].tolist()) == ((106, 2), [105.5, 105.25])


@pytest.mark.parametrize(
    ("pixels", "told"),
    [
        (
            np.array([[0, 11], [6, 1]], np.uint8),
            "mask .*val_1.png has the values 11; possible: classes 0 to 10, and 255",
        ),
        (np.array([[[0, 1, 0]]], np.uint8), "mask .*val_1.png is in colours"),
        (np.array([[0, 300]], np.uint16), "mask .*val_1.png has pixels of kind I;16; possible: 8 bits"),
    ],
)
def test_a_mask_without_classes_is_refused_by_name(lapa_root: Path, pixels: np.ndarray, told: str) -> None:
    Image.fromarray(pixels).save(lapa_root / "val/labels/val_1.png")
    with pytest.raises(DataError, match=told):
        sample(lapa.read_lapa(lapa_root))
    (lapa_root / "val/labels/val_1.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    with pytest.raises(DataError, match=r"val_1.png cannot be read"):
        sample(lapa.read_lapa(lapa_root))


def test_a_mask_may_say_where_nobody_knows_the_class(lapa_root: Path) -> None:
    grey(lapa_root / "val/labels/val_1.png", [[IGNORED, 10], [0, 1]])
    sample(lapa.read_lapa(lapa_root))


def test_a_mask_has_the_shape_of_its_image_but_may_be_smaller(lapa_root: Path) -> None:
    grey(lapa_root / "val/labels/val_1.png", [[0]])
    sample(lapa.read_lapa(lapa_root))
    grey(lapa_root / "val/labels/val_1.png", [[0, 1]] * 4)
    with pytest.raises(DataError, match=r"mask of .*val_1.jpg has 2 x 4 pixels, the image 4 x 4; possible: a mask of"):
        sample(lapa.read_lapa(lapa_root))


@pytest.mark.parametrize("point", ["nan 1", "1e9 1"])
def test_points_of_lapa_are_places(lapa_root: Path, point: str) -> None:
    (lapa_root / "val/landmarks/val_1.txt").write_text("106\n" + "1 2\n" * 105 + point)
    with pytest.raises(DataError, match=r"val_1.*"):
        lapa.read_lapa(lapa_root)


def test_points_of_lapa_that_align_nothing_are_refused(lapa_root: Path) -> None:
    (lapa_root / "val/landmarks/val_1.txt").write_text("106\n" + "1 2\n" * 106)
    with pytest.raises(DataError, match=r"val_1.txt has one place for points 104, 105, 54, 84, 90, which align"):
        lapa.read_lapa(lapa_root)


def test_what_lapa_lacks_is_named(lapa_root: Path) -> None:
    (lapa_root / "val/landmarks/val_1.txt").write_text("106\n1 2\n")
    with pytest.raises(DataError, match=r"val_1.txt has 3 numbers; 106 and then as many pairs x y were expected"):
        lapa.read_lapa(lapa_root)
    (lapa_root / "val/labels/val_1.png").unlink()
    with pytest.raises(DataError, match=r"val_1.png is missing: the classes of .*val_1.jpg"):
        lapa.read_lapa(lapa_root)
    (lapa_root / "train/images").rename(lapa_root / "train/pictures")
    with pytest.raises(DataError, match=r"train/images is missing: the folder of LaPa's train images"):
        lapa.read_lapa(lapa_root)


@pytest.fixture
def celeba(tmp_path: Path) -> Path:
    rows = [(2001, 182_637, "182638.jpg"), (0, 162_769, "162770.jpg"), (1, 162_770, "162771.jpg")]
    lines = ["idx\torig_idx\torig_file", *(f"{idx}\t\t{orig}\t{file}" for idx, orig, file in rows)]
    (tmp_path / "CelebA-HQ-to-CelebA-mapping.txt").write_text("\n".join(lines) + "\n")
    for idx, _, _ in rows:
        picture(tmp_path / f"CelebA-HQ-img/{idx}.jpg")
        grey(tmp_path / f"CelebAMask-HQ-mask-anno/{idx // 2000}/{idx:05d}_skin.png", [[255, 255], [255, 0]])
    grey(tmp_path / "CelebAMask-HQ-mask-anno/0/00000_hair.png", [[255, 0], [0, 0]])
    grey(tmp_path / "CelebAMask-HQ-mask-anno/0/00000_neck.png", [[0, 0], [255, 255]])
    return tmp_path


def test_celebamask_lays_classes_over_each_other_and_is_split_as_celeba(celeba: Path) -> None:
    records = celebamask.read_celebamask(celeba)
    assert [(record.image.name, record.split) for record in records] == [
        ("0.jpg", "train"), ("1.jpg", "validation"), ("2001.jpg", "test"),
    ]  # fmt: skip
    mask = records[0].mask
    assert isinstance(mask, Layers)
    named = [[celebamask.CLASSES[number] for number in row] for row in mask.read().tolist()]
    assert named == [["hair", "skin"], ["skin", "neck"]]
    assert len(celebamask.CLASSES) == 19


def test_what_celebamask_lacks_is_named(celeba: Path) -> None:
    grey(celeba / "CelebAMask-HQ-mask-anno/0/00000_hair.png", [[255]])
    mask = celebamask.read_celebamask(celeba)[0].mask
    assert mask is not None
    with pytest.raises(DataError, match=r"00000_hair.png has \(1, 1\) pixels, the layers before it \(2, 2\)"):
        mask.read()
    (celeba / "CelebAMask-HQ-mask-anno/1/02001_skin.png").unlink()
    with pytest.raises(DataError, match=r"mask-anno/1 has no mask of image 2001, such as 02001_skin.png"):
        celebamask.read_celebamask(celeba)
    mapping = celeba / "CelebA-HQ-to-CelebA-mapping.txt"
    mapping.write_text("idx orig_idx orig_file\n0 one.jpg\n")
    with pytest.raises(DataError, match=r"line 2 is not idx orig_idx orig_file"):
        celebamask.read_celebamask(celeba)
    mapping.unlink()
    with pytest.raises(DataError, match=r"mapping.txt is missing: the table idx orig_idx orig_file"):
        celebamask.read_celebamask(celeba)


@pytest.mark.parametrize(
    ("benchmark", "drawn"),
    [
        ("300w", "three_hundred_w"),
        ("wflw", "wflw"),
        ("aflw19", "aflw"),
        ("lapa", "lapa_root"),
        ("celebamask-hq", "celeba"),
    ],
)
def test_a_benchmark_is_read_on_a_store_as_it_is_in_a_folder(
    request: pytest.FixtureRequest, s3_server: str, benchmark: str, drawn: str
) -> None:
    root = request.getfixturevalue(drawn)
    upload(root, s3_server)
    here, there = READERS[benchmark](root), READERS[benchmark](Files(s3_server).root())
    sample(there)
    assert len(here) == len(there) >= 3
    for one, other in zip(here, there, strict=True):
        assert str(other.image) == str(one.image).replace(str(root), s3_server)
        assert (one.split, one.subsets, one.box) == (other.split, other.subsets, other.box)
        np.testing.assert_array_equal(one.points_P2, other.points_P2)
        assert one.mask is None or (one.mask.read() == other.mask.read()).all()
