import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from trainer import mcf, teachers, vit
from trainer.face_api import FaceApi, state_from_npz
from trainer.spec import ENCODERS, IMAGENET_MEAN, IMAGENET_STD, Encoder, RunSpec
from trainer.storage import open_store
from trainer.teachers import TeacherError, build

CPU = torch.device("cpu")
SHARED_TEACHERS = "teachers"


def with_teacher(run: RunSpec, **teacher: object) -> RunSpec:
    return RunSpec.model_validate({**run.model_dump(), "teacher": teacher})


def weights_of(run: RunSpec, path: Path, seed: int = 4) -> Path:
    encoder = vit.Encoder(run.encoder, run.input_size)
    vit.initialise(encoder, torch.Generator().manual_seed(seed))
    save_file(encoder.state_dict(), path)
    return path


def test_none_is_no_teacher(tiny_run: RunSpec) -> None:
    assert build(with_teacher(tiny_run, source="none"), CPU) is None


@pytest.mark.parametrize(
    ("arch", "taps", "shapes"),
    [
        ("as-encoder", [1, 3], [(65, 96), (65, 96)]),
        ("face-api", [0, 2], [(32 * 32, 32), (8 * 8, 128)]),
        ("vit_tiny_patch16_224", [2, 11], [(17, 192), (17, 192)]),
        ("vit_pwee_patch16_reg1_gap_256", [0], [(17, 256)]),
    ],
)
def test_every_architecture_gives_taps_is_frozen_and_passes_gradients_to_the_image(
    tiny_run: RunSpec, arch: str, taps: list[int], shapes: list[tuple[int, int]]
) -> None:
    teacher = build(with_teacher(tiny_run, source="random", arch=arch, taps=taps), CPU)
    image = torch.randn(2, 3, 64, 64, requires_grad=True)
    features = teacher(image)
    assert [tuple(tap.shape[1:]) for tap in features] == shapes
    sum(tap.square().mean() for tap in features).backward()
    assert image.grad.abs().sum() > 0
    assert not any(parameter.requires_grad for parameter in teacher.parameters())
    assert not teacher.training


def test_random_is_the_same_network_for_every_seed_of_the_run_and_not_the_initial_encoder(tiny_run: RunSpec) -> None:
    one, other = (build(with_teacher(run, source="random", arch="as-encoder", taps=[1]), CPU)
                  for run in (tiny_run, tiny_run.model_copy(update={"seed": 9})))  # fmt: skip
    another = build(with_teacher(tiny_run, source="random", arch="as-encoder", taps=[1], seed=1), CPU)
    weight = one.network.patch_embed.proj.weight
    assert torch.equal(weight, other.network.patch_embed.proj.weight)
    assert not torch.equal(weight, another.network.patch_embed.proj.weight)
    assert not torch.equal(weight, mcf.build(tiny_run).encoder.patch_embed.proj.weight)


def test_the_encoder_of_an_earlier_run_is_a_teacher(tiny_run: RunSpec, tmp_path: Path) -> None:
    path = weights_of(tiny_run, tmp_path / "model.safetensors")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    run = with_teacher(tiny_run, source=str(path), sha256=digest, arch="as-encoder", taps=[3])
    expected = vit.Encoder(run.encoder, 64)
    vit.initialise(expected, torch.Generator().manual_seed(4))
    image = torch.randn(2, 3, 64, 64)
    assert torch.allclose(build(run, CPU)(image)[0], expected.block_outputs(image, [3])[0], atol=1e-5)


def test_weights_may_live_in_s3(tiny_run: RunSpec, tmp_path: Path, s3_server: str) -> None:
    path = weights_of(tiny_run, tmp_path / "model.safetensors")
    open_store(s3_server).put_file("teacher.safetensors", path)
    run = with_teacher(tiny_run, source=f"{s3_server}/teacher.safetensors", arch="as-encoder", taps=[3])
    local = with_teacher(tiny_run, source=str(path), arch="as-encoder", taps=[3])
    image = torch.randn(1, 3, 64, 64)
    assert torch.equal(build(run, CPU)(image)[0], build(local, CPU)(image)[0])
    with pytest.raises(TeacherError, match="cannot be fetched"):
        build(with_teacher(tiny_run, source=f"{s3_server}/other.pt", arch="as-encoder", taps=[3]), CPU)


