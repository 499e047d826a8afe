"""How fast a step could be on a GPU, from its operations alone: python -m tests.bench.roofline

An estimate. The published ViT-B/16 step is taken with tensors that have shapes and no numbers, so it costs no
arithmetic, and every operation is given a time: the longer of its FLOP at the data sheet's peak of their precision and
its bytes at the bandwidth of the card's memory, and 5 us for its launch. Launches are added and not overlapped: Python
makes them one after the other, and a small kernel is over before the next one is there.

eager   Every operation is a kernel of its own, which reads all its inputs from memory and writes all its outputs.
fused   All operations between two products (matrix products, attention) are one kernel: it reads once what was made
        before it, and writes once what is used after it. What is made and used inside it costs nothing. A compiler
        comes near this without reaching it: sorts, and sums over a whole batch, do not fit into a neighbour's kernel.

No matrix product runs at the data sheet's peak either, so both are what a card cannot exceed. A third row has the fused
step with products at the share of the peak that a large plain one reached on the card that has been measured.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import cache
from itertools import groupby
from typing import Any, NamedTuple
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from tests.bench.launches import CAST, Call, Counted, Piece, as_on_a_gpu
from tests.bench.step import PUBLISHED_STEP, prepared
from trainer.contract import Batch
from trainer.elastic.distributed import World
from trainer.tracking.cards import CARDS, Card

LAUNCH_SECONDS = 5e-6
PASSES = (1, 2, 4, 8, 16)
COMPARED = {"H100": "H100", "H200": "H200", "A100 (SXM, 80 GB)": "A100-SXM4-80GB"}

PRODUCTS, ATTENTION, BETWEEN, OTHERS = "matrix products", "attention", "all between two products", "everything else"
ONCE = "target, gradient norm, optimizer"
KINDS = {
    PRODUCTS: ("mm", "addmm", "bmm", "baddbmm", "convolution"),
    "layer norm": ("native_layer_norm", "native_layer_norm_backward"),
    "GELU": ("gelu", "gelu_backward"),
    "casts": (CAST,),
    "additions": ("add", "add_"),
    "sums and means": ("sum", "mean", "linalg_vector_norm"),
    "copies (clone, cat, gather and their gradients)": (
        "clone", "copy_", "cat", "stack", "gather", "scatter_add_", "scatter_add", "index", "new_zeros",
        "slice_backward", "select_backward", "zeros", "zeros_like",
    ),
}  # fmt: skip


class Alone(World):
    """A world without processes: tensors without numbers cannot be sent."""

    def synchronised(self, model: nn.Module) -> Any:
        model.no_sync = nullcontext  # type: ignore[assignment]
        return model

    def form_teams(self, teams: Any) -> None:
        pass


@dataclass(frozen=True)
class Step:
    """Operations of the published step in passes of some size."""

    cells: int
    """Of a pass."""
    one_pass: tuple[Call, ...]
    move: tuple[Call, ...]
    """Of the target, before the keys of a group are made."""
    once: tuple[Call, ...]
    """Gradient norm, the target's last move and the optimizer, after all passes."""

    @property
    def parts(self) -> tuple[tuple[tuple[Call, ...], float], ...]:
        """Operations, and how often a step has them."""
        batch = Batch()
        return (self.one_pass, batch.num_cells / self.cells), (self.move, batch.num_groups), (self.once, 1)

    @property
    def flop_an_image(self) -> float:
        return sum(call.flop for call in self.one_pass) / (self.cells * Batch().slice)


class Kernel(NamedTuple):
    """What one launch does."""

    kind: str
    flop: int
    bytes: int
    dtype: torch.dtype

    def seconds(self, card: Card, reached: float = 1.0) -> float:
        """`reached`: share of the peak that a product gets to."""
        peak = card.bf16 if self.dtype == torch.bfloat16 else card.float32
        return max(self.flop / (peak * reached), self.bytes / card.memory) + LAUNCH_SECONDS


