"""How long the index of a large data set takes, and how much memory: python -m tests.bench.index [IMAGES]

Rows are made up, their shards are empty files of the right length: no image is read or written. Every phase is a
process of its own, so that its peak is its own.
"""

import hashlib
import json
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from trainer.contract import Data
from trainer.data.images.index import About, Row, Shard, write_index
from trainer.data.manifest import Manifest, open_images, read_manifest

IMAGES = 1_000_000  # the paper's data set has 20,000,000
IMAGES_A_SHARD = 20_000
HELD_OUT = 1000
IMAGE_BYTES = 12_345
ROOT = Path(__file__).parents[2]


def measure(num_images: int = IMAGES) -> dict[str, float]:
    """Seconds, peak MiB of resident memory (mapped files included), and images a second, by what was done."""
    found: dict[str, float] = {"images": num_images}
    with tempfile.TemporaryDirectory(prefix="mcf-bench-") as folder:
        for phase in PHASES:
            command = [sys.executable, "-m", "tests.bench.index", str(num_images), phase, folder]
            answer = subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE)
            seconds, mib = json.loads(answer.stdout)
            found |= {f"{phase}_seconds": seconds, f"{phase}_peak_mib": mib}
        found["index_mib"] = Path(folder, "index.mcf").stat().st_size / 2**20
    return found | {"write_images_a_second": num_images / found["write_seconds"]}


def write(num_images: int, folder: Path) -> None:
    """Write the index; what makes up the rows (one sha256 each) counts too."""
    shards = []
    for number in range(-(-num_images // IMAGES_A_SHARD)):
        with (folder / f"{number:06d}.tar").open("wb") as file:
            file.truncate(IMAGES_A_SHARD * IMAGE_BYTES)
        shards.append(Shard(f"{number:06d}.tar", IMAGES_A_SHARD * IMAGE_BYTES, ""))
    write_index(folder / "index.mcf", _rows(num_images), About("shards", str(folder), tuple(shards)))


def nothing(num_images: int, folder: Path) -> None:
    """Python and the modules alone, to be subtracted from the others' peaks."""


def opened(num_images: int, folder: Path) -> Manifest:
    """Open the data set as a run does: the index beside the shards, and whether it is theirs."""
    data = Data(uri=str(folder), format="shards")
    manifest = read_manifest(data)
    open_images(data, manifest)
    assert len(manifest) == num_images
    return manifest


def subset(size_of: Callable[[int], int]) -> Callable[[int, Path], None]:
    def choose(num_images: int, folder: Path) -> None:
        """Open, choose held-out images and a subset, and name the subset by its digest."""
        size = size_of(num_images)
        chosen = opened(num_images, folder).split(held_out=HELD_OUT, subset_size=size, subset_seed=0).train
        assert len(chosen) == size
        assert chosen.digest

    return choose


PHASES: dict[str, Callable[[int, Path], object]] = {
    "write": write,
    "nothing": nothing,
    "open": opened,
    "subset_1000": subset(lambda images: 1000),
    "subset_twentieth": subset(lambda images: images // 20),
    "subset_all": subset(lambda images: images - HELD_OUT),
}


def _rows(count: int) -> Iterator[Row]:
    for number in range(count):
        shard, place = divmod(number, IMAGES_A_SHARD)
        content = hashlib.sha256(b"%d" % number).digest()
        yield Row(b"%04d/%08d.jpg" % (shard, number), content, IMAGE_BYTES - 512, shard, place * IMAGE_BYTES + 512)


def _peak_mib() -> float:
    # Not getrusage: what that says survives an exec, so it may be the parent's.
    peak = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert peak
    return int(peak[1]) / 1024


def _phase(num_images: int, phase: str, folder: Path) -> None:
    start = time.perf_counter()
    PHASES[phase](num_images, folder)
    print(json.dumps([time.perf_counter() - start, _peak_mib()]))  # noqa: T201


if __name__ == "__main__":
    if len(sys.argv) > 2:
        _phase(int(sys.argv[1]), sys.argv[2], Path(sys.argv[3]))
    else:
        print(json.dumps(measure(*map(int, sys.argv[1:])), indent=1))  # noqa: T201
