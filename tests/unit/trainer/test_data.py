import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from trainer import data
from trainer.data import Slice, load_images, normalise, slices, split_of
from trainer.draws import View, flipped, image_at, mask_noise
from trainer.grid import step_plan
from trainer.manifest import DataError, open_images, read_manifest
from trainer.spec import Data, RunSpec

CPU = torch.device("cpu")


def png(image: Image.Image, **options: object) -> bytes:
    out = io.BytesIO()
    image.save(out, "PNG", **options)
    return out.getvalue()


def all_slices(run: RunSpec, rank: int, size: int, steps: range) -> list[Slice]:
    split = split_of(run)
    images = open_images(run.data, split.manifest)
    return list(slices(run, images, split.train, step_plan(run.batch, rank, size), steps, CPU))


def test_a_slice_is_what_the_draws_say_at_its_positions(tiny_run: RunSpec) -> None:
    split = split_of(tiny_run)
    decoded = load_images(open_images(tiny_run.data, split.manifest), split.train, 64)
    first = all_slices(tiny_run, 0, 1, range(3, 4))[2]
    for row in range(16):
        epoch, index = image_at(0, 3 * 64 + 2 * 16 + row, len(split.train))
        expected = decoded[index].flip(2) if flipped(0, epoch, index) else decoded[index]
        assert torch.equal(first.image_BCHW[row], expected)
        assert torch.equal(first.online_BL[row], mask_noise(0, epoch, index, View.ONLINE, 64))
        assert torch.equal(first.target_BL[row], mask_noise(0, epoch, index, View.TARGET, 64))


def test_ranks_see_together_what_one_sees_alone_also_after_a_resume(tiny_run: RunSpec) -> None:
    alone = torch.stack([cell.image_BCHW for cell in all_slices(tiny_run, 0, 1, range(2))])
    ranks = [[cell.image_BCHW for cell in all_slices(tiny_run, rank, 2, range(1, 2))] for rank in range(2)]
    interleaved = torch.stack([cell for pair in zip(*ranks, strict=True) for cell in pair])
    assert torch.equal(interleaved, alone[4:])


def test_a_subset_too_large_for_memory_is_decoded_by_workers_to_the_same_bytes(
    tiny_run: RunSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_memory = all_slices(tiny_run, 0, 2, range(2))
    monkeypatch.setattr(data, "MAX_BYTES_IN_MEMORY", 0)
    on_demand = all_slices(tiny_run, 0, 2, range(2))
    assert all(torch.equal(a, b) for one, other in zip(in_memory, on_demand, strict=True) for a, b in zip(one, other))  # noqa: B905


def test_held_out_images_are_never_trained_on(tiny_run: RunSpec) -> None:
    split = split_of(tiny_run)
    assert len(split.held_out) == 8
    assert not set(split.train) & set(split.held_out)


def test_images_are_upright_rgb_squares_from_the_centre(tmp_path: Path) -> None:
    wide = Image.new("RGB", (80, 40), "red")
    wide.paste((0, 0, 255), (20, 0, 60, 40))
    sideways = Image.new("RGB", (40, 40), "white")
    sideways.paste((0, 0, 0), (0, 0, 40, 20))
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    sources = {"wide": png(wide), "turned": png(sideways, exif=exif), "grey": png(Image.new("L", (25, 25), 77)),
               "alpha": png(Image.new("RGBA", (20, 20), (9, 8, 7, 0)))}  # fmt: skip
    for name, content in sources.items():
        (tmp_path / f"{name}.png").write_bytes(content)
    manifest = read_manifest(Data(uri=str(tmp_path)))
    rows = [manifest.find(f"{name}.png") for name in ("wide", "turned", "grey", "alpha")]
    images = load_images(open_images(Data(uri=str(tmp_path)), manifest), rows, 20)
    assert images.shape == (4, 3, 20, 20)
    assert images.dtype == torch.uint8
    assert images[0, :, 10, 10].tolist() == [0, 0, 255]
    assert images[0, 0].float().mean() < 10  # the red sides are cut off
    assert images[1, 0, 2, 10] == 255
    assert images[1, 0, 17, 10] == 0
    assert (images[2] == 77).all()
    assert images[3, :, 0, 0].tolist() == [9, 8, 7]


def test_a_file_that_is_no_image_is_named(tmp_path: Path) -> None:
    (tmp_path / "broken.jpg").write_bytes(b"not an image")
    data = Data(uri=str(tmp_path))
    with pytest.raises(DataError, match=r"broken\.jpg"):
        load_images(open_images(data, read_manifest(data)), [0], 16)


def test_normalised_white_and_black_are_imagenets() -> None:
    image = torch.tensor([0, 255], dtype=torch.uint8).view(1, 1, 1, 2).expand(1, 3, 1, 2)
    assert np.allclose(normalise(image)[0, 0, 0], [-0.485 / 0.229, 0.515 / 0.229])
    assert normalise(image, torch.float64).dtype == torch.float64


def test_data_that_changed_since_submission_is_refused(tiny_run: RunSpec) -> None:
    changed = tiny_run.model_copy(update={"data": tiny_run.data.model_copy(update={"sha256": "0" * 64})})
    with pytest.raises(DataError, match="changed since"):
        split_of(changed)


def test_an_lmdb_in_the_published_layout_gives_the_same_images_also_to_workers(
    tiny_run: RunSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lmdb = pytest.importorskip("lmdb")
    folder = Path(tiny_run.data.uri)
    with lmdb.open(str(tmp_path / "faces"), map_size=1 << 24) as env, env.begin(write=True) as txn:
        txn.put(b"length", b"48")
        for path in folder.iterdir():
            txn.put(path.name.encode(), path.read_bytes())
    manifest = read_manifest(Data(uri=str(tmp_path / "faces"), format="lmdb"))
    assert manifest.digest == read_manifest(Data(uri=str(folder))).digest
    expected = all_slices(tiny_run, 0, 1, range(1))
    run = tiny_run.model_copy(update={"data": Data(uri=str(tmp_path / "faces"), format="lmdb")})
    for limit in data.MAX_BYTES_IN_MEMORY, 0:
        monkeypatch.setattr(data, "MAX_BYTES_IN_MEMORY", limit)
        for one, other in zip(all_slices(run, 0, 1, range(1)), expected, strict=True):
            assert torch.equal(one.image_BCHW, other.image_BCHW)