@cache
def step_of(cells: int) -> Step:
    """In passes of so many cells.

    A group here is as large as a pass: that changes how many keys a query meets, a hundred thousandth of the FLOP.
    """
    with as_on_a_gpu(), without_numbers():
        bench = prepared(Alone(0, 1, torch.device("cpu")), Batch().slice, cells)
        for weight in bench.parts.model.parameters():
            # As after the first pass: the others are added to it.
            weight.grad = torch.zeros_like(weight) if weight.requires_grad else None
        bench.parts.optimizer.step()  # what it makes once a run is not counted
        with Counted(held=True) as passed:
            bench.pass_once()
        with Counted(held=True) as once:
            bench.step_once()
    moves = [call for call in passed.calls if kind_of(call) == ONCE]
    return Step(cells, tuple(call for call in passed.calls if call not in moves), tuple(moves), tuple(once.calls))


@contextmanager
def without_numbers() -> Iterator[None]:
    """Inside, tensors have shapes only, and networks can be made, converted and copied all the same."""

    def copied(tensor: Tensor, memo: object) -> Tensor:
        # Its own copy would have a copied mode, and two do not mix.
        return nn.Parameter(tensor.detach().clone(), tensor.requires_grad)

    converting = patch.object(nn.Module, "_apply", converted)
    with FakeTensorMode(), converting, patch.object(FakeTensor, "__deepcopy__", copied, create=True):
        yield


def converted(module: nn.Module, change: Callable[[Tensor], Tensor], recurse: bool = True) -> nn.Module:
    """What nn.Module does by swapping tensors in place, which those without numbers do not let it do."""
    for part in module.modules():
        for name, weight in part._parameters.items():
            if weight is not None:
                part._parameters[name] = nn.Parameter(change(weight.detach()), weight.requires_grad)
        for name, value in part._buffers.items():
            if value is not None:
                part._buffers[name] = change(value)
    return module


def kind_of(call: Call) -> str:
    if "scaled_dot_product" in call.name:
        return ATTENTION
    if call.name.startswith(("_foreach_", "_fused_adamw")):
        return ONCE
    return next((kind for kind, names in KINDS.items() if call.name in names), OTHERS)


def eager(calls: Sequence[Call]) -> list[Kernel]:
    return [Kernel(kind_of(call), call.flop, call.bytes, call.dtype) for call in calls]


def fused(calls: Sequence[Call]) -> list[Kernel]:
    """By the rule at the top of this file."""
    kernels = []
    last_read = {piece.storage: at for at, call in enumerate(calls) for piece in call.read}
    outside = made_before(calls)
    for between, stretch in groupby(enumerate(calls), lambda one: kind_of(one[1]) not in (PRODUCTS, ATTENTION, ONCE)):
        some = list(stretch)
        if between:
            moved = bytes_of_stretch([call for _, call in some], some[-1][0], last_read, outside)
            kernels.append(Kernel(BETWEEN, 0, moved, torch.float32))
        else:
            kernels += eager([call for _, call in some])
    return kernels


def made_before(calls: Sequence[Call]) -> set[int]:
    """Storages that were there before the first call: weights, gradients, images."""
    found, made = set(), set()
    for call in calls:
        found |= {piece.storage for piece in call.read} - made
        made |= {piece.storage for piece in call.written}
    return found


def bytes_of_stretch(calls: Sequence[Call], end: int, last_read: dict[int, int], outside: set[int]) -> int:
    """What calls that follow each other, the last of them number `end`, read from memory and write to it."""
    read: list[Piece] = []
    written: list[Piece] = []
    own: set[int] = set()
    for call in calls:
        read += [piece for piece in call.read if piece.storage not in own]
        written += call.written
        own |= {piece.storage for piece in call.written}
    lasting = [piece for piece in written if piece.storage in outside or last_read.get(piece.storage, -1) > end]
    return covered(read) + covered(lasting)


