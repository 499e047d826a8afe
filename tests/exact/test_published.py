"""Checkpoints of the released code: read, written, and never half understood."""

import argparse
import os
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.exact.reference import Shape
from tests.exact.released import draw_checkpoint
from trainer import teachers
from trainer.contract import RunSpec
from trainer.contract.records import SPEC, STATE, checkpoint_name
from trainer.method.mcf import Mcf
from trainer.method.vit import Encoder
from trainer.state.checkpoint import CheckpointStore, write_state
from trainer.store.objects import open_store
from trainer.weights.files import WeightsError
from trainer.weights.published import (
    TEACHER,
    load_published,
    main,
    newest_state,
    published_name,
    published_parameters,
    read_published,
    spec_of_published,
    to_published,
)  # fmt: skip

SHAPE = Shape(
    image=32, patch=8, width=24, depth=2, heads=2, decoder_width=16, decoder_depth=2, decoder_heads=4,
    hidden=20, dim=12, teacher_image=32, taps=(0, 1),
)  # fmt: skip


@pytest.fixture
def state() -> dict[str, Tensor]:
    return draw_checkpoint(SHAPE, seed=0)


def run_of(state: dict[str, Tensor], **fields: object) -> RunSpec:
    shown = spec_of_published(state, encoder_heads=2, decoder_heads=4)
    return RunSpec.model_validate({**shown, "data": {"uri": "/none"}, "teacher": "none", **fields})


def released(state: dict[str, Tensor], path: Path, prefix: str = "") -> Path:
    """A file as the released script writes it."""
    args = argparse.Namespace(model="mae_vit_base_patch16_dec512d8b", blr=1.5e-4, resume="", norm_pix_loss=False)
    model = {prefix + name: value for name, value in state.items()}
    file = {"model": model, "optimizer": {"state": {}}, "epoch": 15, "scaler": {"scale": 65536.0}, "args": args}
    torch.save(file, path)
    return path


@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize("precision", ["float32", "float64"])
def test_a_released_checkpoint_goes_in_and_out_bit_for_bit(
    state: dict[str, Tensor], tmp_path: Path, prefix: str, precision: str
) -> None:
    found = read_published(released(state, tmp_path / "checkpoint-15.pth", prefix))
    model, target = load_published(found, run_of(found, precision=precision))
    again = to_published(model, target, like=found)
    assert list(again) == list(state)
    assert all(again[name].dtype == value.dtype and torch.equal(again[name], value) for name, value in state.items())


def test_every_weight_of_ours_comes_from_the_file(state: dict[str, Tensor]) -> None:
    model, target = load_published(state, run_of(state))
    for name, value in published_parameters(model, target).items():
        assert torch.equal(value, state[name]), name


def test_an_export_has_exactly_the_released_names_and_initial_statistics(
    state: dict[str, Tensor], tmp_path: Path
) -> None:
    file = released(state, tmp_path / "checkpoint.pth")
    teacher = {"source": str(file), "arch": "as-encoder", "taps": [1]}
    run = run_of(state, teacher=teacher)
    model, target = load_published(state, run)
    built = teachers.build(run, torch.device("cpu"))
    assert built
    found = to_published(model, target, built.network)
    assert found.keys() == state.keys()
    assert {name: value.shape for name, value in found.items()} == {n: v.shape for n, v in state.items()}
    assert torch.equal(found[f"{TEACHER}blocks.1.mlp.fc2.weight"], state[f"{TEACHER}blocks.1.mlp.fc2.weight"])
    assert torch.equal(found["target_encoder.fc.4.running_var"], torch.ones(12))
    assert found["predictor.1.num_batches_tracked"].dtype == torch.int64


def test_position_codes_come_from_the_file_and_not_from_the_formula(state: dict[str, Tensor]) -> None:
    state["online_encoder.pos_embed"] = torch.randn(1, 17, 24)
    model, _ = load_published(state, run_of(state))
    assert torch.equal(model.encoder.pos_embed, state["online_encoder.pos_embed"])