def test_moco_v3_keeps_the_base_encoder_and_its_own_position_code(
    tiny_run: RunSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = Encoder(**ENCODERS["vit-tiny8"])  # the mapping does not depend on the size
    monkeypatch.setitem(ENCODERS, "vit-b16", ENCODERS["vit-tiny8"])
    base, momentum = vit.Encoder(small, 64), vit.Encoder(small, 64)
    transposed = base.pos_embed[:, 1:].view(1, 8, 8, -1).transpose(1, 2).flatten(1, 2)
    base.pos_embed.data = torch.cat([base.pos_embed[:, :1] + 1, transposed], dim=1)
    state = {f"module.base_encoder.{name}": value for name, value in base.state_dict().items()}
    state |= {f"module.momentum_encoder.{name}": value for name, value in momentum.state_dict().items()}
    state |= {f"module.base_encoder.head.{i}.weight": torch.zeros(2) for i in (0, 3, 6)}
    torch.save({"epoch": 300, "state_dict": state, "optimizer": {}}, tmp_path / "vit-b-300ep.pth.tar")
    run = with_teacher(tiny_run, source=str(tmp_path / "vit-b-300ep.pth.tar"), taps=[0, 3])
    image = torch.randn(2, 3, 64, 64)
    for own, expected in zip(build(run, CPU)(image), base.block_outputs(image, [0, 3]), strict=True):
        assert torch.allclose(own, expected, atol=1e-5)


def test_a_timm_teacher_loads_its_weights_without_the_head(tiny_run: RunSpec, tmp_path: Path) -> None:
    import timm

    model = timm.create_model("vit_tiny_patch16_224", num_classes=10, img_size=64)
    torch.save({"model": model.state_dict()}, tmp_path / "weights.pth")
    run = with_teacher(tiny_run, source=str(tmp_path / "weights.pth"), arch="vit_tiny_patch16_224", taps=[11])
    image = torch.randn(1, 3, 64, 64)
    expected = model.eval().norm(build(run, CPU)(image)[0])
    assert torch.allclose(expected, model.forward_features(image), atol=1e-5)


@pytest.mark.parametrize(
    ("content", "teacher", "message"),
    [
        (None, {}, "there is no teacher weights file"),
        (b"no weights", {}, "cannot be read as weights"),
        ("good", {"sha256": "0" * 64}, "the spec says 000"),
        ("good", {"input_size": 32}, "does not fit as-encoder at 32"),
        ("good", {"arch": "vit_tiny_patch16_224"}, "does not fit"),
        ("good", {"arch": "vit_of_my_dreams"}, "timm cannot make"),
        ("good", {"arch": "resnet18"}, "timm cannot make|is no ViT"),
        ("good", {"arch": "face-api", "taps": [4]}, "face-api has blocks 0 to 3"),
    ],
)
def test_a_wrong_or_missing_file_is_an_error_and_never_a_random_teacher(
    tiny_run: RunSpec, tmp_path: Path, content: object, teacher: dict[str, object], message: str
) -> None:
    path = tmp_path / "model.safetensors"
    if content == "good":
        weights_of(tiny_run, path)
    elif isinstance(content, bytes):
        path.write_bytes(content)
    spec = {"source": str(path), "arch": "as-encoder", "taps": [1], **teacher}
    with pytest.raises(TeacherError, match=message):
        build(with_teacher(tiny_run, **spec), CPU)


def test_a_pickle_that_would_run_code_is_refused(tiny_run: RunSpec, tmp_path: Path) -> None:
    torch.save({"model": np.random.default_rng}, tmp_path / "evil.pth")
    with pytest.raises(TeacherError, match="cannot be read"):
        build(with_teacher(tiny_run, source=str(tmp_path / "evil.pth"), arch="as-encoder", taps=[1]), CPU)


def test_a_teacher_sees_the_image_in_its_own_statistics_and_size(tiny_run: RunSpec) -> None:
    run = with_teacher(
        tiny_run, source="random", arch="face-api", taps=[0], input_size=112
    )  # its statistics are not ImageNet's
    seen: list[torch.Tensor] = []
    teacher = build(run, CPU)
    teacher.network.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    teacher.network.block_outputs = lambda image, taps: seen.append(image)
    pixels = torch.rand(1, 3, 64, 64)
    mean, std = (torch.tensor(x).view(1, 3, 1, 1) for x in (IMAGENET_MEAN, IMAGENET_STD))
    teacher((pixels - mean) / std)
    own_mean = torch.tensor([122.782, 117.001, 104.298]).view(1, 3, 1, 1) / 255
    expected = torch.nn.functional.interpolate(pixels, size=112, mode="nearest") - own_mean
    assert torch.allclose(seen[0], expected, atol=1e-6)


def test_shrinking_for_a_teacher_leaves_no_pixel_without_a_gradient(tiny_run: RunSpec) -> None:
    run = with_teacher(tiny_run, source="random", arch="face-api", taps=[0], input_size=24)
    image = torch.randn(1, 3, 64, 64, requires_grad=True)
    build(run, CPU)(image)[0].square().sum().backward()
    assert (image.grad.abs().sum(dim=1)[:, 8:-8, 8:-8] > 0).all()


@pytest.mark.parametrize(
    ("file", "answers"),
    [
        ("facelm68.npz", [(0.1495, 0.30404), (0.07493, 0.26612), (0.04618, 0.23933), (0.0107, 0.09519)]),
        ("faceexpr.npz", [(0.2226, 0.45535), (0.27211, 0.83803), (0.67767, 2.76759), (0.43078, 3.82069)]),
    ],
)
def test_the_face_networks_give_the_known_answers(faces: Path, file: str, answers: list[tuple[float, float]]) -> None:
    network = FaceApi()
    with np.load(faces.parent / SHARED_TEACHERS / file) as arrays:
        network.load_state_dict(state_from_npz(arrays))
    with Image.open(faces / "images" / "f0000.jpg") as face:
        pixels = np.asarray(face.convert("RGB").resize((112, 112), Image.Resampling.BILINEAR), np.float32)
    image = torch.from_numpy((pixels - np.float32([122.782, 117.001, 104.298])) / 255).permute(2, 0, 1)[None]
    with torch.no_grad():
        stages = network.block_outputs(image, [0, 1, 2, 3])
    assert [tuple(stage.shape) for stage in stages] == [(1, 3136, 32), (1, 784, 64), (1, 196, 128), (1, 49, 256)]
    for stage, (mean, std) in zip(stages, answers, strict=True):
        assert stage.mean().item() == pytest.approx(mean, abs=1e-3)
        assert stage.std(correction=0).item() == pytest.approx(std, abs=2e-3)


def test_a_face_network_is_a_teacher_by_its_file(faces: Path, tiny_run: RunSpec) -> None:
    source = str(faces.parent / SHARED_TEACHERS / "facelm68.npz")
    run = with_teacher(tiny_run, source=source, arch="face-api", taps=[1, 3], input_size=112)
    assert [tuple(tap.shape) for tap in build(run, CPU)(torch.randn(2, 3, 64, 64))] == [(2, 784, 64), (2, 49, 256)]


def test_bf16_runs_compute_in_float32_on_a_cpu(tiny_run: RunSpec) -> None:
    assert teachers.compute_dtype(tiny_run.model_copy(update={"precision": "bf16"}), CPU) == torch.float32
