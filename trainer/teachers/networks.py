"""The networks a teacher can be, each with its blocks tapped: plain ViTs of our own, timm's by name, face-api's."""

import re
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from trainer.contract import ENCODERS, EXPORTED_ARCH, Code, EncoderSpec, RunSpec, TeacherSpec
from trainer.method import vit
from trainer.method.draws import weights_generator
from trainer.teachers.errors import TeacherError
from trainer.teachers.face_api import FaceApi
from trainer.usercode.loading import UserFunction
from trainer.usercode.reading import TEACHER

# Not one of mcf.build's parts: a random teacher must not be the encoder as it was drawn.
TEACHER_PART = 100


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
            raise TeacherError(f"{name!r} is no ViT; possible: a timm ViT, {', '.join(OWN)}")

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


class UserNetwork(nn.Module):
    """A network that user code makes."""

    def __init__(self, code: Code, size: int) -> None:
        """Makes it, and looks at what it gives for a black image of `size` pixels. Raises UserCodeError."""
        super().__init__()
        self._function = UserFunction(code, TEACHER)
        network = self._function()
        if not isinstance(network, nn.Module):
            raise self._function.wrong(f"it returned {_kind(network)}; possible: a torch.nn.Module")
        self.network = network.requires_grad_(False).eval()
        with torch.enable_grad():
            outputs = self._outputs(torch.zeros(1, 3, size, size, requires_grad=True))
        if not all(output_BPD.requires_grad for output_BPD in outputs):
            raise self._function.wrong("no gradient passes from its features to the image")
        self.depth = len(outputs)

    @property
    def sha256(self) -> str:
        return self._function.sha256

    def block_outputs(self, image_BCHW: Tensor, taps: Sequence[int]) -> list[Tensor]:
        """Features [B, P, D], by their place in what the network gives."""
        outputs = self._outputs(image_BCHW)
        return [outputs[tap] for tap in taps]

    # A compiler would tell of its own troubles where the code has some.
    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def _outputs(self, image_BCHW: Tensor) -> Sequence[Tensor]:
        outputs = self._function.watched(self.network, image_BCHW)
        if not isinstance(outputs, list | tuple) or not outputs:
            raise self._function.wrong(f"its network gives {_kind(outputs)}; possible: a list of features [B, P, D]")
        for output in outputs:
            if not isinstance(output, Tensor) or output.dim() != 3 or len(output) != len(image_BCHW):
                raise self._function.wrong(
                    f"its network gives {_kind(output)} for {len(image_BCHW)} images; possible: features [B, P, D]"
                )
        return outputs


def _kind(value: object) -> str:
    return f"a tensor of shape {list(value.shape)}" if isinstance(value, Tensor) else f"a {type(value).__name__}"


# Each has `depth`, and `block_outputs` at its taps.
Network = vit.Encoder | FaceApi | TimmVit | UserNetwork


def make(teacher: TeacherSpec, run: RunSpec) -> Network:
    """The teacher's network: with drawn weights where the source is `random`, else with none to speak of.

    Raises TeacherError where there is no such architecture, or it has no such block.
    """
    size = teacher.input_size or run.input_size
    if own := own_encoder(teacher.arch, run):
        with torch.device("meta" if teacher.is_file else "cpu"):  # what a file replaces need not be drawn
            network: Network = vit.Encoder(own, size)
        if not teacher.is_file:
            vit.initialise(network, weights_generator(teacher.seed, TEACHER_PART))
    else:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(teacher.seed)
            if teacher.arch == "code":
                assert teacher.code, "arch code without code"
                network = UserNetwork(teacher.code, size)
            else:
                network = FaceApi() if teacher.arch == "face-api" else TimmVit(teacher.arch, size)
    if teacher.taps[-1] >= network.depth:
        raise TeacherError(
            f"teacher.taps asks for block {teacher.taps[-1]}; {teacher.arch} has blocks 0 to {network.depth - 1}"
        )
    return network


def own_encoder(arch: str, run: RunSpec) -> EncoderSpec | None:
    """Sizes of an architecture that is our own ViT; None for all others."""
    if match := re.fullmatch(EXPORTED_ARCH, arch):
        return EncoderSpec(**{name: int(number) for name, number in match.groupdict().items()})
    return OWN[arch](run) if arch in OWN else None


OWN: dict[str, Callable[[RunSpec], EncoderSpec]] = {
    "as-encoder": lambda run: run.encoder,
    "mocov3-vit-b16": lambda run: EncoderSpec(**ENCODERS["vit-b16"]),
}


def num_prefix_tokens(network: Network) -> int:
    """cls and registers, which stand before the patches in every tap."""
    if isinstance(network, TimmVit):
        return int(network.vit.num_prefix_tokens)
    return 0 if isinstance(network, FaceApi | UserNetwork) else 1
