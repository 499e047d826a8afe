"""What a step launches, by operation: kernels, casts, bytes and FLOP. Counted on a CPU, where the same code runs.

A kernel is an operation that computes: views and bare memory launch nothing.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from math import prod
from typing import Any, NamedTuple
from unittest.mock import patch

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from trainer import loop
from trainer.teachers import frozen

CAST = "_to_copy"
# They overwrite without a look.
ONLY_WRITE = {"copy_", "fill_", "zero_", "uniform_", "normal_"}

# Said to make a new tensor, and launching nothing.
ONLY_MEMORY = {"_unsafe_view", "empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided"}


class Piece(NamedTuple):
    """Memory that an operation touches: of one storage what one view of it covers."""

    storage: int
    """Its number, of which there is no second while it is counted."""
    view: tuple[Any, ...]
    bytes: int
    whole: int
    """Bytes of the storage."""


class Call(NamedTuple):
    """One operation that computes."""

    name: str
    read: tuple[Piece, ...]
    written: tuple[Piece, ...]
    flop: int
    dtype: torch.dtype
    """Of its products, where it has any."""

    @property
    def bytes(self) -> int:
        """Read and written, as if no cache held anything between two operations."""
        return sum(piece.bytes for piece in (*self.read, *self.written))


class Counted(TorchDispatchMode):
    """Inside, every operation is written down in its order."""

    def __init__(self, *, held: bool = False) -> None:
        """`held`: storages are kept until the end, so that no two have one number. Costs their memory."""
        super().__init__()
        self.calls: list[Call] = []
        self._held: list[Any] | None = [] if held else None

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if not _computes_nothing(func):
            self.calls.append(self._call(func, args, kwargs or {}, result))
        return result

    def _call(self, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any], result: Any) -> Call:
        name = func.overloadpacket.__name__
        given, made = _tensors((args, kwargs)), _tensors(result)
        changed = _changed(func, args, kwargs)
        written = {id(tensor): tensor for tensor in (*changed, *made)}
        read = [tensor for tensor in given if not (name in ONLY_WRITE and id(tensor) in written)]
        formula = flop_registry.get(func.overloadpacket)
        return Call(
            name,
            tuple(map(self._piece, read)),
            tuple(map(self._piece, written.values())),
            formula(*args, **kwargs, out_val=result) if formula else 0,
            _dtype(args, result),
        )

    def _piece(self, tensor: Tensor) -> Piece:
        storage = tensor.untyped_storage()
        if self._held is not None:
            self._held.append(storage)
        # What is expanded is in memory once.
        count = prod(size for size, stride in zip(tensor.shape, tensor.stride(), strict=True) if stride)
        view = (tensor.storage_offset(), *tensor.shape, *tensor.stride())
        return Piece(storage._cdata, view, count * tensor.element_size(), storage.nbytes())

    @property
    def kernels(self) -> Counter[str]:
        return Counter(call.name for call in self.calls)

    @property
    def casts(self) -> int:
        return self.kernels[CAST]

    @property
    def flop(self) -> int:
        return sum(call.flop for call in self.calls)


@contextmanager
def as_on_a_gpu() -> Iterator[None]:
    """bf16 where a run has it on a GPU: in products by autocast, and in what a teacher is made of."""

    def half(run: Any, device: torch.device) -> Any:
        return (
            torch.autocast("cpu", torch.bfloat16) if run.precision == "bf16" else torch.autocast("cpu", enabled=False)
        )

    def dtype(run: Any, device: torch.device) -> torch.dtype:
        return torch.bfloat16 if run.precision == "bf16" else compute_dtype(run, device)

    compute_dtype: Callable[[Any, torch.device], torch.dtype] = frozen.compute_dtype
    with patch.object(loop, "autocast", half), patch.object(frozen, "compute_dtype", dtype):
        yield


def _tensors(tree: Any) -> list[Tensor]:
    """Each once."""
    return list({id(leaf): leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)}.values())


def _dtype(args: Sequence[Any], result: Any) -> torch.dtype:
    """Of an operation's second argument, which is a factor in every product, attention and their gradients."""
    second = _tensors(args[1:2]) or _tensors((args, result))
    return second[0].dtype if second else torch.float32


def _changed(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[Tensor]:
    """What an operation changes in place."""
    asked = func._schema.arguments
    named = {argument.name: value for argument, value in zip(asked, args, strict=False)} | dict(kwargs)
    writes = [a.name for a in asked if a.alias_info is not None and a.alias_info.is_write]
    return _tensors([named.get(name) for name in writes])


def _computes_nothing(func: Any) -> bool:
    """A view of a tensor, memory that nothing is written to, or a question."""
    return (
        func.namespace != "aten"
        or func.overloadpacket.__name__ in ONLY_MEMORY
        or any(each.alias_info is not None and not each.alias_info.is_write for each in func._schema.returns)
    )
