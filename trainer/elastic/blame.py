"""Whose fault an exception is: the cluster's, which another start may be spared, or the run's own."""

import traceback
from pathlib import Path
from typing import NamedTuple

import torch.distributed as dist

from trainer.store.objects import StorageError

PACKAGE = Path(__file__).resolve().parents[1]
# What torch has no classes for. Lost peers (gloo, NCCL), devices, and processes that were killed, in its own words.
CLUSTER_WORDS = (
    "gloo", "NCCL", "CUDA", "cuDNN", "CUBLAS", "timed out", "Timed out", "Connection closed", "Connection reset",
    "Broken pipe", "DataLoader worker",
)  # fmt: skip
# A kernel that was given an index beyond its table says it is a fault of the device.
OWN_WORDS = "device-side assert"
KEPT_LINES = 6


class Fault(NamedTuple):
    """An exception, and where it was raised."""

    kind: str
    place: str
    """File of this package, line and function; of any file where it has none in it."""
    reason: str
    """What it says, and the last lines of how it came about."""


def is_clusters(error: Exception) -> bool:
    """Whether storage, a device or another process has failed: signals, lost peers, collectives that timed out."""
    # The end of a pipe is the end of whoever had its other end.
    if isinstance(error, StorageError | OSError | EOFError | dist.DistError):
        return True
    frames = traceback.extract_tb(error.__traceback__)
    if frames and "/torch/distributed/" in frames[-1].filename:
        return True
    said = str(error)
    return isinstance(error, RuntimeError) and OWN_WORDS not in said and any(word in said for word in CLUSTER_WORDS)


def fault_of(error: Exception) -> Fault:
    frames = traceback.extract_tb(error.__traceback__)
    ours = [frame for frame in frames if PACKAGE in Path(frame.filename).resolve().parents]
    place = "nowhere"
    if found := (ours or frames)[-1:]:
        file = Path(found[0].filename).resolve()
        name = file.relative_to(PACKAGE.parent) if ours else file
        place = f"{name} line {found[0].lineno} ({found[0].name})"
    lines = "".join(traceback.format_exception(error)).strip().splitlines()
    kind = type(error).__name__
    return Fault(kind, place, "\n".join([f"{kind} in {place}: {error}", *lines[-KEPT_LINES:]]))