def covered(pieces: Sequence[Piece]) -> int:
    """Bytes of these pieces, each counted once; several views of a storage are at most all of it."""
    seen: Counter[int] = Counter()
    whole = {}
    for piece in dict.fromkeys(pieces):
        seen[piece.storage] += piece.bytes
        whole[piece.storage] = piece.whole
    return sum(min(count, whole[storage]) for storage, count in seen.items())


FORMS = {"eager": eager, "fused": fused}
# On a H200 a step was at 0.18 of the peak and at 0.23 of a plain product (docs/performance.md).
REACHED = 0.18 / 0.23
ROWS = (
    ("eager", "eager", 1.0), ("fused", "fused", 1.0),
    (f"fused, products at {REACHED:.2f} of the peak", "fused", REACHED),
)  # fmt: skip


@dataclass(frozen=True)
class Estimate:
    """Of a step of the published size."""

    seconds: float
    images_per_second: float
    share_of_peak: float


def estimate(card: Card, form: str, cells: int, reached: float = 1.0) -> Estimate:
    step = step_of(cells)
    seconds = sum(
        kernel.seconds(card, reached) * times for kernels, times in kernels_of(step, form) for kernel in kernels
    )
    rate = PUBLISHED_STEP / seconds
    return Estimate(seconds, rate, rate * step.flop_an_image / card.bf16)


def kernels_of(step: Step, form: str) -> Iterator[tuple[list[Kernel], float]]:
    """Kernels, and how often a step has them."""
    return ((FORMS[form](calls), times) for calls, times in step.parts)


@dataclass
class Cost:
    """Of an image."""

    kernels: float = 0.0
    flop: float = 0.0
    bytes: float = 0.0
    seconds: float = 0.0

    def add(self, kernel: Kernel, card: Card, times: float) -> None:
        self.kernels += times
        self.flop += kernel.flop * times
        self.bytes += kernel.bytes * times
        self.seconds += kernel.seconds(card) * times

    def shown(self) -> str:
        return f"{self.kernels:.2f} | {self.flop / 1e9:.1f} | {self.bytes / 1e6:.0f} | {self.seconds * 1e6:.0f}"


def by_card() -> str:
    """Images/s and the share of the peak, by card and size of a pass."""
    lines = [
        "| card | | " + " | ".join(f"pass of {cells}" for cells in PASSES) + " |",
        "| --- | --- |" + " --- |" * len(PASSES),
    ]
    for name, key in COMPARED.items():
        for what, form, reached in ROWS:
            found = [estimate(CARDS[key], form, cells, reached) for cells in PASSES]
            shown = [f"{each.images_per_second:,.0f} ({each.share_of_peak:.2f})" for each in found]
            lines.append(f"| {name} | {what} | {' | '.join(shown)} |")
    return "\n".join(lines)


def by_operation(key: str = "H200", cells: int = 8) -> str:
    """What an image costs, by kind of operation."""
    step, card = step_of(cells), CARDS[key]
    lines = [
        f"| {key}, pass of {cells} | kernels an image | GFLOP an image | MB an image | us an image |",
        "| --- | --- | --- | --- | --- |",
    ]
    for form in FORMS:
        rows: dict[str, Cost] = {}
        for kernels, times in kernels_of(step, form):
            for kernel in kernels:
                rows.setdefault(kernel.kind, Cost()).add(kernel, card, times / PUBLISHED_STEP)
                rows.setdefault("all", Cost()).add(kernel, card, times / PUBLISHED_STEP)
        ordered = sorted(rows.items(), key=lambda row: (row[0] == "all", -row[1].seconds))
        lines += [f"| {form}: {kind} | {cost.shown()} |" for kind, cost in ordered]
    return "\n".join(lines)


if __name__ == "__main__":
    print(by_card(), by_operation(), sep="\n\n")  # noqa: T201
