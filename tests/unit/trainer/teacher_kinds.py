"""Every kind of teacher file, with its features by other means, and every kind of place it can be in."""

import argparse
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import timm
import torch
from mlflow import MlflowClient
from safetensors.torch import load_file, save_file
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor
from torch.nn.functional import conv2d, pad, relu

from service.db import Database
from service.experiments.shelf import Shelf
from service.settings import Settings
from service.states import RunState
from service.tables import Experiment, Run
from tests.unit.service.bench import result
from trainer.contract import IMAGENET_MEAN, IMAGENET_STD
from trainer.method import mcf
from trainer.store.objects import open_store
from trainer.weights import export
from trainer.weights.mlflow_files import MlflowFiles
from trainer.weights.sources import FILES_ONLY, Library

TINY_VIT = {"img_size": 64, "patch_size": 8, "embed_dim": 96, "depth": 4, "num_heads": 3, "num_classes": 0}
Taps = Callable[[Tensor, list[int]], list[Tensor]]


class File(NamedTuple):
    path: Path
    arch: str
    taps: list[int]
    shapes: list[tuple[int, int]]
    outputs: Taps


def drawn(model: Any) -> Any:
    """Weights that no rule would give again: a position code that is regenerated shows."""
    torch.manual_seed(4)
    for weight in model.parameters():
        torch.nn.init.normal_(weight, std=0.05)
    return model.eval()


def hooked(model: Any) -> Taps:
    """Block outputs of a timm model, caught on the way."""

    def outputs(image: Tensor, taps: list[int]) -> list[Tensor]:
        caught: list[Tensor] = []
        hooks = [model.blocks[tap].register_forward_hook(lambda *args: caught.append(args[2])) for tap in taps]
        model.forward_features(image)
        for hook in hooks:
            hook.remove()
        return caught

    return outputs


def plain_vit(folder: Path) -> File:
    model = drawn(VisionTransformer(**TINY_VIT))
    save_file(model.state_dict(), folder / "model.safetensors")
    return File(folder / "model.safetensors", "as-encoder", [1, 3], [(65, 96)] * 2, hooked(model))


def vit_by_its_sizes(folder: Path) -> File:
    model = drawn(VisionTransformer(**TINY_VIT | {"embed_dim": 64, "depth": 2, "num_heads": 4, "patch_size": 16}))
    save_file(model.state_dict(), folder / "model.safetensors")
    return File(folder / "model.safetensors", "vit-64x2x4-p16", [0, 1], [(17, 64)] * 2, hooked(model))


def moco_v3(folder: Path) -> File:
    base, momentum = drawn(VisionTransformer(**TINY_VIT)), VisionTransformer(**TINY_VIT)
    state = {f"module.base_encoder.{name}": value for name, value in base.state_dict().items()}
    state |= {f"module.momentum_encoder.{name}": value for name, value in momentum.state_dict().items()}
    state |= {f"module.base_encoder.head.{i}.weight": torch.zeros(2) for i in (0, 3, 6)}
    path = folder / "vit-b-300ep.pth.tar"
    torch.save({"epoch": 300, "arch": "vit_base", "state_dict": state, "optimizer": {"state": {}}}, path)
    return File(path, "mocov3-vit-b16", [0, 3], [(65, 96)] * 2, hooked(base))


def inside_mcf(folder: Path, prefix: str = "") -> File:
    online, teacher = VisionTransformer(**TINY_VIT), drawn(VisionTransformer(**TINY_VIT | {"num_classes": 10}))
    state = {f"{prefix}online_encoder.{name}": value for name, value in online.state_dict().items()}
    state |= {f"{prefix}perceptual_loss.model.{name}": value for name, value in teacher.state_dict().items()}
    args = argparse.Namespace(model="mae_vit_base_patch16", lr=2.4e-3, resume="")
    path = folder / "checkpoint-15.pth"
    torch.save({"model": state, "optimizer": {}, "epoch": 15, "scaler": {"scale": 65536.0}, "args": args}, path)
    return File(path, "mocov3-vit-b16", [0, 3], [(65, 96)] * 2, hooked(teacher))


def inside_wrapped_mcf(folder: Path) -> File:
    return inside_mcf(folder, "module.")


