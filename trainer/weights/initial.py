"""What training starts from: weights drawn from the seed, or the file that `initial` names.

The names of its tensors tell what a file is: a released MCF checkpoint (trainer/weights/published.py), a `state.pt` of
ours, or a ViT under timm's names, as our exports and MAE's files are. What does not fit is an error, never a random
start.
"""

import hashlib
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from trainer.contract import Initial, RunSpec
from trainer.method.mcf import Mcf, Target, build
from trainer.store.objects import ObjectMissing
from trainer.weights.files import WeightsError, read_weights, state_dict_in
from trainer.weights.mlflow_files import MlflowFiles
from trainer.weights.published import fill, is_published, load_published, published_name
from trainer.weights.sources import UnknownWeights, local_copy


def start(run: RunSpec) -> tuple[Mcf, Target | None]:
    """The model before its first step, and its target; None where the run has no contrastive branch.

    Raises WeightsError when the file is missing, has another digest or does not fit the spec; StorageError where
    it cannot be reached for now.
    """
    if not run.initial.is_file:
        return _with_target(run, build(run))
    try:
        return _from_file(run, _read(run.initial))
    except WeightsError as error:
        raise WeightsError(f"initial.source {run.initial.source}: {error}") from error


def _from_file(run: RunSpec, file: dict[str, Any]) -> tuple[Mcf, Target | None]:
    state = state_dict_in(file)
    if is_published(state):
        return load_published(state, run) if run.initial.parts == "all" else _encoder_from(run, state, published_name)
    if any(name.startswith("encoder.") for name in state):
        return _resumed(run, file) if run.initial.parts == "all" else _encoder_from(run, state, lambda name: name)
    if "patch_embed.proj.weight" not in state:
        raise WeightsError(f"it holds neither an MCF checkpoint nor a ViT, but {', '.join(sorted(state)[:3])}, ...")
    if run.initial.parts == "all":
        raise WeightsError("it holds an encoder and nothing else of ours; initial.parts: encoder starts from that")
    return _encoder_from(run, state, lambda name: name.removeprefix("encoder."))


def _encoder_from(run: RunSpec, state: Mapping[str, Any], theirs: Callable[[str], str]) -> tuple[Mcf, Target | None]:
    model = build(run)
    names = {name: theirs(f"encoder.{name}") for name in model.encoder.state_dict()}
    fill(model.encoder, state, names)
    _nothing_left(state, theirs("encoder.blocks.0").removesuffix("0"), set(names.values()))
    return _with_target(run, model)


def _resumed(run: RunSpec, file: Mapping[str, Any]) -> tuple[Mcf, Target | None]:
    model, target = _with_target(run, build(run))
    for module, state in (model, file["model"]), (target, file.get("target", {})):
        if module:
            used = fill(module, state, {name: name for name in module.state_dict()})
            for part in "encoder.", "decoder.":
                _nothing_left(state, part, used)
    return model, target


def _nothing_left(state: Mapping[str, Any], prefix: str, used: set[str]) -> None:
    # A deeper network than the spec's would fit name by name, and be cut off.
    if left := [name for name in state if name.startswith(prefix) and name not in used]:
        raise WeightsError(f"the file has {len(left)} weights that the spec's model lacks, such as {left[0]}")


def _with_target(run: RunSpec, model: Mcf) -> tuple[Mcf, Target | None]:
    return model, Target(run, model) if run.contrastive.weight > 0 else None


def _read(initial: Initial) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="mcf-initial-") as scratch:
        try:
            path = local_copy(initial.source, Path(scratch), MlflowFiles())
        except (ObjectMissing, UnknownWeights) as error:
            raise WeightsError(str(error)) from error
        with path.open("rb") as opened:
            found = hashlib.file_digest(opened, "sha256").hexdigest()
        if initial.sha256 not in (None, found):
            raise WeightsError(f"it has sha256 {found}, the spec says {initial.sha256}")
        return read_weights(path)
