"""Frozen teachers: their weights, their own view of the input, and the features that are compared (method 2.4).

    TeacherError    a teacher that is not what the spec says; never replaced by a random one

A teacher is a source of weights and an architecture. `random` draws the architecture from its own seed, as a control.
"""

import hashlib
import logging
import pickle
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.functional import interpolate

from trainer import face_api, vit
from trainer.draws import weights_generator
from trainer.spec import ENCODERS, IMAGENET_MEAN, IMAGENET_STD, Encoder, RunSpec
from trainer.storage import StorageError, open_store, split_uri

logger = logging.getLogger(__name__)

MOCO_PREFIX = "module.base_encoder."
# Parts of a classifier that no tap sees.
HEADS = ("head.", "fc_norm.", "head_dist.")
# Not one of mcf.build's: a random teacher must not be the encoder as it was drawn.
TEACHER_PART = 100


class TeacherError(Exception):
    """The teacher cannot be built as the spec says."""


class TimmVit(nn.Module):
    """A timm ViT by name, tapped with its cls and register tokens."""

    def __init__(self, name: str, size: int) -> None:
        super().__init__()
        import timm  # five seconds of import that only such a teacher needs

        try:
            self.vit: Any = timm.create_model(name, pretrained=False, num_classes=0, img_size=size)
        except (RuntimeError, TypeError, ValueError, AssertionError) as error:
            raise TeacherError(f"timm cannot make {name!r} for {size} pixels: {error}") from error
        if not hasattr(self.vit, "blocks"):
            raise TeacherError(f"{name!r} is no ViT; possible: a timm ViT, {', '.join(ARCHITECTURES)}")

    @property
    def depth(self) -> int:
        return len(self.vit.blocks)

    def block_outputs(self, image_BCHW: Tensor, taps: Sequence[int]) -> list[Tensor]:
        """Outputs [B, prefix + L, D] of the blocks `taps`, before the final norm."""
        outputs = self.vit.forward_intermediates(
            image_BCHW, indices=list(taps), return_prefix_tokens=True, output_fmt="NLC", intermediates_only=True
        )
        # Without prefix tokens timm returns the patches alone instead of pairs.
        return [torch.cat([tap[1], tap[0]], dim=1) if isinstance(tap, tuple) else tap for tap in outputs]


# What a teacher can be: each has `depth`, and `block_outputs` at its taps.
Network = vit.Encoder | face_api.FaceApi | TimmVit


class Teacher(nn.Module):
    """A frozen network that turns ImageNet-normalised images into features; gradients pass through to the image."""

    scale: Tensor
    shift: Tensor

    def __init__(
        self, network: Network, run: RunSpec, mean: tuple[float, ...], std: tuple[float, ...], dtype: torch.dtype
    ) -> None:
        super().__init__()
        self.network = network.requires_grad_(False).to(dtype)
        self.dtype = dtype
        self.taps = run.teacher.taps
        self.size = run.teacher.input_size or run.input_size
        # x_teacher = (x * s_imagenet + m_imagenet - m) / s, in one multiplication and one addition.
        scale = torch.tensor(IMAGENET_STD, dtype=torch.float64) / torch.tensor(std, dtype=torch.float64)
        shift = (torch.tensor(IMAGENET_MEAN, dtype=torch.float64) - torch.tensor(mean)) / torch.tensor(std)
        self.register_buffer("scale", scale.view(1, 3, 1, 1))
        self.register_buffer("shift", shift.view(1, 3, 1, 1))

    def forward(self, image_BCHW: Tensor) -> list[Tensor]:
        """Features [B, P, D] of every tap, not yet scaled; P counts cls where the teacher has one."""
        # In the image's own precision: half of it is enough for the network, not for its input's statistics.
        image_BCHW = self._resized(image_BCHW) * self.scale.to(image_BCHW.dtype) + self.shift.to(image_BCHW.dtype)
        return self.network.block_outputs(image_BCHW.to(self.dtype), self.taps)

    def _resized(self, image_BCHW: Tensor) -> Tensor:
        now = image_BCHW.shape[-1]
        if now == self.size:
            return image_BCHW
        if now < self.size:
            return interpolate(image_BCHW, size=self.size, mode="nearest")  # as published
        # The published setting never shrinks. Nearest would leave most predicted pixels without a gradient.
        return interpolate(image_BCHW, size=self.size, mode="bilinear", antialias=True)


