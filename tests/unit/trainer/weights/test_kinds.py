"""Files of weights are told from other files before anything runs, as their readers will tell them."""

import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from trainer.contract import SpecError
from trainer.resolve import check_and_resolve
from trainer.weights.kinds import why_no_weights

STATE = {"weight": torch.ones(64, 64), "bias": torch.zeros(64)}
WRITERS: dict[str, Callable[[Path], object]] = {
    "a.safetensors": lambda path: save_file(STATE, path),
    "a.pt": lambda path: torch.save({"model": STATE}, path),
    "old.pth.tar": lambda path: torch.save(STATE, path, _use_new_zipfile_serialization=False),
    "a.npz": lambda path: np.savez(path, **{name: value.numpy() for name, value in STATE.items()}),
}


def asked_for(faces: Path, file: Path, field: str) -> dict[str, Any]:
    base = {"preset": "tiny", "data": {"uri": str(faces)}, "teacher": "none"}
    return {"name": "x", "base": base | {field: {"source": str(file)}}, "seeds": 1}


@pytest.mark.parametrize("name", WRITERS)
def test_every_kind_that_a_reader_knows_passes(tiny_faces: Path, tmp_path: Path, name: str) -> None:
    WRITERS[name](tmp_path / name)
    assert why_no_weights(tmp_path / name) is None
    assert check_and_resolve(asked_for(tiny_faces, tmp_path / name, "teacher")).arms[0].runs[0].teacher.sha256


@pytest.mark.parametrize("field", ["teacher", "initial"])
@pytest.mark.parametrize("suffix", [".safetensors", ".pt", ".npz", ""])
@pytest.mark.parametrize(
    "content",
    [b"", b"#!/bin/sh\n" * 100, b"\x89PNG\r\n\x1a\n" + bytes(99), b"\x80\x02}q\x00.", b"\x02" + bytes(7) + b"{}"],
)
def test_what_holds_no_weights_is_refused(
    tiny_faces: Path, tmp_path: Path, field: str, suffix: str, content: bytes
) -> None:
    file = tmp_path / f"file{suffix}"
    file.write_bytes(content)
    with pytest.raises(SpecError, match=rf"{field}.source: asked for .*file{suffix}; possible: "):
        check_and_resolve(asked_for(tiny_faces, file, field))


@pytest.mark.parametrize("name", ["a.safetensors", "a.pt", "a.npz"])
def test_what_was_cut_short_is_refused(tmp_path: Path, name: str) -> None:
    WRITERS[name](tmp_path / name)
    data = (tmp_path / name).read_bytes()
    for length in len(data) // 2, len(data) - 100:
        (tmp_path / name).write_bytes(data[:length])
        assert "cut short" in str(why_no_weights(tmp_path / name))


def test_a_name_that_misleads_the_reader_is_refused(tmp_path: Path) -> None:
    for name, other, told in (
        ("a.safetensors", "b.pt", "needs the name *.safetensors"),
        ("a.pt", "b.safetensors", "length of a header"),
        ("a.npz", "b.pt", "zip without data.pkl"),
        ("a.pt", "b.npz", "zip without arrays"),
    ):
        WRITERS[name](tmp_path / name)
        (tmp_path / name).rename(tmp_path / other)
        assert told in str(why_no_weights(tmp_path / other))


def test_a_program_is_no_state_dict(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "program.pt", "w") as archive:
        for name in "data.pkl", "constants.pkl":
            archive.writestr(f"program/{name}", b"")
    assert "TorchScript" in str(why_no_weights(tmp_path / "program.pt"))
