"""Telling files of weights from other files, and whole ones from those cut short, without torch.

Readers go by the name (trainer/weights/files.py, trainer/teachers/loading.py), and so does what is expected here:

    .safetensors    the length of a header, the header as JSON, and as many bytes as its tensors take
    .npz            a zip of arrays
    any other       torch's: a zip with a data.pkl, or a pickle that begins with torch's own magic number
"""

import json
import zipfile
from pathlib import Path
from typing import Any, BinaryIO

# As the library has it.
MAX_HEADER = 100_000_000
# What torch.save wrote before its files were zips: the number 0x1950a86a20f9469cfc6c by pickle's protocol 2.
LEGACY_TORCH = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."
ZIP = b"PK\x03\x04"


def why_no_weights(path: Path) -> str | None:
    """What keeps the file from being one of weights; None where nothing that can be seen from outside does."""
    with path.open("rb") as file:
        if path.suffix == ".safetensors":
            return _no_safetensors(file, path.stat().st_size)
        beginning = file.read(len(LEGACY_TORCH))
        if path.suffix != ".npz" and beginning == LEGACY_TORCH:
            return None
        if not beginning.startswith(ZIP):
            what = "NumPy" if path.suffix == ".npz" else "torch"
            return f"it does not begin like a file of {what}; the safetensors format needs the name *.safetensors"
        return _no_zip_of_weights(file, path.suffix == ".npz")


def _no_safetensors(file: BinaryIO, size: int) -> str | None:
    length = int.from_bytes(file.read(8), "little")
    if size < 8 or not 2 <= length <= min(MAX_HEADER, size - 8):
        return "it does not begin with the length of a header, as a file of the safetensors format does"
    try:
        header: Any = json.loads(file.read(length))
        ends = [tensor["data_offsets"][1] for name, tensor in header.items() if name != "__metadata__"]
        end = 8 + length + max(ends, default=0)
    except (ValueError, RecursionError, AttributeError, KeyError, IndexError, TypeError):
        return "its header is not that of a file of the safetensors format"
    if not ends:
        return "it holds no tensors"
    return None if size == end else f"it has {size} bytes, and should have {end}: it was cut short or changed"


def _no_zip_of_weights(file: BinaryIO, arrays: bool) -> str | None:
    try:
        with zipfile.ZipFile(file) as archive:
            names = [name.rpartition("/")[2] for name in archive.namelist()]
    except zipfile.BadZipFile:
        return "it is a zip without its end: it was cut short or changed"
    if arrays:
        return None if any(name.endswith(".npy") for name in names) else "it is a zip without arrays (*.npy)"
    if "constants.pkl" in names:
        return "it is a TorchScript program; possible: the state dict alone, which torch.save writes"
    return None if "data.pkl" in names else "it is a zip without data.pkl, which torch.save writes"
