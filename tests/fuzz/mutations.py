"""Specs and bodies made wrong: values, keys, encodings, sizes, and files that are not what they claim."""

import copy
import json
import random
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from tests.conftest import draw_faces

SECRET = "nobody-but-its-owner-may-read-this-line"
NUMBERS = (0, -1, 1, 2**31, 2**31 - 1, 2**63, 10**30, 1e308, -1e-320, 0.5, 1.0000001)
TEXTS = (
    "", " ", "\0", "x" * 20_000, "\u202e", "\ud800", "none", "random", "0-4", "../../etc/passwd", "s3://nobody/x",
    "file:///etc/passwd", "run:r", "run:" + "r" * 300, "mlflow:models:/x/1", "2024-01-01", ".nan", "1e999",
)  # fmt: skip
SHAPES: tuple[Any, ...] = (None, True, [], {}, [[]], [None], {"": ""}, {"a": {"b": [1, {"c": None}]}}, list(range(300)))
FIELDS = (
    "name", "seeds", "share", "concurrency", "gpu_hours", "base", "factors", "baseline", "placement", "preset", "data",
    "data.uri", "data.format", "data.keys", "data.index", "data.subset_size", "data.sha256", "input_size", "mask_ratio",
    "encoder", "decoder", "teacher", "teacher.source", "teacher.taps", "batch", "batch.slice", "schedule.length",
    "evaluation", "evaluation.landmarks", "evaluation.labels", "evaluation.images", "evaluation.alignment",
    "evaluation.parsing", "evaluation.folds", "initial", "initial.source", "optimizer.betas", "seed", "cadence",
)  # fmt: skip

# A billion of them, in a few lines.
LAUGHS = b"a: &a [x,x,x,x,x,x,x]\n" + b"".join(
    b"%c: &%c [%s]\n" % (letter, letter, b",".join([b"*%c" % (letter - 1)] * 8)) for letter in b"bcdefghij"
)

Body = tuple[bytes, str]
"""What is sent, and its content type."""


def lay_out(folder: Path) -> dict[str, Any]:
    """Files of every wrong kind in the folder, and a spec that is right."""
    (folder / "faces").mkdir()
    draw_faces(folder / "faces", 24, 32)
    wrong = folder / "wrong"
    wrong.mkdir()
    (wrong / "secret.txt").write_text(f"{SECRET}\n" * 3)
    (wrong / "secret.json").write_text(json.dumps({"face000.png": {"points68": SECRET, SECRET: 1}}))
    (wrong / "empty.json").write_bytes(b"")
    (wrong / "list.json").write_text("[1, 2]")
    (wrong / "null.json").write_text('{"face000.png": null}')
    (wrong / "deep.json").write_text("[" * 50_000)
    (wrong / "short.csv").write_text("file,label\nface000.png\n")
    (wrong / "binary.csv").write_bytes(bytes(range(256)) * 10)
    (wrong / "labels.csv").write_text("file,label\n" + "".join(f"face{n:03d}.png,{n % 2}\n" for n in range(24)))
    (wrong / "cut.safetensors").write_bytes(struct.pack("<Q", 1 << 40) + b"{")
    (wrong / "cut.pt").write_bytes(b"PK\x03\x04" + b"\0" * 40)
    (wrong / "lmdb").mkdir()
    (wrong / "lmdb/data.mdb").write_bytes(b"\0" * 5000)
    (wrong / "dangling").mkdir()
    (wrong / "dangling/face.png").symlink_to(wrong / "nowhere.png")
    (wrong / "shards").mkdir()
    (wrong / "shards/000.tar").write_bytes(b"no tar at all" * 100)
    return {
        "name": "fuzz", "seeds": 2, "concurrency": 1,
        "base": {
            "preset": "tiny", "data": {"uri": str(folder / "faces")}, "teacher": "none",
            "schedule": {"unit": "steps", "length": 3, "warmup": 1}, "evaluation": {"held_out": 4},
        },
        "factors": {"mask_ratio": [0.5, 0.75]},
    }  # fmt: skip


class Mutations:
    """Draws bodies from a seed."""

    def __init__(self, seed: int, right: dict[str, Any], folder: Path) -> None:
        self.rng = random.Random(seed)
        self._right = right
        files = [str(path) for path in sorted((folder / "wrong").rglob("*"))]
        self._values: tuple[Any, ...] = (
            *NUMBERS,
            *TEXTS,
            *SHAPES,
            *files,
            "/proc/self/environ",
            "/dev/zero",
            "/dev/null",
        )

    def spec(self) -> dict[str, Any]:
        """The right one with one to three things wrong."""
        made = copy.deepcopy(self._right)
        for _ in range(self.rng.randint(1, 3)):
            self._spoil(made)
        return made

    def body(self) -> Body:
        made = self.spec()
        form: Callable[[dict[str, Any]], Body] = self.rng.choice([_json, _json, _json, _yaml, self._text])
        return form(made)

    def value(self) -> Any:
        return copy.deepcopy(self.rng.choice(self._values))

    def _spoil(self, spec: dict[str, Any]) -> None:
        field = self.rng.choice(FIELDS)
        top = field in (
            "name",
            "seeds",
            "share",
            "concurrency",
            "gpu_hours",
            "base",
            "factors",
            "baseline",
            "placement",
        )
        place: Any = spec if top else spec.setdefault("base", {})
        *parents, last = field.split(".")
        for parent in parents:
            if not isinstance(place, dict):
                return
            place = place.setdefault(parent, {})
        if not isinstance(place, dict):
            return
        what = self.rng.random()
        if what < 0.1:
            place.pop(last, None)
        elif what < 0.2:
            place[self.rng.choice(TEXTS)] = self.value()
        elif what < 0.3 and isinstance(spec.get("factors"), dict):
            spec["factors"][field] = self.rng.choice([self.value(), [self.value(), self.value()]])
        else:
            place[last] = self.value()

    def _text(self, spec: dict[str, Any]) -> Body:
        """Text that is hardly a spec any more."""
        text = yaml.safe_dump(self._right).encode()
        lines = text.splitlines()
        kind = self.rng.choice(["application/yaml", "application/json", "text/plain", "application/octet-stream", ""])
        spoilt = self.rng.choice([
            text[: self.rng.randrange(len(text))],
            text + self.rng.choice(lines) + b"\n",
            b"\xff\xfe" + text,
            text.decode().encode("utf-16"),
            b"[" * 30_000,
            b"{" * 30_000,
            b"a: &a [*a]\n",
            LAUGHS,
            b"? {a: b}\n: c\n" + text,
            b"2024-01-01: x\n" + text,
            text.replace(b"seeds: 2", b"seeds: .inf"),
            text.replace(b"seeds: 2", b"seeds: !!python/object/apply:os.system ['true']"),
            b'{"seeds": ' + b"9" * 5000 + b"}",
            b'{"name": "x", "seeds": NaN}',
            self.rng.randbytes(300),
            b"",
        ])  # fmt: skip
        return spoilt, kind


def _json(spec: dict[str, Any]) -> Body:
    return json.dumps(spec).encode(), "application/json"


def _yaml(spec: dict[str, Any]) -> Body:
    return yaml.safe_dump(spec, allow_unicode=False).encode("utf-8", "surrogatepass"), "application/yaml"
