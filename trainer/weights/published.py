"""Checkpoints of the released MCF code: its names <-> ours, reading and writing.

    ours, online              published                ours, target     published
    encoder.*                 online_encoder.*         encoder.*        target_encoder.*
    projector.*               online_encoder.fc.*      projector.*      target_encoder.fc.*
    predictor.*               predictor.*
    decoder.mask_token        mask_token               teacher's network
    decoder.predict.*         decoder_pred.*           *                perceptual_loss.model.*
    decoder.*                 decoder_*

Running statistics of BatchNorm have no place in our model (docs/decisions/0009): reading leaves them out, writing
takes them from the file the weights came from, or gives them their initial values; nothing published reads them.

    python -m trainer.weights.published RUN_OR_STATE OUT.pth [--like FILE]
"""

import argparse
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from trainer.contract import RunSpec
from trainer.contract.records import SPEC
from trainer.method.mcf import Mcf, Target, build
from trainer.state.checkpoint import CheckpointStore, OtherRun
from trainer.store.objects import ObjectMissing, StorageError, open_store
from trainer.store.rundir import list_checkpoints
from trainer.weights.files import WeightsError, read_weights, state_dict_in
from trainer.weights.sources import FILES_ONLY, local_copy

State = Mapping[str, Tensor]

ONLINE = {
    "projector.": "online_encoder.fc.",
    "encoder.": "online_encoder.",
    "predictor.": "predictor.",
    "decoder.mask_token": "mask_token",
    "decoder.predict.": "decoder_pred.",
    "decoder.": "decoder_",
}
TARGET = {"projector.": "target_encoder.fc.", "encoder.": "target_encoder."}
TEACHER = "perceptual_loss.model."
# Heads by width of what has been published: encoders, and the decoder.
HEADS_OF_WIDTH = {384: 6, 768: 12, 1024: 16, 1280: 16}
DECODER_HEADS = {512: 16}
STATISTICS = (".running_mean", ".running_var", ".num_batches_tracked")


# ---------------------------------------------------------------- names


def published_name(name: str, *, target: bool = False) -> str:
    """What the released code calls a parameter of `Mcf`, or of `Target`."""
    prefixes = TARGET if target else ONLINE
    ours = next(prefix for prefix in prefixes if name.startswith(prefix))
    return prefixes[ours] + name.removeprefix(ours)


def published_parameters(model: Mcf, target: Target | None = None) -> dict[str, nn.Parameter]:
    """The parameters themselves, gradients included, by published name."""
    found = {published_name(name): value for name, value in model.named_parameters()}
    if target:
        found |= {published_name(name, target=True): value for name, value in target.named_parameters()}
    return found


# ---------------------------------------------------------------- published -> ours


def read_published(path: Path | str) -> dict[str, Tensor]:
    """The `model` of a released checkpoint, or a bare state dict; names without DDP's `module.`.

    Raises WeightsError, also for a file that holds something else.
    """
    state = state_dict_in(read_weights(Path(path)))
    if not is_published(state):
        raise WeightsError(f"{path} is no MCF checkpoint: none of its {len(state)} names starts with online_encoder.")
    return state


def is_published(state: Mapping[str, Any]) -> bool:
    return any(name.startswith("online_encoder.") for name in state)


def load_published(state: State, run: RunSpec) -> tuple[Mcf, Target | None]:
    """The model and its target with the weights of a released checkpoint, in the run's precision.

    Raises WeightsError, naming the fields that would fit, when the spec describes another model.
    """
    model = build(run)
    target = Target(run, model) if run.contrastive.weight > 0 else None
    if wrong := _differences(state, run):
        raise WeightsError("the checkpoint does not fit the spec: " + "; ".join(wrong))
    used = fill(model, state, {name: published_name(name) for name in model.state_dict()})
    if target:
        used |= fill(target, state, {name: published_name(name, target=True) for name in target.state_dict()})
        unused = [name for name in state if name not in used and not name.startswith(TEACHER)]
        if unknown := [name for name in unused if not name.endswith(STATISTICS)]:
            raise WeightsError(f"the checkpoint holds {len(unknown)} weights MCF does not have, such as {unknown[0]}")
    return model, target