def build(run: RunSpec, device: torch.device) -> Teacher | None:
    """The run's teacher on its device, in the dtype it computes in; None where the spec says `none`.

    Raises TeacherError where weights are missing, are other than the spec says, or do not fit.
    """
    teacher = run.teacher
    if teacher.source == "none":
        return None
    with torch.random.fork_rng(devices=[]):
        # Decides the weights of `random` alone; from a file every one of them is replaced.
        torch.manual_seed(teacher.seed)
        network = _network(run)
    if teacher.is_file:
        _load(network, run)
    mean, std = teacher.mean, teacher.std
    if teacher.arch == "face-api":
        if (mean, std) != (IMAGENET_MEAN, IMAGENET_STD):
            logger.warning("teacher.mean and teacher.std are not applied: face-api has statistics of its own")
        mean, std = face_api.MEAN, face_api.STD
    return Teacher(network, run, mean, std, compute_dtype(run, device)).to(device).eval()


def compute_dtype(run: RunSpec, device: torch.device) -> torch.dtype:
    """What matrix products are done in: bf16 needs a GPU, so on a CPU such a run computes in float32."""
    if run.precision == "float64":
        return torch.float64
    return torch.bfloat16 if run.precision == "bf16" and device.type == "cuda" else torch.float32


# ---------------------------------------------------------------- architectures


def _network(run: RunSpec) -> Network:
    arch, taps = run.teacher.arch, run.teacher.taps
    network = ARCHITECTURES.get(arch, partial(_timm_vit, arch))(run)
    if taps[-1] >= network.depth:
        raise TeacherError(f"teacher.taps asks for block {taps[-1]}; {arch} has blocks 0 to {network.depth - 1}")
    return network


def _own_vit(run: RunSpec, encoder: Encoder) -> Network:
    network = vit.Encoder(encoder, run.teacher.input_size or run.input_size)
    vit.initialise(network, weights_generator(run.teacher.seed, TEACHER_PART))
    return network


ARCHITECTURES: dict[str, Callable[[RunSpec], Network]] = {
    "as-encoder": lambda run: _own_vit(run, run.encoder),
    "mocov3-vit-b16": lambda run: _own_vit(run, Encoder(**ENCODERS["vit-b16"])),
    "face-api": lambda run: face_api.FaceApi(),
}


def _timm_vit(name: str, run: RunSpec) -> Network:
    return TimmVit(name, run.teacher.input_size or run.input_size)


# ---------------------------------------------------------------- weights


def _load(network: Network, run: RunSpec) -> None:
    with tempfile.TemporaryDirectory(prefix="mcf-teacher-") as scratch:
        path = _local_file(run.teacher.source, Path(scratch))
        with path.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        if run.teacher.sha256 not in (None, found):
            raise TeacherError(f"{run.teacher.source} has sha256 {found}, the spec says {run.teacher.sha256}")
        try:
            state = _read(path)
        # Whatever a file that is no weights file makes the readers say.
        except (OSError, AttributeError, KeyError, ValueError, RuntimeError, EOFError, pickle.UnpicklingError,
                safetensors.SafetensorError) as error:  # fmt: skip
            raise TeacherError(f"{run.teacher.source} cannot be read as weights: {error}") from error
    into = network.vit if isinstance(network, TimmVit) else network
    try:
        into.load_state_dict(state, strict=True)
    except RuntimeError as error:
        raise TeacherError(
            f"{run.teacher.source} does not fit {run.teacher.arch} at {run.teacher.input_size or run.input_size} "
            f"pixels (teacher.input_size): {error}"
        ) from error


def _local_file(source: str, scratch: Path) -> Path:
    if not source.startswith("s3://"):
        if not Path(source).is_file():
            raise TeacherError(f"there is no teacher weights file {source}")
        return Path(source)
    folder, name = split_uri(source)
    try:
        open_store(folder).get_file(name, scratch / name)
    except StorageError as error:
        raise TeacherError(f"the teacher's weights cannot be fetched: {error}") from error
    return scratch / name


def _read(path: Path) -> dict[str, Tensor]:
    """State dict of a weights file; foreign layouts are recognised by their keys."""
    if path.suffix == ".npz":
        with np.load(path, allow_pickle=False) as arrays:
            return face_api.state_from_npz(arrays)
    if path.suffix == ".safetensors":
        state: dict[str, Any] = load_file(path)
    else:
        state = torch.load(path, map_location="cpu", weights_only=True)
    for wrapper in ("state_dict", "model"):
        state = state.get(wrapper, state)
    if any(key.startswith(MOCO_PREFIX) for key in state):
        # MoCo v3 stores base and momentum encoder; published MCF taps the base. Its position code is the
        # transpose of ours, and comes along with the weights.
        state = {key.removeprefix(MOCO_PREFIX): value for key, value in state.items() if key.startswith(MOCO_PREFIX)}
    return {key: value for key, value in state.items() if not key.startswith(HEADS)}