def test_without_contrastive_branch_the_rest_loads(state: dict[str, Tensor]) -> None:
    model, target = load_published(state, run_of(state, contrastive={"weight": 0}))
    assert target is None
    assert torch.equal(model.decoder.predict.weight, state["decoder_pred.weight"])
    assert torch.equal(to_published(model, None, like=state)["predictor.0.weight"], state["predictor.0.weight"])


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"decoder": "16x4x4"}, "decoder.depth is 4, the checkpoint has 2"),
        ({"decoder": "32x2x4"}, "decoder.width is 32, the checkpoint has 16"),
        ({"encoder": {"width": 24, "depth": 1, "heads": 2, "patch": 8}}, "encoder.depth is 1, the checkpoint has 2"),
        ({"encoder": {"width": 24, "depth": 2, "heads": 2, "patch": 4}}, "encoder.patch is 4, the checkpoint has 8"),
        ({"input_size": 64}, "input_size is 64, the checkpoint has 32"),
        ({"contrastive": {"hidden": 20, "dim": 8}}, "contrastive.dim is 8, the checkpoint has 12"),
    ],
)
def test_a_spec_of_another_model_is_told_which_field_would_fit(
    state: dict[str, Tensor], fields: dict[str, object], message: str
) -> None:
    with pytest.raises(WeightsError, match=message):
        load_published(state, run_of(state, **fields))


def test_a_checkpoint_with_a_gap_or_with_something_else_is_refused(state: dict[str, Tensor]) -> None:
    run = run_of(state)
    more = {**state, "online_encoder.fc_norm.weight": torch.ones(24)}
    with pytest.raises(WeightsError, match=r"weights MCF does not have, such as online_encoder\.fc_norm"):
        load_published(more, run)
    for gone in "mask_token", "target_encoder.fc.0.weight", "decoder_blocks.1.attn.qkv.bias":
        with pytest.raises(WeightsError, match="lacks"):
            load_published({name: value for name, value in state.items() if name != gone}, run)


def test_files_that_are_no_released_checkpoint_are_refused(state: dict[str, Tensor], tmp_path: Path) -> None:
    torch.save({"model": {"cls_token": torch.zeros(1)}}, tmp_path / "mae.pth")
    torch.save({"model": state, "args": argparse.Namespace(run=os.system)}, tmp_path / "evil.pth")
    (tmp_path / "half.pth").write_bytes(released(state, tmp_path / "whole.pth").read_bytes()[:5000])
    for name, message in ("mae", "is no MCF checkpoint"), ("evil", "cannot be read"), ("half", "cannot be read"):
        with pytest.raises(WeightsError, match=message):
            read_published(tmp_path / f"{name}.pth")
    with pytest.raises(WeightsError, match="there is no weights file"):
        read_published(tmp_path / "gone.pth")


def test_a_real_b16_has_the_published_names_and_number_of_values() -> None:
    run = RunSpec.model_validate({"data": {"uri": "/none"}, "teacher": "none"})
    with torch.device("meta"):
        model, teacher = Mcf(run), Encoder(run.encoder, run.input_size)
    online = {published_name(name): value for name, value in model.state_dict().items()}
    target = {n.replace("online", "target"): v for n, v in online.items() if n.startswith("online_encoder.")}
    network = {f"{TEACHER}{name}": value for name, value in teacher.state_dict().items()}
    head = 768 * 1000 + 1000
    values = sum(value.numel() for value in {**online, **target, **network}.values()) + head
    assert round(values / 1e6, 1) == 294.8  # million parameters of the published run
    assert sum(v.numel() for v in network.values()) + head == pytest.approx(86.57e6, rel=1e-3)
    assert online["online_encoder.patch_embed.proj.weight"].shape == (768, 3, 16, 16)
    assert online["online_encoder.fc.3.weight"].shape == (256, 4096)
    assert online["decoder_blocks.7.mlp.fc1.bias"].shape == (2048,)
    shown = spec_of_published(online)
    assert shown == {
        "input_size": 224, "encoder": {"width": 768, "depth": 12, "patch": 16, "heads": 12},
        "decoder": {"width": 512, "depth": 8, "heads": 16}, "contrastive": {"hidden": 4096, "dim": 256},
    }  # fmt: skip


def test_heads_that_no_shape_tells_have_to_be_told_and_what_is_told_counts(state: dict[str, Tensor]) -> None:
    for told, missing in ({}, "encoder of width 24"), ({"encoder_heads": 2}, "decoder of width 16"):
        with pytest.raises(WeightsError, match=f"how many heads its {missing} has"):
            spec_of_published(state, **told)
    shown = spec_of_published(state, encoder_heads=3, decoder_heads=8)
    assert (shown["encoder"]["heads"], shown["decoder"]["heads"]) == (3, 8)