def timm_vit(folder: Path) -> File:
    model = drawn(timm.create_model("vit_tiny_patch16_224", num_classes=10, img_size=64))
    torch.save({"model": model.state_dict()}, folder / "weights.pth")
    return File(folder / "weights.pth", "vit_tiny_patch16_224", [2, 11], [(17, 192)] * 2, hooked(model))


def timm_vit_with_registers_and_pooling(folder: Path) -> File:
    name = "vit_pwee_patch16_reg1_gap_256"
    model = drawn(timm.create_model(name, num_classes=10, img_size=64))
    save_file(model.state_dict(), folder / "model.safetensors")
    return File(folder / "model.safetensors", name, [0, 4], [(17, 256)] * 2, hooked(model))


def face_network(folder: Path) -> File:
    rng = np.random.default_rng(4)
    arrays, before = {}, 3
    for stage, after in enumerate((32, 64, 128, 256)):
        for conv in range(4):
            name, inputs = f"dense{stage}.conv{conv}", before if conv == 0 else after
            shapes = {"depthwise_filter": (3, 3, inputs, 1), "pointwise_filter": (1, 1, inputs, after)}
            if name == "dense0.conv0":
                shapes = {"filters": (3, 3, 3, 32)}
            for part, shape in (shapes | {"bias": (after,)}).items():
                arrays[f"{name}.{part}"] = (rng.standard_normal(shape) / np.sqrt(inputs)).astype(np.float16)
        before = after
    np.savez(folder / "face.npz", **arrays)
    shapes_seen = [(32 * 32, 32), (8 * 8, 128)]
    return File(folder / "face.npz", "face-api", [0, 2], shapes_seen, lambda image, taps: stages(arrays, image, taps))


def stages(arrays: dict[str, np.ndarray], image: Tensor, taps: list[int]) -> list[Tensor]:
    """The face network from its description in TensorFlow's terms, in pixels of 0..255."""
    weights = {name: torch.from_numpy(value.astype(np.float32)) for name, value in arrays.items()}

    def conv(x: Tensor, name: str, stride: int) -> Tensor:
        # "same": 224 pixels to 112 at stride 2 need one more row and column, at the bottom and the right.
        x = pad(x, (0, 1, 0, 1) if stride == 2 else (1, 1, 1, 1))
        if name == "dense0.conv0":
            filters = weights[f"{name}.filters"].permute(3, 2, 0, 1)
            return conv2d(x, filters, weights[f"{name}.bias"], stride)
        deep = weights[f"{name}.depthwise_filter"].permute(2, 3, 0, 1)
        x = conv2d(x, deep, stride=stride, groups=x.shape[1])
        return conv2d(x, weights[f"{name}.pointwise_filter"].permute(3, 2, 0, 1), weights[f"{name}.bias"])

    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_STD))
    x = ((image * std + mean) * 255 - torch.tensor([122.782, 117.001, 104.298]).view(1, 3, 1, 1)) / 255
    found = []
    for stage in range(4):
        o1 = relu(conv(x, f"dense{stage}.conv0", 2))
        o2 = conv(o1, f"dense{stage}.conv1", 1)
        o3 = conv(relu(o1 + o2), f"dense{stage}.conv2", 1)
        o4 = conv(relu(o1 + o2 + o3), f"dense{stage}.conv3", 1)
        x = relu(o1 + o2 + o3 + o4)
        found.append(x.flatten(2).transpose(1, 2))
    return [found[tap] for tap in taps]


# ---------------------------------------------------------------- places


class Place(NamedTuple):
    source: str
    missing: str
    """An address beside it where nothing is."""
    replace: Callable[[bytes], object]
    """Put other bytes where the weights are."""
    weights: Path
    """What is there now."""
    library: Library = FILES_ONLY


def on_disk(file: File, request: pytest.FixtureRequest) -> Place:
    return Place(str(file.path), f"{file.path}.gone", file.path.write_bytes, file.path)


def in_s3(file: File, request: pytest.FixtureRequest) -> Place:
    store = open_store(request.getfixturevalue("s3_server"))
    store.put_file(f"teachers/{file.path.name}", file.path)
    address = f"{store.uri}/teachers/{file.path.name}"
    return Place(address, f"{address}.gone", lambda data: store.put(f"teachers/{file.path.name}", data), file.path)


