"""Reading files of weights, without running code from them."""

import argparse
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors
import torch
from safetensors.torch import load_file


class WeightsError(Exception):
    """A weights file that is missing, cannot be read, or is not what the spec says."""


def read_weights(path: Path) -> dict[str, Any]:
    """What a .safetensors or torch file holds, on the CPU; it is not executed. Raises WeightsError."""
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        # The released MCF and MAE scripts leave their parsed command line in every checkpoint: a Namespace of
        # plain values.
        with torch.serialization.safe_globals([argparse.Namespace]):
            found = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise WeightsError(f"there is no weights file {path}") from error
    # Whatever a file that is no weights file makes the readers say.
    except (OSError, AttributeError, KeyError, ValueError, RuntimeError, EOFError, pickle.UnpicklingError,
            safetensors.SafetensorError) as error:  # fmt: skip
        raise WeightsError(f"{path} cannot be read as weights: {error}") from error
    if not isinstance(found, dict):
        raise WeightsError(f"{path} holds a {type(found).__name__}; possible: a state dict, or a checkpoint with one")
    return found


def state_dict_in(file: Mapping[str, Any]) -> dict[str, Any]:
    """The state dict of a checkpoint, or the file itself where it is one; names without DDP's `module.`.

    Raises WeightsError.
    """
    state = file.get("model", file)
    if not isinstance(state, dict):
        raise WeightsError(f"the file's `model` is a {type(state).__name__}; possible: a state dict")
    return {name.removeprefix("module."): value for name, value in state.items()}
