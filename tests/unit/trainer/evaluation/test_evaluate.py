"""Sanity metrics, pictures, and the exported encoder."""

import io
import json
from pathlib import Path

import pytest
import safetensors.torch
import timm
import torch
from PIL import Image

from trainer.contract import RunSpec
from trainer.contract.presets import TINY
from trainer.contract.records import Result, final_metrics
from trainer.data.batches import normalise, split_of
from trainer.data.decoded import load_images
from trainer.data.manifest import open_images
from trainer.evaluation import evaluate, sanity
from trainer.method.mcf import Mcf, build
from trainer.store.objects import DirectoryStore
from trainer.tracking import pictures
from trainer.weights import export

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def run(tiny_faces: Path, tmp_path_factory: pytest.TempPathFactory) -> RunSpec:
    labels = tmp_path_factory.mktemp("labels") / "labels.csv"
    names = sorted(file.name for file in tiny_faces.iterdir())
    labels.write_text("\n".join(["file,label", *(f"{name},{i % 2}" for i, name in enumerate(names))]))
    teacher, evaluation = {"source": "none"}, {"held_out": 12, "labels": str(labels)}
    return RunSpec.model_validate(
        {**TINY, "data": {"uri": str(tiny_faces)}, "teacher": teacher, "evaluation": evaluation}
    )


@pytest.fixture(scope="module")
def images(run: RunSpec) -> torch.Tensor:
    split = split_of(run)
    return normalise(load_images(open_images(run.data, split.manifest), split.held_out, run.input_size, "crop"))


class Oracle(Mcf):
    """Knows the image, and is off by a fixed amount of colour where patches are hidden."""

    def reconstruct(self, image_BCHW: torch.Tensor, noise_BL: torch.Tensor, num_visible: int) -> torch.Tensor:
        hidden = pictures.hidden_pixels(image_BCHW, noise_BL, num_visible)
        assert hidden.double().mean() == 0.75
        colour = pictures.denormalise(image_BCHW)
        off = torch.where(colour < 0.5, colour + 0.1, colour - 0.1)
        return torch.where(hidden, normalise((off * 255).round().to(torch.uint8)), torch.full_like(image_BCHW, 9.0))


def test_psnr_looks_at_hidden_patches_alone(run: RunSpec, images: torch.Tensor) -> None:
    assert sanity.psnr(run, Oracle(run), images) == pytest.approx(20.0, abs=0.2)


def test_sanity_metrics_are_the_same_for_every_seed_of_the_run_but_its_weights(
    run: RunSpec, images: torch.Tensor
) -> None:
    model = build(run)
    first = sanity.sanity_metrics(run, model, images)
    reseeded = run.model_copy(update={"seed": 7, "mask_ratio": 0.5})
    assert sanity.sanity_metrics(reseeded, model, images) == first
    assert [metric.name for metric in first] == ["sanity/psnr", "sanity/retrieval_top1"]
    assert sanity.sanity_metrics(run, model, images[:0]) == []


def test_retrieval_of_identical_images_is_chance_and_of_a_colour_code_is_perfect(run: RunSpec) -> None:
    model = build(run)
    code = torch.linspace(-2, 2, 10).view(10, 1, 1, 1).expand(10, 3, 64, 64)
    code = code * torch.tensor([1.0, -1.0, 0.3]).view(1, 3, 1, 1)
    cls = sanity.cls_features(model.encoder)
    assert sanity.retrieval(run, cls, code) >= 90
    assert sanity.retrieval(run, cls, torch.zeros(10, 3, 64, 64)) <= 20


def test_raw_pixels_find_a_view_by_what_both_views_show(run: RunSpec) -> None:
    angle = torch.arange(10) * (2 * torch.pi / 10)
    code = torch.stack([angle.cos(), angle.sin(), torch.zeros(10)], dim=1).view(10, 3, 1, 1).expand(10, 3, 64, 64)
    most_seen = run.model_copy(update={"evaluation": run.evaluation.model_copy(update={"mask_ratio": 0.1})})
    assert sanity.retrieval(most_seen, sanity.seen_pixels, code) == 100
    assert sanity.retrieval(most_seen, sanity.seen_pixels, torch.zeros(10, 3, 64, 64)) <= 20