def fill(module: nn.Module, state: State, names: Mapping[str, str]) -> set[str]:
    """Copy into the module what `state` has under other names: {own: theirs}. Returns the names used.

    Raises WeightsError where something is missing or has another shape; then the module is half filled.
    """
    if missing := [theirs for theirs in names.values() if theirs not in state]:
        raise WeightsError(f"the file lacks {len(missing)} of {len(names)} weights, such as {missing[0]}")
    own = module.state_dict()
    for name, theirs in names.items():
        if own[name].shape != state[theirs].shape:
            raise WeightsError(
                f"{theirs} is {list(state[theirs].shape)} in the file, and the spec's model has {list(own[name].shape)}"
            )
        own[name].copy_(state[theirs])
    return set(names.values())


def spec_of_published(
    state: State, *, encoder_heads: int | None = None, decoder_heads: int | None = None
) -> dict[str, Any]:  # fmt: skip
    """The fields of a RunSpec that a released checkpoint shows: a partial RunSpec.

    No shape shows numbers of heads, and wrong ones give wrong losses. None = the published one of that width. Raises
    WeightsError for a width that nothing was published of.
    """
    found = _sizes(state)
    encoder, decoder = found["encoder"], found["decoder"]
    encoder["heads"] = encoder_heads or HEADS_OF_WIDTH.get(encoder["width"])
    decoder["heads"] = decoder_heads or DECODER_HEADS.get(decoder["width"])
    for name, part in ("encoder", encoder), ("decoder", decoder):
        if part["heads"] is None:
            raise WeightsError(
                f"the checkpoint does not tell how many heads its {name} of width {part['width']} has; "
                f"give {name}_heads"
            )
    return found


def _sizes(state: State) -> dict[str, Any]:
    token, position = state["online_encoder.cls_token"], state["online_encoder.pos_embed"]
    patch = state["online_encoder.patch_embed.proj.weight"].shape[-1]
    found: dict[str, Any] = {
        "input_size": round((position.shape[1] - 1) ** 0.5) * patch,
        "encoder": {"width": token.shape[-1], "depth": _depth(state, "online_encoder.blocks."), "patch": patch},
        "decoder": {"width": state["mask_token"].shape[-1], "depth": _depth(state, "decoder_blocks.")},
    }
    if "online_encoder.fc.0.weight" in state:
        hidden, dim = (state[f"online_encoder.fc.{layer}.weight"].shape[0] for layer in (0, 3))
        found["contrastive"] = {"hidden": hidden, "dim": dim}
    return found


def _differences(state: State, run: RunSpec) -> list[str]:
    try:
        shown = _sizes(state)
    except KeyError as error:
        raise WeightsError(f"the checkpoint lacks {error.args[0]}") from error
    asked = run.model_dump()
    if run.contrastive.weight == 0:
        shown.pop("contrastive", None)
    wrong = []
    for part, value in shown.items():
        pairs = [(part, value, asked[part])]
        if isinstance(value, dict):
            pairs = [(f"{part}.{field}", number, asked[part][field]) for field, number in value.items()]
        wrong += [f"{field} is {mine}, the checkpoint has {theirs}" for field, theirs, mine in pairs if theirs != mine]
    return wrong


def _depth(state: State, prefix: str) -> int:
    return len({name.removeprefix(prefix).split(".")[0] for name in state if name.startswith(prefix)})


# ---------------------------------------------------------------- ours -> published


def to_published(
    model: Mcf, target: Target | None, teacher: nn.Module | None = None, like: State | None = None
) -> dict[str, Tensor]:
    """A state dict that the released code loads. Float32, or whatever `like` has.

    `like`: the checkpoint the weights came from; what our model does not hold comes from there, bit for bit.
    `teacher`: its network, a ViT, which is written along as the released code does.
    Raises WeightsError when `like` is another model.
    """
    return published_state(
        model.state_dict(), target.state_dict() if target else {}, teacher.state_dict() if teacher else {}, like
    )


def published_state(
    model: State, target: State, teacher: State | None = None, like: State | None = None
) -> dict[str, Tensor]:
    """`to_published` from state dicts: those in a checkpoint of ours will do. Raises WeightsError."""
    found = {published_name(name): value for name, value in model.items()}
    found |= {published_name(name, target=True): value for name, value in target.items()}
    found |= {TEACHER + name: value for name, value in (teacher or {}).items()}
    if like is None:
        like = _unread(found)
    else:
        _same_model(found, like)
    dtypes = {name: like[name].dtype if name in like else torch.float32 for name in found}
    own = {name: value.detach().to("cpu", dtypes[name], copy=True) for name, value in found.items()}
    return {**like, **own}


