"""Weights to start from: every kind of file, by its names; what does not fit is an error and never a random start."""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import Tensor

from trainer.contract import RunSpec, SpecError
from trainer.method import mcf
from trainer.method.mcf import Mcf, Target
from trainer.resolve import check_and_resolve
from trainer.store.objects import StorageError
from trainer.weights.files import WeightsError
from trainer.weights.initial import start
from trainer.weights.published import to_published


def changed(run: RunSpec, **fields: Any) -> RunSpec:
    return RunSpec.model_validate({**run.model_dump(), **fields})


@pytest.fixture
def trained(tiny_run: RunSpec) -> tuple[Mcf, Target]:
    """A model other than the one the run draws, and a target that has gone its own way."""
    return mcf.build(changed(tiny_run, seed=7)), Target(tiny_run, mcf.build(changed(tiny_run, seed=8)))


def released(trained: tuple[Mcf, Target], folder: Path) -> Path:
    torch.save({"model": to_published(*trained), "epoch": 15}, folder / "checkpoint-15.pth")
    return folder / "checkpoint-15.pth"


def ours(trained: tuple[Mcf, Target], folder: Path) -> Path:
    model, target = (part.state_dict() for part in trained)
    torch.save({"model": model, "target": target, "optimizer": {}, "step": 3}, folder / "state.pt")
    return folder / "state.pt"


def exported(trained: tuple[Mcf, Target], folder: Path) -> Path:
    save_file(trained[0].encoder.state_dict(), folder / "model.safetensors")
    return folder / "model.safetensors"


def timms(trained: tuple[Mcf, Target], folder: Path) -> Path:
    vit = timm.models.vision_transformer.VisionTransformer(
        img_size=64, patch_size=8, embed_dim=96, depth=4, num_heads=3, num_classes=10
    )
    vit.load_state_dict(trained[0].encoder.state_dict(), strict=False)
    torch.save({"model": vit.state_dict()}, folder / "mae.pth")
    return folder / "mae.pth"


KINDS = [released, ours, exported, timms]


def same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> bool:
    return found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in found)


@pytest.mark.parametrize("kind", KINDS[:2])
def test_all_parts_start_as_the_file_has_them(
    kind: Callable[..., Path], trained: tuple[Mcf, Target], tiny_run: RunSpec, tmp_path: Path
) -> None:
    run = changed(tiny_run, initial={"source": str(kind(trained, tmp_path))})
    model, target = start(run)
    assert target
    assert same(model.state_dict(), trained[0].state_dict())
    assert same(target.state_dict(), trained[1].state_dict())
    without = changed(run, contrastive={"weight": 0})
    model, target = start(without)
    assert target is None
    assert same(model.decoder.state_dict(), trained[0].decoder.state_dict())


@pytest.mark.parametrize("kind", KINDS)
def test_the_encoder_alone_starts_from_the_file_and_its_target_as_its_copy(
    kind: Callable[..., Path], trained: tuple[Mcf, Target], tiny_run: RunSpec, tmp_path: Path
) -> None:
    run = changed(tiny_run, initial={"source": str(kind(trained, tmp_path)), "parts": "encoder"})
    model, target = start(run)
    drawn = mcf.build(tiny_run)
    assert target
    assert same(model.encoder.state_dict(), trained[0].encoder.state_dict())
    assert same(target.encoder.state_dict(), trained[0].encoder.state_dict())
    assert same(model.decoder.state_dict(), drawn.decoder.state_dict())
    assert same(model.projector.state_dict(), drawn.projector.state_dict())


def test_without_a_file_everything_is_drawn_from_the_seed(tiny_run: RunSpec) -> None:
    model, target = start(tiny_run)
    assert target
    assert same(model.state_dict(), mcf.build(tiny_run).state_dict())
    assert same(target.encoder.state_dict(), model.encoder.state_dict())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("depth", [3, 5])
def test_a_file_of_another_depth_is_refused_whichever_is_deeper(
    kind: Callable[..., Path], depth: int, trained: tuple[Mcf, Target], tiny_run: RunSpec, tmp_path: Path
) -> None:
    encoder = {**tiny_run.encoder.model_dump(), "depth": depth}
    initial = {"source": str(kind(trained, tmp_path)), "parts": "encoder"}
    with pytest.raises(WeightsError, match=r"initial.source .*(lacks|the checkpoint has|has \d+ weights that)"):
        start(changed(tiny_run, encoder=encoder, initial=initial, teacher="none"))


def test_what_is_missing_changed_or_something_else_is_named(
    trained: tuple[Mcf, Target], tiny_run: RunSpec, tmp_path: Path
) -> None:
    path = exported(trained, tmp_path)
    torch.save({"conv1.weight": torch.zeros(3)}, tmp_path / "resnet.pth")
    for initial, message in (
        ({"source": str(tmp_path / "gone.pth")}, "does not exist"),
        ({"source": str(path), "sha256": "0" * 64, "parts": "encoder"}, "it has sha256 .* the spec says 0000"),
        ({"source": str(path)}, "initial.parts: encoder starts from that"),
        ({"source": str(tmp_path / "resnet.pth")}, "neither an MCF checkpoint nor a ViT, but conv1.weight"),
    ):
        with pytest.raises(WeightsError, match=message):
            start(changed(tiny_run, initial=initial))


def test_a_store_that_is_away_does_not_end_the_run(tiny_run: RunSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    from trainer.store import objects

    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    objects._s3.cache_clear()
    with pytest.raises(StorageError):
        start(changed(tiny_run, initial={"source": "s3://bucket/state.pt"}))
    objects._s3.cache_clear()


def test_the_digest_of_the_file_is_filled_in_on_submission_and_a_missing_one_refused(
    trained: tuple[Mcf, Target], tiny_run: RunSpec, tmp_path: Path
) -> None:
    path = ours(trained, tmp_path)
    base = {**tiny_run.model_dump(mode="json"), "initial": {"source": str(path)}}
    [arm] = check_and_resolve({"name": "from-a-file", "base": base, "seeds": 1}).arms
    assert arm.runs[0].initial.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    base["initial"] = {"source": str(tmp_path / "gone.pt")}
    with pytest.raises(SpecError, match=r"initial\.source: .*gone\.pt"):
        check_and_resolve({"name": "from-a-file", "base": base, "seeds": 1})
