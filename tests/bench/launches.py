"""What a step launches, by operation: kernels, casts, bytes and FLOP. Counted on a CPU, where the same code runs.

A kernel is an operation that computes: views launch nothing.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from trainer import loop

CAST = torch.ops.aten._to_copy.default


@dataclass
class Counted(TorchDispatchMode):
    """Inside, every operation is counted by its name."""

    kernels: Counter[str] = field(default_factory=Counter)
    bytes: Counter[str] = field(default_factory=Counter)
    """Read and written, as if no cache held anything between two operations."""
    flop: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        super().__init__()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if not _is_view(func):
            name = func.overloadpacket.__name__
            self.kernels[name] += 1
            touched = {id(leaf): leaf for leaf in tree_leaves((args, kwargs, result)) if isinstance(leaf, Tensor)}
            self.bytes[name] += sum(leaf.numel() * leaf.element_size() for leaf in touched.values())
            if counter := flop_registry.get(func.overloadpacket):
                self.flop[name] += counter(*args, **(kwargs or {}), out_val=result)
        return result

    @property
    def casts(self) -> int:
        return self.kernels[CAST.overloadpacket.__name__]


@contextmanager
def counted(*, autocast: bool = True) -> Iterator[Counted]:
    """`autocast`: to bf16, as a run has it on a GPU."""
    half = lambda run, device: torch.autocast("cpu", torch.bfloat16)  # noqa: E731
    with patch.object(loop, "autocast", half) if autocast else patch.dict({}), Counted() as found:
        yield found


def _is_view(func: Any) -> bool:
    return any(each.alias_info is not None and not each.alias_info.is_write for each in func._schema.returns)