@pytest.mark.parametrize("kind", ["run", "run in s3", "file", "file in s3"])
def test_the_command_writes_a_released_checkpoint_from_a_run(
    state: dict[str, Tensor], tmp_path: Path, kind: str, request: pytest.FixtureRequest
) -> None:
    run = run_of(state)
    model, target = load_published(state, run)
    held = {"model": model.state_dict(), "target": target.state_dict(), "step": 3}
    folder = request.getfixturevalue("s3_server") if kind.endswith("s3") else str(tmp_path / "run")
    store = open_store(folder)
    store.put(SPEC, run.model_dump_json().encode())
    checkpoint = write_state(held, tmp_path / "held.pt", step=3, spec_digest=run.pretraining, world_size=1)
    CheckpointStore(store, spec_digest=run.pretraining, keep=2).upload(checkpoint, tmp_path / "held.pt")
    source = folder if kind.startswith("run") else f"{folder}/{checkpoint_name(3)}{STATE}"
    main([source, str(tmp_path / "out.pth")])
    found = read_published(tmp_path / "out.pth")
    assert found.keys() == {name for name in state if not name.startswith(TEACHER)}
    again, again_target = load_published(found, run)
    assert all(torch.equal(v, held["model"][n]) for n, v in again.state_dict().items())
    assert all(torch.equal(v, held["target"][n]) for n, v in again_target.state_dict().items())


def test_a_run_whose_spec_an_older_version_wrote_is_exported_all_the_same(
    state: dict[str, Tensor], tmp_path: Path
) -> None:
    model, target = load_published(state, run_of(state))
    held = {"model": model.state_dict(), "target": target.state_dict()}
    store = open_store(str(tmp_path / "run"))
    store.put(SPEC, b'{"a_field": "of another version"}')
    checkpoint = write_state(held, tmp_path / "held.pt", step=3, spec_digest="0" * 64, world_size=1)
    CheckpointStore(store, spec_digest="0" * 64, keep=2).upload(checkpoint, tmp_path / "held.pt")
    found = newest_state(str(tmp_path / "run"))
    assert torch.equal(found["model"]["encoder.cls_token"], state["online_encoder.cls_token"])


def test_the_command_says_what_is_wrong_with_what_it_was_given(
    state: dict[str, Tensor], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, target = load_published(state, run_of(state))
    held = {"model": model.state_dict(), "target": target.state_dict()}
    torch.save(held, tmp_path / "state.pt")
    torch.save({"model": {}, "step": 1}, tmp_path / "other.pt")
    (tmp_path / "empty").mkdir()
    open_store(str(tmp_path / "young")).put(SPEC, b"{}")
    deeper = {name.replace("decoder_blocks.1.", "decoder_blocks.2."): value for name, value in state.items()} | state
    torch.save({"model": deeper}, tmp_path / "deeper.pth")
    out = tmp_path / "out.pth"
    for arguments, message in (
        ([tmp_path / "empty", out], "is no run's directory: it has no spec.json"),
        ([tmp_path / "young", out], "has no checkpoint yet"),
        ([tmp_path / "gone.pt", out], "does not exist"),
        ([tmp_path / "other.pt", out], "holds no state of a run; possible: a run's directory"),
        ([tmp_path / "state.pt", tmp_path / "none" / "out.pth"], "cannot be written: Parent directory"),
        ([tmp_path / "state.pt", out, "--like", tmp_path / "deeper.pth"], "it has decoder_blocks.2."),
    ):
        with pytest.raises(SystemExit, match="2"):
            main([str(argument) for argument in arguments])
        assert message in capsys.readouterr().err
        assert not list(tmp_path.glob("**/out.pth*"))


def test_an_export_is_never_a_mixture_of_two_models(state: dict[str, Tensor]) -> None:
    model, target = load_published(state, run_of(state))
    other = {**state, "mask_token": torch.zeros(1, 1, 32)}
    with pytest.raises(WeightsError, match=r"another model: mask_token is \[1, 1, 16\], \[1, 1, 32\] there"):
        to_published(model, target, like=other)
    with pytest.raises(WeightsError, match=r"predictor\.0\.weight .* not there"):
        to_published(model, target, like={n: v for n, v in state.items() if n != "predictor.0.weight"})