def in_an_mlflow_run(file: File, request: pytest.FixtureRequest) -> Place:
    client, run = mlflow_run(request)
    client.log_artifact(run, str(file.path), "weights")

    def replace(data: bytes) -> None:
        file.path.write_bytes(data)
        client.log_artifact(run, str(file.path), "weights")

    return Place(
        f"mlflow:runs:/{run}/weights", f"mlflow:runs:/{run}/nothing", replace, file.path, mlflow_files(request)
    )


def in_an_mlflow_model(file: File, request: pytest.FixtureRequest) -> Place:
    client, run = mlflow_run(request)
    client.log_artifact(run, str(file.path), "weights")
    name = f"faces-{run[:6]}"
    client.create_registered_model(name)
    version = client.create_model_version(name, f"{client.get_run(run).info.artifact_uri}/weights", run).version
    client.set_registered_model_alias(name, "best", version)

    def replace(data: bytes) -> None:
        file.path.write_bytes(data)
        client.log_artifact(run, str(file.path), "weights")

    return Place(f"mlflow:models:/{name}/@best", f"mlflow:models:/{name}/7", replace, file.path, mlflow_files(request))


def of_an_earlier_run(file: File, request: pytest.FixtureRequest) -> Place:
    folder, _, weights = exported(file, request)
    db = Database(f"sqlite:///{folder}/mcf.db")
    db.migrate()
    now, common = datetime.now(UTC), {"spec": {}, "next_check_at": datetime.now(UTC)}
    with db.write() as session:
        home = Experiment(
            id="e1", name="earlier", created_at=now, request_digest="", concurrency=1, priority=0, **common
        )
        session.add(home)
        session.flush()
        for id, state in ("r0123456789ab", RunState.SUCCEEDED), ("r0200000000", RunState.RUNNING):
            session.add(
                Run(id=id, digest=id, placement={}, home_id="e1", created_at=now, state=state, total_steps=1, **common)
            )
    shelf = Shelf(db, Settings(work_dir=folder))
    return Place("run:r0123", "run:r02", weights.write_bytes, weights, shelf)


def pointed_to_by_mlflow(file: File, request: pytest.FixtureRequest) -> Place:
    _, artifacts, weights = exported(file, request)
    client, run = mlflow_run(request)
    for name, data in artifacts.items():
        path = file.path.parent / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(data)
        client.log_artifact(run, str(path), "export")
    return Place(
        f"mlflow:runs:/{run}", "mlflow:runs:/0123456789abcdef", weights.write_bytes, weights,
        mlflow_files(request),
    )  # fmt: skip


def exported(file: File, request: pytest.FixtureRequest) -> tuple[Path, dict[str, bytes], Path]:
    """The platform's own export of a run whose encoder has the file's weights: folder, what MLflow gets, weights."""
    run = request.getfixturevalue("tiny_run")
    model = mcf.build(run)
    model.encoder.load_state_dict(load_file(file.path))
    folder = file.path.parent
    store = open_store(f"{folder}/store/runs/r0123456789ab")
    artifacts = export.export(run, model, result(run, export=export.export_address(store)), store)
    return folder, artifacts, folder / "store/runs/r0123456789ab/export/model.safetensors"


def mlflow_run(request: pytest.FixtureRequest) -> tuple[Any, str]:
    server = request.getfixturevalue("mlflow_server")
    client = MlflowClient(server, registry_uri=server)
    return client, client.create_run("0").info.run_id


def mlflow_files(request: pytest.FixtureRequest) -> MlflowFiles:
    server = request.getfixturevalue("mlflow_server")
    request.getfixturevalue("monkeypatch").setenv("MLFLOW_TRACKING_URI", server)
    return MlflowFiles()


FILES = [
    plain_vit, vit_by_its_sizes, moco_v3, inside_mcf, inside_wrapped_mcf, timm_vit, timm_vit_with_registers_and_pooling,
    face_network,
]  # fmt: skip
PLACES = [on_disk, in_s3, in_an_mlflow_run, in_an_mlflow_model, of_an_earlier_run, pointed_to_by_mlflow]
