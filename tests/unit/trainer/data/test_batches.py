import io
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from trainer.contract import Data, RunSpec
from trainer.data import batches
from trainer.data.batches import Slice, normalise, slices, split_of
from trainer.data.decoded import load_images
from trainer.data.manifest import DataError, Rows, open_images, read_manifest
from trainer.method.draws import View, flips, images_at, mask_noise
from trainer.method.grid import step_plan

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
    decoded = load_images(open_images(tiny_run.data, split.manifest), split.train, 64, "crop")
    cell = all_slices(tiny_run, 0, 1, range(3, 4))[2]
    drawn = images_at(0, 3 * 64 + 2 * 16, 16, len(split.train))
    assert cell.index_B.tolist() == drawn.index_B.tolist()
    assert cell.flipped_B.tolist() == flips(0, drawn).tolist()
    for image_CHW, index, flipped in zip(cell.image_BCHW, drawn.index_B, cell.flipped_B, strict=True):
        assert torch.equal(image_CHW, decoded[index].flip(2) if flipped else decoded[index])
    assert np.array_equal(cell.online_BL, mask_noise(0, drawn, View.ONLINE, 64))
    assert np.array_equal(cell.target_BL, mask_noise(0, drawn, View.TARGET, 64))


def test_with_the_word_run_every_seed_draws_the_subset_of_its_number(tiny_run: RunSpec) -> None:
    def trained_on(seed: int, subset_seed: int | str) -> str:
        data = {**tiny_run.data.model_dump(), "subset_size": 8, "subset_seed": subset_seed}
        return split_of(RunSpec.model_validate({**tiny_run.model_dump(), "seed": seed, "data": data})).train.digest

    own = [trained_on(seed, "run") for seed in range(4)]
    assert own == [trained_on(9, number) for number in range(4)]
    assert len(set(own)) == 4


def test_ranks_see_together_what_one_sees_alone_also_after_a_resume(tiny_run: RunSpec) -> None:
    alone = torch.stack([cell.image_BCHW for cell in all_slices(tiny_run, 0, 1, range(2))])
    ranks = [[cell.image_BCHW for cell in all_slices(tiny_run, rank, 2, range(1, 2))] for rank in range(2)]
    interleaved = torch.stack([cell for pair in zip(*ranks, strict=True) for cell in pair])
    assert torch.equal(interleaved, alone[4:])


def test_a_subset_too_large_for_memory_is_decoded_by_workers_to_the_same_bytes(
    tiny_run: RunSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_memory = all_slices(tiny_run, 0, 2, range(2))
    monkeypatch.setattr(batches, "MAX_BYTES_IN_MEMORY", 0)
    on_demand = all_slices(tiny_run, 0, 2, range(2))
    for one, other in zip(in_memory, on_demand, strict=True):
        assert all(map(torch.equal, one[:5], other[:5]))


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
    images = load_images(open_images(Data(uri=str(tmp_path)), manifest), rows, 20, "crop")
    assert images.shape == (4, 3, 20, 20)
    assert images.dtype == torch.uint8
    assert images[0, :, 10, 10].tolist() == [0, 0, 255]
    assert images[0, 0].float().mean() < 10  # the red sides are cut off
    assert images[1, 0, 2, 10] == 255
    assert images[1, 0, 17, 10] == 0
    assert (images[2] == 77).all()
    assert images[3, :, 0, 0].tolist() == [9, 8, 7]


BROKEN = (6, 7, 39)


def slices_with_gaps(tiny_run: RunSpec, folder: Path, max_undecodable: float) -> list[Slice]:
    """Two steps on 40 images, of which these are cut off: two that follow each other, and the last."""
    shutil.copytree(tiny_run.data.uri, folder)
    names = sorted(path.name for path in folder.iterdir())[:40]
    for index in BROKEN:
        whole = (folder / names[index]).read_bytes()
        (folder / names[index]).write_bytes(whole[: len(whole) // 2])
    asked = Data(uri=str(folder), max_undecodable=max_undecodable)
    manifest = read_manifest(asked)
    rows = Rows(manifest, np.array([manifest.find(name) for name in names]))
    run = tiny_run.model_copy(update={"data": asked})
    return list(slices(run, open_images(asked, manifest), rows, step_plan(run.batch, 0, 1), range(2), CPU))


@pytest.mark.parametrize("limit", [batches.MAX_BYTES_IN_MEMORY, 0])
def test_the_next_image_of_the_subset_stands_in_for_one_that_cannot_be_decoded(
    tiny_run: RunSpec, tmp_path: Path, limit: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batches, "MAX_BYTES_IN_MEMORY", limit)
    cells = slices_with_gaps(tiny_run, tmp_path / "gaps", 0.075)
    met = {index: what for cell in cells for index, what in cell.undecodable.items()}
    assert set(met) == set(BROKEN)
    assert all(re.match(r"face0?\d+\.\w+: ", what) for what in met.values()), met
    stand_in = {6: 8, 7: 8, 39: 0}
    asked = images_at(0, 0, 128, 40).index_B.tolist()
    assert torch.cat([cell.index_B for cell in cells]).tolist() == [stand_in.get(index, index) for index in asked]
    by_index = {}
    for cell in cells:
        for image_CHW, index, flipped in zip(cell.image_BCHW, cell.index_B.tolist(), cell.flipped_B, strict=True):
            upright = image_CHW.flip(2) if flipped else image_CHW
            assert torch.equal(by_index.setdefault(index, upright), upright)


@pytest.mark.parametrize("limit", [batches.MAX_BYTES_IN_MEMORY, 0])
def test_too_many_undecodable_images_are_named(
    tiny_run: RunSpec, tmp_path: Path, limit: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batches, "MAX_BYTES_IN_MEMORY", limit)
    with pytest.raises(DataError, match=r"at least 3 of 40 .*face.*: .*raise data.max_undecodable") as caught:
        slices_with_gaps(tiny_run, tmp_path / "gaps", 0.074)
    assert "Traceback" not in str(caught.value)


def test_a_data_set_without_any_image_that_can_be_decoded_is_refused(tmp_path: Path) -> None:
    (tmp_path / "broken.jpg").write_bytes(b"not an image")
    data = Data(uri=str(tmp_path))
    with pytest.raises(DataError, match=r"broken\.jpg"):
        load_images(open_images(data, read_manifest(data)), [0], 16, "crop")


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
    for limit in batches.MAX_BYTES_IN_MEMORY, 0:
        monkeypatch.setattr(batches, "MAX_BYTES_IN_MEMORY", limit)
        for one, other in zip(all_slices(run, 0, 1, range(1)), expected, strict=True):
            assert torch.equal(one.image_BCHW, other.image_BCHW)
