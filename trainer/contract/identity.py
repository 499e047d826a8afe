"""What makes a pretraining, a measurement or a run the same as another one: digests of what decides its numbers.

A field at its default is left out, so a release may add fields and no digest changes. In return a default never changes
(docs/decisions/0020). An address is left out where the digest of what is there is known: files may move.
"""

import hashlib
import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from trainer.contract.run import RunSpec

SCHEMA = 1
"""Counted up when the same payload comes to mean other numbers."""
ADDRESSES = {
    "data": ("uri", "format", "keys", "suffix", "index"), "teacher": ("source",), "initial": ("source",),
    "mask": ("landmarks",), "mask.code": ("uri",), "contrastive.target_mask": ("landmarks",),
    "contrastive.target_mask.code": ("uri",), "teacher.code": ("uri",), "teacher.loss": ("uri",),
}  # fmt: skip


def pretraining(run: "RunSpec") -> str:
    """Digest of what decides the weights: everything but evaluation and cadence, and the images that are held out."""
    if run.data.subset_seed == "run":
        # As a number before anything is left out: it may be the default.
        run = run.model_copy(update={"data": run.data.model_copy(update={"subset_seed": run.subset_seed})})
    asked = run.model_dump(mode="json", exclude_defaults=True, exclude={"evaluation", "cadence"})
    for name, addresses in ADDRESSES.items():
        *above, part = name.split(".")
        inner = asked
        for each in above:
            inner = inner.get(each) or {}
        if inner.get(part):
            inner[part] = _wherever(inner[part], addresses)
    return _digest("pretraining", {**asked, "held_out": run.evaluation.held_out})


def measurements(run: "RunSpec") -> dict[str, str]:
    """Digest of each measurement that a run asks for, by name: `sanity`, `probe`, and its stages.

    Each is of a pretraining and of what is asked of it.
    """
    evaluation = run.evaluation
    asked: dict[str, Any] = {"sanity": {"mask_ratio": evaluation.mask_ratio}}
    if kind := "landmarks" if evaluation.landmarks else "labels" if evaluation.labels else None:
        fields = evaluation.model_dump(mode="json", include={"folds", "images", kind, "sha256"}, exclude_none=True)
        asked["probe"] = {"kind": kind, **_wherever(fields, ("images", kind))}
    for name, stage in evaluation.stages.items():
        asked[name] = _wherever(stage.model_dump(mode="json", exclude_defaults=True), ("uri",))
    weights = pretraining(run)
    return {name: _digest(name, {"pretraining": weights, **of}) for name, of in asked.items()}


def run(run: "RunSpec") -> str:
    """Digest of a run: of its pretraining, and of all that is measured of it."""
    return _digest("run", measurements(run))


def _wherever(asked: dict[str, Any], addresses: tuple[str, ...]) -> dict[str, Any]:
    if asked.get("sha256") is None:
        return asked
    return {name: value for name, value in asked.items() if name not in addresses}


def _digest(kind: str, asked: dict[str, Any]) -> str:
    text = json.dumps({"schema": SCHEMA, "kind": kind, "asked": asked}, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()
