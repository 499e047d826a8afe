"""Teachers: every architecture and every kind of source in one test, then what only some of them promise."""

import hashlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch.nn.functional import interpolate

from tests.conftest import SHARED, free_port
from tests.unit.trainer.teacher_kinds import FILES, PLACES, File, Place, on_disk, plain_vit
from trainer import teachers
from trainer.contract import ENCODERS, IMAGENET_MEAN, IMAGENET_STD, RunSpec
from trainer.method import mcf
from trainer.store.objects import StorageError
from trainer.teachers import TeacherError, build
from trainer.weights.sources import FILES_ONLY, Library, UnknownWeights, digest_of, settled

CPU = torch.device("cpu")


def with_teacher(run: RunSpec, **teacher: object) -> RunSpec:
    return RunSpec.model_validate({**run.model_dump(), "teacher": teacher})


def built(run: RunSpec, library: Library = FILES_ONLY) -> teachers.Teacher:
    """As the service and then a worker do it."""
    made = build(run.model_copy(update={"teacher": settled(run.teacher, library)}), CPU)
    assert made is not None
    return made


@pytest.mark.parametrize(
    ("make", "put"),
    [(make, on_disk) for make in FILES] + [(plain_vit, put) for put in PLACES[1:]],
    ids=lambda part: part.__name__,
)
def test_every_teacher_loads_is_frozen_has_the_right_taps_and_only_from_the_file_it_should(
    make: Callable[[Path], File], put: Callable[[File, pytest.FixtureRequest], Place], tiny_run: RunSpec,
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest,
) -> None:  # fmt: skip
    monkeypatch.setitem(ENCODERS, "vit-b16", ENCODERS["vit-tiny8"])  # the mappings do not depend on the size
    file = make(tmp_path)
    place = put(file, request)
    asked = {"source": place.source, "arch": file.arch, "taps": file.taps}
    named = with_teacher(tiny_run, **asked)
    digest = digest_of(settled(named.teacher, place.library).source, place.library)
    run = with_teacher(tiny_run, **asked, sha256=digest)

    teacher = built(run, place.library)
    image = torch.randn(2, 3, 64, 64, requires_grad=True)
    taps = teacher(image)
    assert [tuple(tap.shape[1:]) for tap in taps] == file.shapes
    for tap, expected in zip(taps, file.outputs(image.detach(), file.taps), strict=True):
        assert torch.allclose(tap, expected, atol=1e-5, rtol=1e-4)
    sum(tap.square().mean() for tap in taps).backward()
    assert (image.grad != 0).all()
    assert not any(weight.requires_grad or weight.grad is not None for weight in teacher.parameters())
    assert not any(part.training for part in teacher.modules())

    data = bytearray(place.weights.read_bytes())
    data[len(data) // 2] ^= 1
    place.replace(bytes(data))
    with pytest.raises(TeacherError, match=f"has sha256 {hashlib.sha256(data).hexdigest()}"):
        built(run, place.library)
    with pytest.raises((TeacherError, UnknownWeights)):
        built(with_teacher(tiny_run, **asked | {"source": place.missing}), place.library)


def test_none_is_no_teacher(tiny_run: RunSpec) -> None:
    assert build(with_teacher(tiny_run, source="none"), CPU) is None


@pytest.mark.parametrize(
    ("arch", "taps", "shapes"),
    [
        ("as-encoder", [1, 3], [(65, 96), (65, 96)]),
        ("face-api", [0, 2], [(32 * 32, 32), (8 * 8, 128)]),
        ("vit_pwee_patch16_reg1_gap_256", [0], [(17, 256)]),
    ],
)
def test_random_is_a_control_with_weights_of_its_own(
    tiny_run: RunSpec, arch: str, taps: list[int], shapes: list[tuple[int, int]]
) -> None:
    """The same for every seed of the run, another for another teacher.seed, and never the encoder as it was drawn."""
    asked = {"source": "random", "arch": arch, "taps": taps}
    one, other, another = (
        build(run, CPU)
        for run in (
            with_teacher(tiny_run, **asked),
            with_teacher(tiny_run.model_copy(update={"seed": 9}), **asked),
            with_teacher(tiny_run, **asked, seed=1),
        )
    )
    image = torch.randn(2, 3, 64, 64)
    assert [tuple(tap.shape[1:]) for tap in one(image)] == shapes
    assert torch.equal(one(image)[0], other(image)[0])
    assert not torch.equal(one(image)[0], another(image)[0])
    assert one.identity == other.identity != another.identity
    if arch == "as-encoder":
        drawn = mcf.build(tiny_run).encoder.patch_embed.proj.weight
        assert not torch.equal(one.network.patch_embed.proj.weight, drawn)


@pytest.mark.parametrize(
    ("content", "teacher", "message"),
    [
        (b"no weights", {}, "cannot be read as weights"),
        ("good", {"input_size": 32}, r"pos_embed is \[1, 65, 96\] and should be \[1, 17, 96\] .teacher.input_size"),
        ("good", {"arch": "vit_tiny_patch16_224"}, "does not fit vit_tiny_patch16_224: it lacks blocks"),
        ("good", {"arch": "vit_of_my_dreams"}, "timm cannot make"),
        ("good", {"arch": "resnet18"}, "timm cannot make|is no ViT"),
        ("good", {"arch": "vit_tiny_patch16_224", "taps": [12]}, "has blocks 0 to 11"),
        ("good", {"source": "run:r0123"}, "a name that the service looks up"),
        ("good", {"source": "mlflow:models:/faces/3"}, "without an MLflow server"),
        ("no position code", {}, "it lacks pos_embed"),
        ("half", {}, "cannot be read as weights"),
    ],
)
def test_what_does_not_fit_is_an_error_that_says_why_and_never_a_random_teacher(
    tiny_run: RunSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: object, teacher: dict[str, object],
    message: str,
) -> None:  # fmt: skip
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    path = plain_vit(tmp_path).path
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content == "half":
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    elif content == "no position code":
        state = load_file(path)
        save_file({name: value for name, value in state.items() if name != "pos_embed"}, path)
    with pytest.raises(TeacherError, match=message):
        build(with_teacher(tiny_run, **{"source": str(path), "arch": "as-encoder", "taps": [1], **teacher}), CPU)


def test_a_store_that_is_away_does_not_end_the_run(tiny_run: RunSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{free_port()}")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(StorageError, match="MLflow at http"):
        build(with_teacher(tiny_run, source="mlflow:models:/faces/3", arch="as-encoder", taps=[1]), CPU)


def test_a_pickle_that_would_run_code_is_refused(tiny_run: RunSpec, tmp_path: Path) -> None:
    torch.save({"model": np.random.default_rng}, tmp_path / "evil.pth")
    with pytest.raises(TeacherError, match="cannot be read"):
        build(with_teacher(tiny_run, source=str(tmp_path / "evil.pth"), arch="as-encoder", taps=[1]), CPU)


def seen_by(run: RunSpec, image: torch.Tensor) -> torch.Tensor:
    """What reaches the network."""
    seen: list[torch.Tensor] = []
    teacher = build(run, CPU)
    teacher.network.block_outputs = lambda image, taps: seen.append(image) or []
    teacher(image)
    return seen[0]


def test_a_teacher_sees_the_image_in_its_own_statistics(tiny_run: RunSpec) -> None:
    pixels = torch.rand(1, 3, 64, 64)
    mean, std = (torch.tensor(x).view(1, 3, 1, 1) for x in (IMAGENET_MEAN, IMAGENET_STD))
    face_api = with_teacher(tiny_run, source="random", arch="face-api", taps=[0])  # brings statistics of its own
    clip = with_teacher(tiny_run, source="random", arch="as-encoder", taps=[0], mean=(0.48, 0.46, 0.41), std=[0.27] * 3)
    expected = {
        face_api: pixels - torch.tensor([122.782, 117.001, 104.298]).view(1, 3, 1, 1) / 255,
        clip: (pixels - torch.tensor([0.48, 0.46, 0.41]).view(1, 3, 1, 1)) / 0.27,
    }
    for run, wanted in expected.items():
        assert torch.allclose(seen_by(run, (pixels - mean) / std), wanted, atol=1e-5)


@pytest.mark.parametrize("size", [24, 64, 112])
def test_resizing_is_nearest_in_both_directions_as_published_and_bilinear_on_request(
    tiny_run: RunSpec, size: int
) -> None:
    asked = {"source": "random", "arch": "as-encoder", "taps": [0], "input_size": size}
    image = torch.randn(2, 3, 64, 64)
    # Pixel y of the result is pixel floor(y * 64 / size) of the image.
    kept = torch.arange(size) * 64 // size
    nearest, bilinear = (seen_by(with_teacher(tiny_run, **asked, resize=how), image) for how in ("nearest", "bilinear"))
    assert torch.allclose(nearest, image[:, :, kept][:, :, :, kept], atol=1e-6)
    assert torch.allclose(nearest, interpolate(image, size=size, mode="nearest"), atol=1e-6)
    assert torch.allclose(bilinear, nearest) == (size == 64)


@pytest.mark.parametrize(("resize", "share"), [("nearest", 24**2 / 64**2), ("bilinear", 1.0)])
def test_only_bilinear_shrinking_leaves_no_pixel_without_a_gradient(
    tiny_run: RunSpec, resize: str, share: float
) -> None:
    asked = {"source": "random", "arch": "as-encoder", "taps": [0], "input_size": 24, "resize": resize}
    image = torch.randn(1, 3, 64, 64, requires_grad=True)
    build(with_teacher(tiny_run, **asked), CPU)(image)[0].square().sum().backward()
    assert (image.grad != 0).float().mean().item() == pytest.approx(share, abs=1e-3)


def test_cls_and_registers_are_compared_unless_only_patches_are_asked_for(tiny_run: RunSpec) -> None:
    prefixes = {"as-encoder": 1, "vit_pwee_patch16_reg1_gap_256": 1, "face-api": 0}
    for arch, prefix in prefixes.items():
        asked = {"source": "random", "arch": arch, "taps": [0]}
        image = torch.randn(1, 3, 64, 64)
        [tokens], [patches] = (
            build(with_teacher(tiny_run, **asked, tokens=tokens), CPU)(image) for tokens in ("all", "patches")
        )
        assert torch.equal(patches, tokens[:, prefix:])


def test_the_identity_changes_with_everything_that_changes_the_features_and_with_nothing_else(
    tiny_run: RunSpec, tmp_path: Path
) -> None:
    path = plain_vit(tmp_path).path
    (tmp_path / "copy.safetensors").write_bytes(path.read_bytes())
    asked = {"source": str(path), "arch": "as-encoder", "taps": [1]}
    base = with_teacher(tiny_run, **asked)
    same = [
        with_teacher(tiny_run, **asked | {"source": f"{tmp_path}/copy.safetensors"}),
        with_teacher(tiny_run, **asked, weight=3.0, normalise="channels"),
    ]
    other = [
        with_teacher(tiny_run, **asked | change)
        for change in (
            {"taps": [2]}, {"tokens": "patches"}, {"resize": "bilinear"}, {"mean": [0.5] * 3}, {"std": [0.5] * 3},
            {"source": "random"}, {"source": "random", "seed": 1}, {"source": "random", "input_size": 32},
            {"source": "random", "arch": "vit-96x4x6-p8"},
        )
    ]  # fmt: skip
    other.append(base.model_copy(update={"precision": "float64"}))
    save_file({name: value + 1 for name, value in load_file(path).items()}, tmp_path / "other.safetensors")
    other.append(with_teacher(tiny_run, **asked | {"source": f"{tmp_path}/other.safetensors"}))
    name = built(base).identity
    assert {built(run).identity for run in same} == {name}
    assert len({name, *(built(run).identity for run in other)}) == 1 + len(other)


@pytest.mark.parametrize(
    ("file", "answers"),
    [
        ("facelm68.npz", [(0.1495, 0.30404), (0.07493, 0.26612), (0.04618, 0.23933), (0.0107, 0.09519)]),
        ("faceexpr.npz", [(0.2226, 0.45535), (0.27211, 0.83803), (0.67767, 2.76759), (0.43078, 3.82069)]),
    ],
)
def test_the_face_networks_give_the_known_answers(
    faces: Path, tiny_run: RunSpec, file: str, answers: list[tuple[float, float]]
) -> None:
    source = SHARED / "data/teachers" / file
    if not source.is_file():
        pytest.skip(f"needs the shared face networks, which are not at {source.parent}")
    teacher = build(with_teacher(tiny_run, source=str(source), arch="face-api", taps=[0, 1, 2, 3], input_size=112), CPU)
    with Image.open(faces / "images/f0000.jpg") as face:
        pixels = np.asarray(face.convert("RGB").resize((112, 112), Image.Resampling.BILINEAR), np.float32) / 255
    normalised = (pixels - np.float32(IMAGENET_MEAN)) / np.float32(IMAGENET_STD)
    stages = teacher(torch.from_numpy(normalised).permute(2, 0, 1)[None])
    assert [tuple(stage.shape) for stage in stages] == [(1, 3136, 32), (1, 784, 64), (1, 196, 128), (1, 49, 256)]
    for stage, (mean, std) in zip(stages, answers, strict=True):
        assert stage.mean().item() == pytest.approx(mean, abs=6e-4)
        assert stage.std(correction=0).item() == pytest.approx(std, abs=2e-3)


def test_the_real_moco_v3_architecture_is_the_default_and_carries_no_weights_into_checkpoints(
    tiny_run: RunSpec,
) -> None:
    run = RunSpec.model_validate({"data": tiny_run.data.model_dump(), "teacher": "random"})
    teacher = build(run, CPU)
    assert [tuple(tap.shape) for tap in teacher(torch.zeros(1, 3, 224, 224))] == [(1, 197, 768)] * 4
    assert sum(weight.numel() for weight in teacher.parameters()) == 85_798_656


def test_bf16_runs_compute_in_float32_on_a_cpu_and_keep_one_copy_of_the_weights(tiny_run: RunSpec) -> None:
    run = tiny_run.model_copy(update={"precision": "bf16"})
    assert teachers.compute_dtype(run, CPU) == torch.float32
    assert teachers.compute_dtype(run, torch.device("cuda")) == torch.bfloat16
    double = build(tiny_run.model_copy(update={"precision": "float64"}), CPU)
    assert {weight.dtype for weight in double.parameters()} == {torch.float64}
