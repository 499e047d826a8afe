"""Without a GPU: torchvision's decoder of CPUs stands in for nvJPEG, and all the code around it is what a GPU runs."""

import io
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn.functional import interpolate

from tests.unit.trainer.data.test_decode import KINDS, encoded, picture, segment, tagged
from trainer.contract import MAX_PIXELS, Data, RunSpec
from trainer.data import batches
from trainer.data.batches import Slice, slices
from trainer.data.decode import Fit, decode, jpeg_segments
from trainer.data.decoded import Decoder
from trainer.data.manifest import DataError, Rows, open_images, read_manifest
from trainer.data.nvjpeg import (
    GpuDecoder,
    _resized,
    check_decoder,
    fitted,
    for_gpu,
    is_rejection,
    resize_weights,
)
from trainer.data.pictures import Undecodable
from trainer.method.grid import step_plan

CPU = torch.device("cpu")
SIZE = 40


def textured(width: int, height: int) -> Image.Image:
    """Where resizing otherwise would show: smooth shapes, edges and noise."""
    rng = np.random.default_rng(width * 1000 + height)
    coarse = Image.fromarray(rng.integers(0, 256, (5, 5, 3), dtype=np.uint8))
    pixels = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC), np.float32)
    pixels = pixels + rng.normal(0, 20, pixels.shape)
    pixels[height // 3 : height // 2, width // 4 :] = 255
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def with_frame(data: bytes, **changed: int) -> bytes:
    """Another byte of the frame's header: its kind, the bits of a sample, how brightness or a colour is sampled, ..."""
    [frame] = [place for kind, place in jpeg_segments(data) if kind == 0xC0]
    out = bytearray(data)
    for what, value in changed.items():
        out[frame + {"kind": 1, "bits": 4, "brightness": 11, "table": 12, "colour": 14}[what]] = value
    return bytes(out)


def adobe(transform: int) -> bytes:
    payload = b"Adobe\0\x64\0\0\0\0" + bytes([transform])
    return b"\xff\xee" + (len(payload) + 2).to_bytes(2, "big") + payload


PLAIN = encoded(textured(60, 50), quality=90)
FOR_THE_GPU = {
    "4:2:0": PLAIN,
    "4:4:4": encoded(textured(60, 50), subsampling=0),
    "4:2:2": encoded(textured(60, 50), subsampling=1),
    "grey": encoded(textured(60, 50).convert("L")),
    "small": encoded(textured(11, 9)),
    "just below twice the size": encoded(textured(120, 79)),
    "Adobe's YCbCr": PLAIN[:2] + adobe(1) + PLAIN[2:],
}
FOR_THE_CPU = {
    **{kind: KINDS[kind] for kind in ("progressive", "png", "webp", "cmyk", "twice the size", "cmyk, twice the size")},
    "cut short": PLAIN[:-200],
    "no end marker": PLAIN[:-2],
    "no pixels": PLAIN[:100],
    "nothing": b"",
    "RGB by Adobe's word": PLAIN[:2] + adobe(0) + PLAIN[2:],
    "extended": with_frame(PLAIN, kind=0xC1),
    "arithmetic": with_frame(PLAIN, kind=0xC9),
    "12 bits": with_frame(PLAIN, bits=12),
    "4:1:1": with_frame(PLAIN, brightness=0x41),
    "colours sampled otherwise": with_frame(PLAIN, colour=0x21),
    "long": encoded(textured(SIZE * 4 + 1, 70)),
    "long once its short side fits": encoded(textured(90, 10)),
}


@pytest.mark.parametrize("kind", FOR_THE_GPU)
def test_usual_jpegs_are_for_the_gpu(kind: str) -> None:
    assert for_gpu(FOR_THE_GPU[kind], SIZE, "crop", MAX_PIXELS) == 1


@pytest.mark.parametrize("kind", FOR_THE_CPU)
def test_all_else_is_decoded_as_without_a_gpu_and_by_its_bytes_alone(kind: str) -> None:
    data = FOR_THE_CPU[kind]
    assert for_gpu(data, SIZE, "crop", MAX_PIXELS) is None
    assert outcome(GpuDecoder(CPU), data) == outcome(decode, data)


def outcome(decoder: Decoder, data: bytes) -> object:
    try:
        return decoder(data, SIZE, "crop", MAX_PIXELS).tolist()
    except Undecodable as error:
        return str(error)


def test_too_many_pixels_are_undecodable_on_either() -> None:
    for decoder in decode, GpuDecoder(CPU):
        with pytest.raises(Undecodable, match="possible: up to 2999"):
            decoder(PLAIN, SIZE, "crop", 2999)


def check_same(data: bytes, size: int, fit: Fit) -> None:
    """With the same decoder behind it, to the last bit: what is left is what nvJPEG does otherwise."""
    assert for_gpu(data, size, fit, MAX_PIXELS) is not None
    ours = GpuDecoder(CPU)(data, size, fit, MAX_PIXELS)
    assert ours.dtype == torch.uint8
    assert torch.equal(ours, decode(data, size, fit))


@pytest.mark.parametrize("fit", ["crop", "squash"])
@pytest.mark.parametrize("side", [(40, 40), (60, 50), (50, 61), (79, 79), (79, 160), (23, 31), (40, 70), (41, 40)])
def test_squares_are_those_of_decode(side: tuple[int, int], fit: Fit) -> None:
    check_same(encoded(textured(*side), quality=95), SIZE, fit)


@pytest.mark.parametrize("fit", ["crop", "squash"])
@pytest.mark.parametrize("lies", range(1, 9))
def test_orientation_is_that_of_decode(lies: int, fit: Fit) -> None:
    exif = Image.Exif()
    exif[0x0112] = lies
    check_same(encoded(textured(60, 47), quality=95, exif=exif), SIZE, fit)
    check_same(tagged("xmp alone", lies, (60, 47)), SIZE, fit)


@pytest.mark.parametrize("side", [(250, 250), (300, 224), (447, 390), (112, 112), (447, 896), (30, 100)])
def test_squares_are_those_of_decode_at_the_published_size(side: tuple[int, int]) -> None:
    check_same(encoded(textured(*side), quality=90), 224, "squash")


def test_resizing_is_torchs_down_to_a_quarter() -> None:
    for before, after in ((896, 224), (224, 56), (897, 225), (7, 300), (300, 299), (1, 40)):
        noise = torch.randint(0, 256, (2, 8, before, 3), dtype=torch.uint8).permute(0, 3, 1, 2)
        assert resize_weights(before, after)[0].sum(0).max() * 255 < 1 << 24
        assert torch.equal(_resized(noise, after), interpolate(noise, (8, after), mode="bilinear", antialias=True))


def test_images_of_one_shape_are_resized_as_each_by_itself() -> None:
    image_NCHW = torch.stack(
        [torch.from_numpy(np.array(textured(60, side))[:50]).permute(2, 0, 1) for side in (50, 51)]
    )
    together = fitted(image_NCHW, 6, SIZE, "crop")
    for image_CHW, square in zip(image_NCHW, together, strict=True):
        assert torch.equal(fitted(image_CHW.unsqueeze(0), 6, SIZE, "crop")[0], square)


# The loader.


def jpegs(folder: Path, count: int) -> Path:
    """Of several shapes and ways to lie; every fifth is not for the GPU."""
    folder.mkdir()
    for number in range(count):
        exif = Image.Exif()
        exif[0x0112] = 1 + number % 8
        image = textured(70 + number % 3, 80)
        if number % 5 == 4:
            image.save(folder / f"{number:03d}.png")
        else:
            image.save(folder / f"{number:03d}.jpg", quality=90, exif=exif)
    return folder


def loaded(tiny_run: RunSpec, folder: Path, decoder: str, max_undecodable: float = 0.0) -> list[Slice]:
    data = Data.model_validate({"uri": str(folder), "decoder": decoder, "max_undecodable": max_undecodable})
    run = tiny_run.model_copy(update={"data": data})
    manifest = read_manifest(data)
    rows = Rows(manifest, np.arange(len(manifest)))
    return list(slices(run, open_images(data, manifest), rows, step_plan(run.batch, 0, 1), range(2), CPU))


def same(one: list[Slice], other: list[Slice]) -> bool:
    return len(one) == len(other) and all(
        all(map(torch.equal, a[:5], b[:5])) and dict(a.undecodable) == dict(b.undecodable)
        for a, b in zip(one, other, strict=True)
    )


def test_a_slice_does_not_depend_on_what_fits_into_memory(
    tiny_run: RunSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = jpegs(tmp_path / "faces", 40)
    in_memory, by_cpu = loaded(tiny_run, folder, "nvjpeg"), loaded(tiny_run, folder, "cpu")
    monkeypatch.setattr(batches, "MAX_BYTES_IN_MEMORY", 0)
    on_demand = loaded(tiny_run, folder, "nvjpeg")
    assert same(in_memory, on_demand)
    assert all(cell.waiting is None for cell in on_demand)
    assert same(on_demand, by_cpu)  # as the decoder behind it is the same here


def without_a_table(path: Path) -> None:
    """Whole to look at; only who decodes it misses a table."""
    path.write_bytes(with_frame(path.read_bytes(), table=3))


@pytest.mark.parametrize("limit", [batches.MAX_BYTES_IN_MEMORY, 0])
def test_what_the_gpu_refuses_is_found_and_replaced_as_without_one(
    tiny_run: RunSpec, tmp_path: Path, limit: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = jpegs(tmp_path / "faces", 40)
    without_a_table(folder / "006.jpg")
    without_a_table(folder / "007.jpg")
    (folder / "010.jpg").write_bytes((folder / "010.jpg").read_bytes()[:900])
    assert for_gpu((folder / "006.jpg").read_bytes(), tiny_run.input_size, "crop", MAX_PIXELS) is not None
    monkeypatch.setattr(batches, "MAX_BYTES_IN_MEMORY", limit)
    by_gpu, by_cpu = (loaded(tiny_run, folder, decoder, 0.075) for decoder in ("nvjpeg", "cpu"))
    met = {index: what for cell in by_gpu for index, what in cell.undecodable.items()}
    assert set(met) == {6, 7, 10}
    for one, other in zip(by_gpu, by_cpu, strict=True):
        assert torch.equal(one.index_B, other.index_B)
        assert dict(one.undecodable) == dict(other.undecodable)
    with pytest.raises(DataError, match=r"at least \d of 40 .*raise data.max_undecodable"):
        loaded(tiny_run, folder, "nvjpeg", 0.024)


@pytest.mark.parametrize("limit", [batches.MAX_BYTES_IN_MEMORY, 0])
def test_what_only_the_gpu_refuses_is_decoded_on_the_cpu(
    tiny_run: RunSpec, tmp_path: Path, limit: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = jpegs(tmp_path / "faces", 40)
    refused = (folder / "012.jpg").read_bytes()
    pixels, batch_sizes = GpuDecoder.pixels, []

    def picky(self: GpuDecoder, encoded: list[torch.Tensor]) -> list[torch.Tensor]:
        batch_sizes.append(len(encoded))
        if refused in [each.numpy().tobytes() for each in encoded]:
            raise RuntimeError("Error while decoding JPEG images: Failed to decode batch: 4")
        return pixels(self, encoded)

    monkeypatch.setattr(batches, "MAX_BYTES_IN_MEMORY", limit)
    by_cpu = loaded(tiny_run, folder, "cpu")
    monkeypatch.setattr(GpuDecoder, "pixels", picky)
    assert same(loaded(tiny_run, folder, "nvjpeg"), by_cpu)
    assert limit or max(batch_sizes) > 1

    def failing(self: GpuDecoder, encoded: list[torch.Tensor]) -> list[torch.Tensor]:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(GpuDecoder, "pixels", failing)
    with pytest.raises(RuntimeError, match="illegal memory access"):
        loaded(tiny_run, folder, "nvjpeg")


def test_a_slice_of_other_formats_alone_needs_nothing_of_the_gpu(
    tiny_run: RunSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Path(shutil.copytree(tiny_run.data.uri, tmp_path / "faces"))
    monkeypatch.setattr(batches, "MAX_BYTES_IN_MEMORY", 0)
    assert same(loaded(tiny_run, folder, "nvjpeg"), loaded(tiny_run, folder, "cpu"))


def test_an_error_of_the_machine_is_not_blamed_on_an_image() -> None:
    for text in (
        "CUDA error: an illegal memory access was encountered", "CUDA out of memory. Tried to allocate 2 GiB",
        "Error while decoding JPEG images: Failed to decode batch: 5", "Failed to synchronize CUDA stream: 700",
    ):  # fmt: skip
        assert not is_rejection(RuntimeError(text))
    assert not is_rejection(torch.OutOfMemoryError("no room"))
    for text in "Error while decoding JPEG images: Failed to get image info: 3", "Unknown chroma subsampling":
        assert is_rejection(RuntimeError(text))


# Where there is no GPU.


def test_it_is_refused_in_words_where_there_is_no_gpu(tiny_run: RunSpec) -> None:
    check_decoder(tiny_run, CPU)
    run = tiny_run.model_copy(update={"data": Data(uri=tiny_run.data.uri, decoder="nvjpeg")})
    with pytest.raises(DataError, match=r"data\.decoder: asked for nvjpeg; possible: cpu on this machine, .* no GPU"):
        check_decoder(run, CPU)


def test_it_is_refused_where_nvjpeg_does_not_work(tiny_run: RunSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    def pixels(self: GpuDecoder, encoded: list[torch.Tensor]) -> list[torch.Tensor]:
        raise RuntimeError("decode_jpegs_cuda: torchvision not compiled with nvJPEG support\nException raised from ...")

    monkeypatch.setattr(GpuDecoder, "pixels", pixels)
    run = tiny_run.model_copy(update={"data": Data(uri=tiny_run.data.uri, decoder="nvjpeg")})
    with pytest.raises(DataError, match=r"where nvJPEG does not work \(.* not compiled with nvJPEG support\)"):
        check_decoder(run, torch.device("cuda", 0))


def test_segments_end_where_the_pixels_begin() -> None:
    data = PLAIN[:2] + segment(b"Exif\0\0") + PLAIN[2:]
    kinds = [kind for kind, _ in jpeg_segments(data)]
    assert kinds[0] == 0xE1
    assert 0xDA not in kinds
    assert list(jpeg_segments(encoded(picture(8, 8), "PNG"))) == []
    assert Image.open(io.BytesIO(data)).size == (60, 50)
