import io
import resource

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from trainer.data import pictures
from trainer.data.decode import Fit, decode, jpeg_frame, upright_size
from trainer.data.pictures import TURNS, Undecodable, opened


def encoded(image: Image.Image, format: str = "JPEG", **options: object) -> bytes:
    out = io.BytesIO()
    image.save(out, format, **options)
    return out.getvalue()


def picture(width: int, height: int, mode: str = "RGB") -> Image.Image:
    """Smooth colours that differ everywhere: left to right in red, top to bottom in green."""
    x, y = np.meshgrid(np.linspace(0, 255, width), np.linspace(0, 255, height))
    return Image.fromarray(np.stack([x, y, np.full_like(x, 128)], axis=2).astype(np.uint8)).convert(mode)


def expected(image: Image.Image, size: int) -> Tensor:
    square = image.convert("RGB").resize((size, size), Image.Resampling.BILINEAR)
    return torch.from_numpy(np.array(square)).permute(2, 0, 1)


def distance(one: Tensor, other: Tensor) -> float:
    return float((one.float() - other.float()).abs().mean())


KINDS = {
    "jpeg": encoded(picture(40, 40), quality=95),
    "progressive": encoded(picture(40, 40), quality=95, progressive=True),
    "png": encoded(picture(40, 40), "PNG"),
    "webp": encoded(picture(40, 40), "WEBP", lossless=True),
    "bmp": encoded(picture(40, 40), "BMP"),
    "tiff": encoded(picture(40, 40), "TIFF"),
    "cmyk": encoded(picture(40, 40, "CMYK"), quality=95),
    "alpha": encoded(picture(40, 40, "RGBA"), "PNG"),
    "twice the size": encoded(picture(80, 80), quality=95),
    "nine times the size": encoded(picture(370, 370), quality=95),
    "two pictures in one file": encoded(picture(80, 80), "MPO", save_all=True, append_images=[picture(8, 8)]),
    "cmyk, twice the size": encoded(picture(80, 80, "CMYK"), quality=95),
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_becomes_the_same_rgb_square(kind: str) -> None:
    image = decode(KINDS[kind], 40)
    assert image.shape == (3, 40, 40)
    assert image.dtype == torch.uint8
    assert distance(image, expected(picture(40, 40), 40)) < 2


def test_a_jpeg_of_the_right_size_is_what_libjpeg_says_to_the_last_bit() -> None:
    whole = Image.open(io.BytesIO(KINDS["jpeg"])).convert("RGB")
    assert torch.equal(decode(KINDS["jpeg"], 40), expected(whole, 40))


def test_resizing_is_pillows_to_one_level() -> None:
    large = picture(61, 61)
    assert int((decode(encoded(large, "PNG"), 40).int() - expected(large, 40).int()).abs().max()) <= 1


def test_a_jpeg_is_scaled_while_decoding_from_twice_the_size_on() -> None:
    checks = Image.fromarray((np.indices((80, 80)).sum(0) % 2 * 255).astype(np.uint8))
    data = encoded(checks, quality=100)
    scaled = Image.open(io.BytesIO(data))
    scaled.draft(None, (40, 40))
    assert torch.equal(decode(data, 40), expected(scaled, 40))
    unscaled = Image.open(io.BytesIO(data))
    assert int((decode(data, 41).int() - expected(unscaled, 41).int()).abs().max()) <= 1


@pytest.mark.parametrize("kind", ["jpeg", "png", "cmyk", "twice the size"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_images_are_turned_upright(kind: str, orientation: int) -> None:
    mode, side = ("CMYK" if kind == "cmyk" else "RGB"), (80 if kind == "twice the size" else 40)
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(picture(side, side, mode), "PNG" if kind == "png" else "JPEG", exif=exif)
    turns = {2: 0, 3: 3, 4: 1, 5: 5, 6: 4, 7: 6, 8: 2}  # PIL's names for undoing each orientation
    upright = picture(side, side)
    if orientation > 1:
        upright = upright.transpose(Image.Transpose(turns[orientation]))
    assert distance(decode(data, 40), expected(upright, 40)) < 2


def segment(payload: bytes) -> bytes:
    return b"\xff\xe1" + (len(payload) + 2).to_bytes(2, "big") + payload


def xmp(text: bytes) -> bytes:
    return segment(b"http://ns.adobe.com/xap/1.0/\0" + text)


def tagged(kind: str, orientation: int, side: tuple[int, int]) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(picture(*side), quality=95)
    alone = xmp(b'<rdf:Description tiff:Orientation="%d"/>' % orientation)
    if kind in ("png", "webp", "tiff"):
        return encoded(picture(*side), kind.upper(), exif=exif, **({"lossless": True} if kind == "webp" else {}))
    return {
        "exif": encoded(picture(*side), quality=95, exif=exif),
        "exif of rubbish": data[:2] + segment(b"Exif\0\0rubbish") + alone + data[2:],
        "xmp before exif": data[:2] + xmp(b"<x:xmpmeta/>") + encoded(picture(*side), quality=95, exif=exif)[2:],
        "xmp alone": data[:2] + alone + data[2:],
        "exif after the frame": data[: data.index(b"\xff\xc4")] + alone + data[data.index(b"\xff\xc4") :],
    }[kind]


@pytest.mark.parametrize(
    "kind", ["exif", "xmp before exif", "xmp alone", "exif after the frame", "png", "webp", "tiff"]
)
@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("side", [(60, 40), (180, 120)])
def test_pixels_and_sizes_follow_one_orientation_wherever_it_stands(
    kind: str, orientation: int, side: tuple[int, int]
) -> None:
    data = tagged(kind, orientation, side)
    upright = picture(*side)
    if orientation > 1:
        upright = upright.transpose(TURNS[orientation])
    assert upright_size(data) == upright.size
    assert distance(decode(data, 40, "squash"), expected(upright, 40)) < 2
    # As it is read where a benchmark's images are.
    with opened(io.BytesIO(data)) as found:
        assert pictures.upright(found).size == upright.size


def test_an_orientation_that_cannot_be_read_is_none() -> None:
    data = tagged("exif of rubbish", 6, (60, 40))
    assert upright_size(data) == (60, 40)
    assert distance(decode(data, 40, "squash"), expected(picture(60, 40), 40)) < 2


def test_grey_palette_and_sixteen_bits_become_rgb() -> None:
    ramp = np.arange(0, 1600).reshape(40, 40) * 40
    for data, level in (
        (encoded(Image.fromarray((ramp >> 8).astype(np.uint8))), 1.5),
        (encoded(Image.fromarray((ramp >> 8).astype(np.uint8)), "PNG"), 0.0),
        (encoded(Image.fromarray(ramp.astype(np.uint16)), "PNG"), 0.0),
    ):
        assert distance(decode(data, 40), torch.from_numpy(ramp >> 8).expand(3, 40, 40)) <= level
    few = picture(40, 40).quantize(64)
    palette = encoded(few, "PNG", transparency=bytes(64))
    assert torch.equal(decode(palette, 40), expected(few, 40))


def test_what_has_no_white_or_is_no_image_says_so() -> None:
    for data, reason in (
        (b"", "no bytes"),
        (b"\x00", "no image"),
        (b"not an image", "no image"),
        (b"\xff\xd8", "no image"),
        (encoded(picture(40, 40, "F"), "TIFF"), "no range"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 40 40\n", "no image"),
    ):
        with pytest.raises(Undecodable, match=reason):
            decode(data, 40)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
@pytest.mark.parametrize("kind", [*KINDS, "sideways"])
def test_a_file_that_was_cut_off_is_undecodable_and_never_half_grey(kind: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    data = KINDS.get(kind) or encoded(picture(40, 40), exif=exif)
    # Past the pixels of the first picture nothing that matters is missing: PNG keeps 20 bytes there.
    end = data.find(b"\xff\xd9") if kind == "two pictures in one file" else len(data) - 24
    for kept in (1, 10, 25, end // 4, end // 2, end * 3 // 4, end):
        with pytest.raises(Undecodable):
            decode(data[:kept], 40)
    if kind not in ("bmp", "tiff"):  # where zeros are black pixels
        with pytest.raises(Undecodable):
            decode(data[: end // 2] + bytes(len(data) - end // 2), 40)


def test_crop_takes_the_centre_and_squash_takes_all() -> None:
    wide = Image.new("RGB", (160, 40), "red")
    wide.paste((0, 0, 255), (60, 0, 100, 40))
    data = encoded(wide, "PNG")
    assert (decode(data, 20, "crop")[:, :, 1:-1].amin(dim=(1, 2)) == torch.tensor([0, 0, 255])).all()
    squashed = decode(data, 20, "squash")
    assert torch.equal(squashed, expected(wide, 20))
    assert squashed[0, 10, 0] == 255


@pytest.mark.parametrize("fit", ["crop", "squash"])
@pytest.mark.parametrize("size", [(1, 1), (3, 70), (70, 3), (41, 40), (500, 90)])
def test_any_size_fits(size: tuple[int, int], fit: Fit) -> None:
    for format in "JPEG", "PNG":
        assert decode(encoded(picture(*size), format), 40, fit).shape == (3, 40, 40)


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP"])
@pytest.mark.parametrize("side", [(1, 16000), (16000, 1)])
def test_an_image_of_extreme_shape_takes_no_memory(format: str, side: tuple[int, int]) -> None:
    data = encoded(Image.new("RGB", side), format)
    assert len(data) < 6000
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(Undecodable, match=r"16000 .*data.max_pixels\); data.fit: squash takes any shape"):
        decode(data, 224)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak < 100_000, "KiB"
    assert decode(data, 224, "squash").shape == (3, 224, 224)


@pytest.mark.parametrize("format", ["PNG", "JPEG", "TIFF"])
def test_pixels_are_bounded_before_and_after_the_resize(format: str) -> None:
    data = encoded(picture(60, 40), format)
    assert decode(data, 40, max_pixels=2400).shape == (3, 40, 40)
    assert decode(data, 20, "squash", max_pixels=2400).shape == (3, 20, 20)
    for size, fit, limit in (40, "crop", 2399), (20, "squash", 2399), (80, "crop", 9599):
        with pytest.raises(Undecodable, match=f"possible: up to {limit}"):
            decode(data, size, fit, max_pixels=limit)


def test_a_jpeg_that_says_it_has_no_pixels_is_undecodable() -> None:
    data = KINDS["jpeg"]
    frame = data.index(b"\xff\xc0")
    with pytest.raises(Undecodable, match="0 pixels"):
        decode(data[: frame + 5] + b"\0\0" + data[frame + 7 :], 40)


def test_headers_are_read_without_decoding() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    sideways = encoded(picture(50, 30), exif=exif)
    assert upright_size(sideways) == (30, 50)
    assert upright_size(KINDS["png"]) == (40, 40)
    frame = jpeg_frame(sideways)
    assert frame is not None
    assert tuple(frame) == (50, 30, 3, True)
    assert jpeg_frame(KINDS["png"]) is None
    with pytest.raises(Undecodable):
        upright_size(b"")
