"""Whose fault an exception is. What peers, devices and stores do must never end a run, however often they do it."""

from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from pydantic import ValidationError

from trainer.contract import RunSpec
from trainer.contract.records import FaultNote
from trainer.elastic.blame import fault_of, is_clusters
from trainer.evaluation.readers.annotations import read_labels
from trainer.store.objects import ObjectMissing, StorageError


@pytest.mark.parametrize(
    "error",
    [
        StorageError("503"),
        ObjectMissing("gone"),
        OSError(28, "No space left on device"),
        ConnectionResetError(),
        TimeoutError(),
        dist.DistBackendError("NCCL communicator was aborted"),
        dist.DistNetworkError("the client socket has timed out"),
        dist.DistStoreError("wait timeout"),
        RuntimeError("[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:553] Connection closed by peer [::1]:34"),
        RuntimeError("CUDA error: uncorrectable ECC error encountered"),
        RuntimeError("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasSgemm`"),
        RuntimeError("DataLoader worker (pid 71) is killed by signal: Killed."),
    ],
)
def test_what_storage_devices_and_peers_do_is_the_cluster_s(error: Exception) -> None:
    assert is_clusters(error)


@pytest.mark.parametrize(
    "error",
    [
        ValueError("x"),
        IndexError("Target 255 is out of bounds."),
        UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid"),
        KeyError("x"),
        ZeroDivisionError(),
        RuntimeError("mat1 and mat2 shapes cannot be multiplied (2x3 and 4x5)"),
        RuntimeError("CUDA error: device-side assert triggered"),
        ValueError("timed out"),
    ],
)
def test_everything_else_is_the_run_s(error: Exception) -> None:
    assert not is_clusters(error)


def raised_by(what: Callable[[], object]) -> Exception:
    with pytest.raises(Exception) as caught:  # noqa: PT011 - whatever it is
        what()
    return caught.value


def test_a_lost_group_is_the_cluster_s_whatever_class_it_raises() -> None:
    assert is_clusters(raised_by(lambda: dist.broadcast_object_list([None])))
    assert not is_clusters(raised_by(lambda: RunSpec.model_validate({"seed": "x"})))
    assert isinstance(raised_by(lambda: RunSpec.model_validate({"seed": "x"})), ValidationError)


def test_a_fault_is_known_again_by_its_kind_and_its_place_in_our_code(tmp_path: Path) -> None:
    # torch and NumPy raise it, the place is the line that has called them.
    one, same, other = (fault_of(raised_by(what)) for what in (
        lambda: read_labels(np.zeros(2)), lambda: read_labels(np.ones(3)), lambda: torch.zeros(2) @ torch.zeros(3),
    ))  # fmt: skip
    assert one[:2] == same[:2] != other[:2]
    assert one.kind == "AttributeError"
    assert one.place.startswith("trainer/evaluation/readers/annotations.py line ")
    assert one.place.endswith("(read_labels)")
    assert one.reason.startswith(f"AttributeError in {one.place}: 'numpy.ndarray' object has no attribute 'decode'\n")
    assert "in read_labels" in one.reason


def test_the_same_place_met_after_further_checkpoints_is_another_accident() -> None:
    note = FaultNote(at=datetime.now(UTC), step=500, kind="KeyError", place="trainer/loop.py line 9 (fit)", reason="")
    assert note.is_again(note.kind, note.place, 500)
    assert not note.is_again(note.kind, note.place, 5000)
    assert not note.is_again("ValueError", note.place, 500)