def test_hidden_pixels_do_not_help_to_find_a_view(run: RunSpec, images: torch.Tensor) -> None:
    noise_NL, visible = sanity.held_out_noise(run, len(images)), run.visible_patches()
    hidden = pictures.hidden_pixels(images, noise_NL, visible)
    seen, other = (sanity.seen_pixels(image, noise_NL, visible) for image in (images, images.masked_fill(hidden, 9.0)))
    assert torch.equal(seen, other)
    assert not torch.equal(seen, sanity.seen_pixels(images.masked_fill(~hidden, 9.0), noise_NL, visible))


def test_a_panel_shows_image_masked_image_and_reconstruction(run: RunSpec, images: torch.Tensor) -> None:
    noise_NL = sanity.held_out_noise(run, len(images))
    masked = pictures.hide(images, noise_NL, run.visible_patches())
    with Image.open(io.BytesIO(pictures.panel(images, masked, images))) as panel:
        cell = 128 + pictures.GAP
        assert panel.size == (3 * cell - pictures.GAP, 8 * cell - pictures.GAP)
        columns = [panel.crop((x * cell, 0, x * cell + 128, 128)) for x in range(3)]
    assert columns[0].tobytes() == columns[2].tobytes() != columns[1].tobytes()
    grey = tuple(round(255 * mean) for mean in (0.485, 0.456, 0.406))
    greys = sum(count for count, colour in columns[1].getcolors(128 * 128) if colour == grey)
    assert greys / 128**2 == pytest.approx(0.75, abs=0.02)


def test_the_evaluation_has_every_number_of_the_result(run: RunSpec) -> None:
    split = split_of(run)
    found = evaluate.evaluate(run, build(run), split, open_images(run.data, split.manifest), CPU)
    assert found.probe is not None
    assert found.floors is not None
    # This model has not been trained, so it is its own floor: both are probed in the same way.
    assert found.floors.random_encoder == found.probe.value
    assert "36 of the images were trained on" in found.probe_note
    assert final_metrics(found).keys() == {
        "probe/accuracy", "probe/accuracy/low", "probe/accuracy/high", "floor/pixels", "floor/random_encoder",
        "sanity/psnr", "sanity/retrieval_top1", "floor/retrieval_pixels", "floor/retrieval_random_encoder",
    }  # fmt: skip
    logged = final_metrics(found)
    assert logged["floor/retrieval_random_encoder"] == logged["sanity/retrieval_top1"]
    bare = run.model_copy(update={"evaluation": run.evaluation.model_copy(update={"labels": None})})
    without = evaluate.evaluate(bare, build(run), split, open_images(run.data, split.manifest), CPU)
    assert (without.probe, without.floors) == (None, None)
    assert without.sanity == found.sanity


def test_the_export_is_a_plain_timm_vit(
    run: RunSpec, images: torch.Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, store = build(run), DirectoryStore(str(tmp_path))
    split = split_of(run)
    found = evaluate.evaluate(run, model, split, open_images(run.data, split.manifest), CPU)
    result = Result(
        steps=60, images_seen=3840, subset_size=36, subset_digest=split.train.digest,
        held_out_digest=split.held_out.digest, losses={"loss/total": 1.0}, export=export.export_address(store),
        **found._asdict(),
    )  # fmt: skip
    artifacts = export.export(run, model, result, store)

    folder = Path(result.export)
    monkeypatch.chdir(folder)
    namespace: dict[str, torch.nn.Module] = {}
    exec((folder / "README.md").read_text().split("```python\n")[1].split("```")[0], namespace)
    loaded = namespace["model"].eval()
    expected = model.encoder.features(images)
    torch.testing.assert_close(loaded.forward_features(images), expected, atol=1e-5, rtol=0)
    hub = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    torch.testing.assert_close(hub(images), expected[:, 0], atol=1e-5, rtol=0)
    assert hub.state_dict().keys() == safetensors.torch.load_file("model.safetensors").keys()
    pointer = json.loads(artifacts["export/export.json"])
    assert (pointer["uri"], pointer["spec_digest"]) == (str(folder), run.digest)
    assert "floor: untrained" in artifacts["export/README.md"].decode()
