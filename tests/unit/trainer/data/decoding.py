"""A process that decodes a subset as a run does, and says how many images it had to decode itself.

Asked by JSON: `uri`, `subset` (its size) and `size`; `ready` and `go`, files: it makes one and waits for the other;
`dies_at`: SIGKILL in the middle of writing that row, after so many bytes of it.
"""

import hashlib
import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

from torch import Tensor

from trainer.contract import MAX_PIXELS, Data
from trainer.data import slots
from trainer.data.decode import Fit, decode
from trainer.data.decoded import InMemory
from trainer.data.kept import kept_pixels
from trainer.data.manifest import Manifest, open_images, read_manifest


def main() -> None:
    asked = json.loads(sys.argv[1])
    if ready := asked.get("ready"):
        Path(ready).touch()
        while not Path(asked["go"]).exists():
            time.sleep(0.001)
    if dies_at := asked.get("dies_at"):
        slots._write = Dying(*dies_at)
    print(json.dumps(load(asked["uri"], asked["subset"], asked["size"])))  # noqa: T201


def load(uri: str, subset: int, size: int, keep: bool = True, manifest: Manifest | None = None) -> dict[str, Any]:
    data = Data(uri=uri)
    manifest = manifest or read_manifest(data)
    rows = manifest.split(held_out=0, subset_size=subset, subset_seed=0).train
    decoded: list[int] = []

    def counting(encoded: bytes, side: int, fit: Fit, max_pixels: int) -> Tensor:
        decoded.append(len(encoded))
        time.sleep(0.002)  # or one would be done before the other begins
        return decode(encoded, side, fit, max_pixels)

    with kept_pixels(rows, size, "crop", MAX_PIXELS) as kept:
        loaded = InMemory(
            open_images(data, manifest), rows, size, "crop", subset, MAX_PIXELS, counting, kept if keep else None
        )
    pixels = hashlib.sha256(loaded.get(range(subset)).image_BCHW.numpy().tobytes()).hexdigest()
    return {"decoded": len(decoded), "pixels": pixels, "reasons": sorted(loaded.reasons.values())}


class Dying:
    """Writes, and is killed in the middle of one row."""

    def __init__(self, row: int, after: int) -> None:
        self.left, self.after, self.write = row, after, slots._write

    def __call__(self, number: int, data: bytes | memoryview, place: int) -> None:
        self.left -= len(data) > 1  # and not a mark
        if self.left < 0:
            self.write(number, memoryview(data)[: self.after], place)
            os.kill(os.getpid(), signal.SIGKILL)
        self.write(number, data, place)
