"""The teacher as the losses see it: images in, features out, nothing in it trained."""

import hashlib
import json
import logging
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from trainer.contract import IMAGENET_MEAN, IMAGENET_STD, RunSpec, TeacherSpec
from trainer.teachers import face_api, loading
from trainer.teachers.errors import TeacherError
from trainer.teachers.networks import Network, UserNetwork, make, num_prefix_tokens, own_encoder
from trainer.weights.mlflow_files import MlflowFiles
from trainer.weights.sources import UnknownWeights, settled

logger = logging.getLogger(__name__)


class Teacher(nn.Module):
    """A frozen network that turns ImageNet-normalised images into features; gradients pass through to the image."""

    scale: Tensor
    shift: Tensor

    def __init__(self, network: Network, teacher: TeacherSpec, size: int, dtype: torch.dtype, weights: str) -> None:
        """`teacher`: with the statistics that apply; `size`: pixels it sees; `weights`: what tells them from others."""
        super().__init__()
        self.network = network.requires_grad_(False).to(dtype)
        self.dtype = dtype
        self.taps = teacher.taps
        self.size = size
        self.resize = teacher.resize
        self.first_token = num_prefix_tokens(network) if teacher.tokens == "patches" else 0
        # x_teacher = (x * s_imagenet + m_imagenet - m) / s, in one multiplication and one addition.
        mean, std, mean_here, std_here = (
            torch.tensor(values, dtype=torch.float64).view(1, 3, 1, 1)
            for values in (teacher.mean, teacher.std, IMAGENET_MEAN, IMAGENET_STD)
        )
        self.register_buffer("scale", std_here / std)
        self.register_buffer("shift", (mean_here - mean) / std)
        self.identity = _sha256(
            weights,
            teacher.arch,
            self.taps,
            size,
            teacher.resize,
            teacher.mean,
            teacher.std,
            teacher.tokens,
            str(dtype),
        )
        """Names the features: two teachers with the same give the same ones for the same image."""

    def forward(self, image_BCHW: Tensor) -> list[Tensor]:
        """Features [B, P, D] of every tap, not yet scaled to length 1; P counts cls and registers where compared."""
        # In the image's own precision: half of it is enough for the network, not for its input's statistics.
        image_BCHW = self._resized(image_BCHW) * self.scale.to(image_BCHW.dtype) + self.shift.to(image_BCHW.dtype)
        taps = self.network.block_outputs(image_BCHW.to(self.dtype), self.taps)
        return [tap_BPD[:, self.first_token :] for tap_BPD in taps]

    def _resized(self, image_BCHW: Tensor) -> Tensor:
        now = image_BCHW.shape[-1]
        if now == self.size:
            return image_BCHW
        if self.resize == "nearest":
            return interpolate(image_BCHW, size=self.size, mode="nearest")
        return interpolate(image_BCHW, size=self.size, mode="bilinear", antialias=now > self.size)


def build(run: RunSpec, device: torch.device, weights: Mapping[str, Tensor] | None = None) -> Teacher | None:
    """The run's teacher on its device, in the dtype it computes in; None where the spec says `none`.

    `weights`: of its network, in place of the file that the spec names.

    Raises TeacherError where weights are missing, are other than the spec says, or do not fit; StorageError where
    they cannot be reached for now.
    """
    if run.teacher.source == "none":
        return None
    library = MlflowFiles()
    try:
        teacher = settled(run.teacher, library) if weights is None else run.teacher
    except UnknownWeights as error:
        raise TeacherError(f"teacher.{error.field}: asked for {error.asked}; possible: {error.possible}") from error
    network = make(teacher, run)
    # The identity of what the network holds: kept features are named by it.
    if weights is not None:
        loading.fit(network, weights, "the weights", teacher.arch)
        origin = _sha256(
            {
                name: hashlib.sha256(value.numpy(force=True).tobytes()).hexdigest()
                for name, value in sorted(weights.items())
            }
        )
    elif teacher.is_file:
        origin = loading.load(network, teacher, library)
    else:
        origin = _sha256("random", teacher.seed, own.model_dump() if (own := own_encoder(teacher.arch, run)) else None)
    if isinstance(network, UserNetwork):
        origin = _sha256(origin, network.sha256)
    if teacher.arch == "face-api":
        if (teacher.mean, teacher.std) != (IMAGENET_MEAN, IMAGENET_STD):
            logger.warning("teacher.mean and teacher.std are not applied: face-api has statistics of its own")
        teacher = teacher.model_copy(update={"mean": face_api.MEAN, "std": face_api.STD})
    size = teacher.input_size or run.input_size
    return Teacher(network, teacher, size, compute_dtype(run, device), origin).to(device).eval()


def compute_dtype(run: RunSpec, device: torch.device) -> torch.dtype:
    """What matrix products are done in: bf16 needs a GPU, so on a CPU such a run computes in float32."""
    if run.precision == "float64":
        return torch.float64
    return torch.bfloat16 if run.precision == "bf16" and device.type == "cuda" else torch.float32


def _sha256(*parts: object) -> str:
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()
