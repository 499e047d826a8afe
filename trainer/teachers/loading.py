"""Weights from a file into a network: fetched, checked against the digest, renamed, fitted. Never by halves."""

import hashlib
import tempfile
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from trainer.contract import TeacherSpec
from trainer.store.objects import ObjectMissing
from trainer.teachers.errors import TeacherError
from trainer.teachers.face_api import state_from_npz
from trainer.teachers.networks import Network, TimmVit, UserNetwork
from trainer.weights import sources
from trainer.weights.files import WeightsError, read_weights
from trainer.weights.sources import UnknownWeights

# Where a teacher stands in other people's files. MoCo v3 stores a base and a momentum encoder, and published MCF
# taps the base; a published MCF checkpoint holds its teacher. Their position code is the transpose of ours, so it
# always comes from the file.
PREFIXES = ("module.base_encoder.", "perceptual_loss.model.", "module.perceptual_loss.model.")
# Parts of a classifier that no tap sees.
HEADS = ("head.", "fc_norm.", "head_dist.")


def load(network: Network, teacher: TeacherSpec, library: sources.Library) -> str:
    """Put the weights of the teacher's file into the network; returns the file's sha256.

    Raises TeacherError where the file is missing, is other than the spec says, or does not fit; StorageError
    where it cannot be reached for now.
    """
    with tempfile.TemporaryDirectory(prefix="mcf-teacher-") as scratch:
        try:
            path = sources.local_copy(teacher.source, Path(scratch), library)
        except (ObjectMissing, UnknownWeights) as error:
            raise TeacherError(f"there are no teacher weights at {teacher.source}: {error}") from error
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        if teacher.sha256 not in (None, digest):
            raise TeacherError(f"{teacher.source} has sha256 {digest}, the spec says {teacher.sha256}")
        try:
            state = read(path)
        except WeightsError as error:
            raise TeacherError(f"{teacher.source} cannot be read as weights: {error}") from error
    fit(network, state, teacher.source, teacher.arch)
    return digest


def fit(network: Network, state: Mapping[str, Tensor], source: str, arch: str) -> None:
    """Put weights by the network's names into it. Raises TeacherError where they do not fit."""
    match network:
        case TimmVit():
            into = network.vit
        case UserNetwork():
            into = network.network
        case _:
            into = network
    if misfits := _misfits(state, into.state_dict()):
        raise TeacherError(f"{source} does not fit {arch}: {'; '.join(misfits)}")
    into.load_state_dict(state, strict=False, assign=True)


def read(path: Path) -> dict[str, Any]:
    """State dict of a weights file, foreign layouts recognised by their keys. Raises WeightsError."""
    if path.suffix == ".npz":
        try:
            with np.load(path, allow_pickle=False) as arrays:
                return state_from_npz(arrays)
        except (OSError, KeyError, ValueError, zipfile.BadZipFile) as error:
            raise WeightsError(f"no face-api network in it: {error}") from error
    state = read_weights(path)
    for wrapper in ("state_dict", "model"):
        state = state.get(wrapper, state)
    for prefix in PREFIXES:
        if any(key.startswith(prefix) for key in state):
            return {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
    return state


def _misfits(state: Mapping[str, Tensor], wanted: dict[str, Tensor]) -> list[str]:
    """What keeps `state` from being exactly the network's weights, in words; heads may lack and may be too much."""
    found = []
    if missing := [name for name in wanted if name not in state and not name.startswith(HEADS)]:
        found.append(f"it lacks {_some(missing)}")
    if unknown := [name for name in state if name not in wanted and not name.startswith(HEADS)]:
        found.append(f"it has {_some(unknown)} besides")
    for name in wanted.keys() & state.keys():
        if wanted[name].shape != state[name].shape:
            hint = " (teacher.input_size decides this one)" if name == "pos_embed" else ""
            found.append(f"{name} is {list(state[name].shape)} and should be {list(wanted[name].shape)}{hint}")
    return found[:4]


def _some(names: list[str]) -> str:
    return f"{', '.join(names[:3])} and {len(names) - 3} more" if len(names) > 3 else ", ".join(names)
