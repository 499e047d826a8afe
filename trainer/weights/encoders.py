"""An encoder from wherever it is, to be evaluated: its architecture, and its weights by our names.

a folder, path or s3://         a run's directory (its export, else its newest checkpoint), or an export
a file, path or s3://           `model.safetensors` of an export, `state.pt` of a checkpoint, a released MCF checkpoint,
                                a ViT under timm's names (MAE, MoCo v3), or under CLIP's (FaRL)
models:/NAME@ALIAS, models:/NAME/VERSION, runs:/ID/PATH     the same files, or a pointer to an export, in MLflow
"""

import hashlib
import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from trainer.contract import EncoderSpec, RunSpec
from trainer.contract.records import CHECKPOINTS, CONFIG, EXPORT, SPEC, WEIGHTS
from trainer.method.clip import from_clip, is_clip
from trainer.store.objects import ObjectMissing, open_store, split_uri
from trainer.weights.files import WeightsError, read_weights
from trainer.weights.published import HEADS_OF_WIDTH, newest_state
from trainer.weights.sources import MLFLOW, Library, local_copy, weights_file

# Where an encoder stands in a file that holds more: ours, released MCF, MoCo v3, timm's own.
PREFIXES = ("encoder.", "online_encoder.", "base_encoder.", "")
# All there is of an encoder.
PARTS = ("cls_token", "pos_embed", "patch_embed.", "blocks.", "norm.")


class Found(NamedTuple):
    """An encoder."""

    encoder: EncoderSpec
    weights: dict[str, Tensor]
    """By the names of trainer.method.vit.Encoder, or of trainer.method.clip.ClipEncoder."""
    digest: str
    """sha256 of the weights."""


def find_encoder(address: str, library: Library, heads: int | None = None) -> Found:
    """`heads`: None = what the file or the folder says, else the published number for its width.

    Raises WeightsError, and UnknownWeights, where there is no such encoder; StorageError where nobody answers.
    """
    address = weights_file(address, library)
    with tempfile.TemporaryDirectory(prefix="mcf-encoder-") as scratch:
        folder = Path(scratch)
        in_mlflow = address.startswith(MLFLOW)
        if in_mlflow or _is_file(address):
            path = _fetched(address, folder, library)
            state = read_weights(path)
            if not in_mlflow:
                heads = heads or _heads_of_export(split_uri(address)[0])
                if f"/{CHECKPOINTS}" in address:
                    heads = heads or _heads_of_run(address)
        elif place := next((place for place in _exports(address) if _heads_of_export(place)), None):
            state = read_weights(_fetched(f"{place}/{WEIGHTS}", folder, library))
            heads = heads or _heads_of_export(place)
        else:
            state, heads = newest_state(address)["model"], heads or _heads_of_run(address)
        try:
            return _encoder_in(state, heads)
        except (WeightsError, KeyError) as error:
            raise WeightsError(f"{address} holds no encoder that can be evaluated: {error}") from error


def _exports(address: str) -> tuple[str, str]:
    """Where an export may be: here, or in the run's directory that this is."""
    here = address.rstrip("/")
    return here, f"{here}/{EXPORT.rstrip('/')}"


def _is_file(address: str) -> bool:
    if not address.startswith("s3://"):
        return Path(address.removeprefix("file://")).is_file()
    folder, name = split_uri(address)
    try:
        open_store(folder).stat(name)
    except ObjectMissing:
        return False
    return True


def _fetched(address: str, folder: Path, library: Library) -> Path:
    try:
        return local_copy(address, folder, library)
    except ObjectMissing as error:
        raise WeightsError(str(error)) from error


def _heads_of_export(folder: str) -> int | None:
    """None where the folder is no export."""
    try:
        heads: int | None = json.loads(open_store(folder).get(CONFIG)).get("model_args", {}).get("num_heads")
        return heads
    except ObjectMissing:
        return None


def _heads_of_run(address: str) -> int | None:
    """`address`: the run's directory, or a checkpoint in it; None where it is neither."""
    try:
        return RunSpec.model_validate_json(open_store(address.partition(f"/{CHECKPOINTS}")[0]).get(SPEC)).encoder.heads
    except ObjectMissing:
        return None


def _encoder_in(file: Mapping[str, Any], heads: int | None) -> Found:
    state = {name.removeprefix("module."): value for name, value in _inner(file).items()}
    if is_clip(state):
        weights = from_clip(state)
    else:
        prefix = next((prefix for prefix in PREFIXES if f"{prefix}cls_token" in state), None)
        if prefix is None:
            raise WeightsError(f"it has no cls_token, but {', '.join(sorted(state)[:3])}, ...")
        weights = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
        weights = {name: value for name, value in weights.items() if name.startswith(PARTS)}
    width, patch = weights["cls_token"].shape[-1], weights["patch_embed.proj.weight"].shape[-1]
    heads = heads or HEADS_OF_WIDTH.get(width)
    if heads is None:
        known = ", ".join(map(str, HEADS_OF_WIDTH))
        raise WeightsError(
            f"it does not tell how many heads an encoder of width {width} has, and wrong ones give wrong features; "
            f"possible: --heads, or a width of {known}"
        )
    depth = len({name.split(".")[1] for name in weights if name.startswith("blocks.")})
    digest = hashlib.sha256()
    for name in sorted(weights):
        digest.update(name.encode() + weights[name].detach().float().contiguous().numpy().tobytes())
    return Found(
        EncoderSpec(width=width, depth=depth, heads=heads, patch=patch),
        {name: value.detach().float() for name, value in weights.items()}, digest.hexdigest(),
    )  # fmt: skip


def _inner(file: Mapping[str, Any]) -> Mapping[str, Any]:
    for wrapper in "state_dict", "model":
        inner = file.get(wrapper, file)
        file = inner if isinstance(inner, dict) else file
    return file
