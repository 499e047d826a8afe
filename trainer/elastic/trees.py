"""States as nested dicts, lists and tuples, taken apart into a skeleton and its tensors, and put together again."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Place:
    """Where a tensor was."""

    shape: tuple[int, ...]
    dtype: torch.dtype


def without_tensors(tree: Any, tensors: list[Tensor]) -> Any:
    """The tree with a Place for every tensor; the tensors are appended to `tensors`, in order."""
    if isinstance(tree, Tensor):
        tensors.append(tree)
        return Place(tuple(tree.shape), tree.dtype)
    if isinstance(tree, dict):
        return {key: without_tensors(value, tensors) for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        return type(tree)(without_tensors(value, tensors) for value in tree)
    return tree


def places(tree: Any) -> Iterator[Place]:
    """Places of a skeleton, in the order of its tensors."""
    if isinstance(tree, Place):
        yield tree
    for inner in tree.values() if isinstance(tree, dict) else tree if isinstance(tree, list | tuple) else ():
        yield from places(inner)


def with_tensors(skeleton: Any, tensors: Sequence[Tensor]) -> Any:
    """Inverse of `without_tensors`."""
    left = iter(tensors)

    def filled(tree: Any) -> Any:
        if isinstance(tree, Place):
            return next(left)
        if isinstance(tree, dict):
            return {key: filled(value) for key, value in tree.items()}
        if isinstance(tree, list | tuple):
            return type(tree)(filled(value) for value in tree)
        return tree

    return filled(skeleton)