def _same_model(found: State, like: State) -> None:
    """Raises WeightsError where the two have other blocks or shapes: put together they would be neither's model."""
    for name, value in found.items():
        if not name.startswith(TEACHER) and (name not in like or like[name].shape != value.shape):
            theirs = f"{list(like[name].shape)} there" if name in like else "not there"
            raise WeightsError(f"`like` is a checkpoint of another model: {name} is {list(value.shape)}, {theirs}")
    blocks = ("online_encoder.blocks.", "decoder_blocks.")
    if more := [name for name in like if name.startswith(blocks) and name not in found]:
        raise WeightsError(f"`like` is a checkpoint of another model: it has {more[0]}, which the run lacks")


def _unread(found: State) -> dict[str, Tensor]:
    """What the released code has beside our weights and reads nowhere, at its initial values."""
    extra: dict[str, Tensor] = {}
    for head in "online_encoder.fc.", "target_encoder.fc.", "predictor.":
        # The width of a BatchNorm is that of the Linear before it; the predictor has none at its end.
        for linear, norm in (("0", "1"), ("3", "4")):
            weight = found.get(f"{head}{linear}.weight")
            if weight is None or (head == "predictor." and norm == "4"):
                continue
            start = (torch.zeros(len(weight)), torch.ones(len(weight)), torch.tensor(0))
            extra |= {f"{head}{norm}{name}": value for name, value in zip(STATISTICS, start, strict=True)}
    if (token := found.get(f"{TEACHER}cls_token")) is not None:
        # Its class head, for 1000 classes.
        extra |= {f"{TEACHER}head.weight": torch.zeros(1000, token.shape[-1]), f"{TEACHER}head.bias": torch.zeros(1000)}
    return extra


# ---------------------------------------------------------------- command


def newest_state(address: str) -> dict[str, Any]:
    """The newest sound checkpoint of a run's directory, or a state.pt; path or s3://.

    Raises WeightsError, and StorageError where nobody answers.
    """
    state = _state_file(address) if address.endswith(".pt") else _newest_of_run(address)
    model, target = state.get("model"), state.get("target")
    if not (isinstance(model, dict) and isinstance(target, dict) and "encoder.cls_token" in model):
        raise WeightsError(f"{address} holds no state of a run; possible: a run's directory, or a state.pt in one")
    return state


def _state_file(address: str) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="mcf-published-") as scratch:
        try:
            return read_weights(local_copy(address, Path(scratch), FILES_ONLY))
        except ObjectMissing as error:
            raise WeightsError(f"there is no {address}: {error}") from error


def _newest_of_run(address: str) -> dict[str, Any]:
    store = open_store(address)
    if not address.startswith("s3://") and not Path(address.removeprefix("file://")).exists():
        raise WeightsError(f"there is no {address}")
    if not (kept := list_checkpoints(store)):
        try:
            store.get(SPEC)
        except ObjectMissing as error:
            raise WeightsError(
                f"{address} is no run's directory: it has no {SPEC}; `mcf show RUN` says where"
            ) from error
        raise WeightsError(f"{address} has no checkpoint yet; possible: the directory of a run that has trained")
    # The marker's digest and not the spec's: a spec written by an older version has another one by now.
    try:
        found = CheckpointStore(store, spec_digest=kept[-1].spec_digest, keep=len(kept)).restore_latest()
    except OtherRun as error:
        raise WeightsError(str(error)) from error
    if found is None:
        raise WeightsError(f"{address} has {len(kept)} checkpoints and all of them are damaged")
    return found[1]


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="trainer.weights.published", description="Write a checkpoint of the released format."
    )
    parser.add_argument("run", help="a run's directory (path or s3://), of which the newest checkpoint, or a state.pt")
    parser.add_argument("out", type=Path, help="file to write, such as checkpoint.pth")
    parser.add_argument("--like", type=Path, help="released checkpoint that the run started from")
    given = parser.parse_args(argv)
    half = given.out.with_name(given.out.name + ".half")
    try:
        state = newest_state(given.run)
        like = read_published(given.like) if given.like else None
        torch.save({"model": published_state(state["model"], state["target"], like=like)}, half)
        half.replace(given.out)
    except (WeightsError, StorageError) as error:
        parser.error(str(error))
    except (OSError, RuntimeError) as error:  # torch says RuntimeError where there is no such folder, or no space
        half.unlink(missing_ok=True)
        parser.error(f"{given.out} cannot be written: {error}")


if __name__ == "__main__":
    main()
