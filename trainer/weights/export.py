"""The online encoder as others use it: a plain timm ViT in safetensors, with a model card.

config.json is timm's own hub format, so `timm.create_model("local-dir:FOLDER", pretrained=True)` loads the folder;
`model_args` alone are enough for timm's VisionTransformer. Needs no timm itself.
"""

import hashlib
import json
import tempfile
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from trainer.contract import IMAGENET_MEAN, IMAGENET_STD, RunSpec, records
from trainer.contract.records import CARD, CONFIG, POINTER, WEIGHTS, Metric, Result
from trainer.method.mcf import Mcf
from trainer.store.objects import Store

# The name timm builds from; `model_args` say every size, so it decides nothing.
ARCHITECTURE = "vit_base_patch16_224"


def export(run: RunSpec, model: Mcf, result: Result, store: Store) -> dict[str, bytes]:
    """Write export/ into the run's directory. Raises StorageError.

    Returns what MLflow gets, by artifact name: the card, and a pointer to the weights instead of them.
    """
    with tempfile.TemporaryDirectory(prefix="mcf-export-") as scratch:
        path = Path(scratch, WEIGHTS)
        save_file({name: value.float().cpu().contiguous() for name, value in model.encoder.state_dict().items()}, path)
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        pointer = {
            "uri": result.export, "file": WEIGHTS, "sha256": digest, "bytes": path.stat().st_size,
            "spec_digest": run.digest, "steps": result.steps,
        }  # fmt: skip
        store.put_file(records.EXPORT + WEIGHTS, path)
    config = json.dumps(timm_config(run), indent=1).encode()
    card = model_card(run, result, digest).encode()
    store.put(records.EXPORT + CONFIG, config)
    store.put(records.EXPORT + CARD, card)
    return {
        f"{records.EXPORT}{POINTER}": json.dumps(pointer, indent=1).encode(),
        f"{records.EXPORT}{CARD}": card,
        f"{records.EXPORT}{CONFIG}": config,
    }


def export_address(store: Store) -> str:
    """Where `export` writes: Result.export."""
    return f"{store.uri.rstrip('/')}/{records.EXPORT.rstrip('/')}"


def timm_config(run: RunSpec) -> dict[str, Any]:
    """timm's hub configuration; `model_args` are the arguments of timm.models.vision_transformer.VisionTransformer."""
    encoder = run.encoder
    return {
        "architecture": ARCHITECTURE,
        "num_classes": 0,
        "num_features": encoder.width,
        "global_pool": "token",
        "model_args": {
            "img_size": run.input_size, "patch_size": encoder.patch, "embed_dim": encoder.width,
            "depth": encoder.depth, "num_heads": encoder.heads, "num_classes": 0, "global_pool": "token",
        },
        "pretrained_cfg": {
            "input_size": [3, run.input_size, run.input_size], "num_classes": 0, "fixed_input_size": True,
            "interpolation": "bilinear", "crop_pct": 1.0, "crop_mode": "center",
            "mean": list(IMAGENET_MEAN), "std": list(IMAGENET_STD), "first_conv": "patch_embed.proj",
        },
    }  # fmt: skip


def model_card(run: RunSpec, result: Result, digest: str) -> str:
    """Markdown: what this is, how to load it, what was measured, what it was made from."""
    encoder = run.encoder
    return f"""\
---
library_name: timm
tags: [face-representation, self-supervised]
---
# Face encoder pretrained with MCF

ViT, width {encoder.width}, {encoder.depth} blocks, {encoder.heads} heads, patch {encoder.patch}, input \
{run.input_size} x {run.input_size} RGB, ImageNet mean and deviation. The online encoder of one pretraining run, \
without projector and decoder.

## Load

```python
{LOADING}
```

`model.forward_features(images)` gives cls and patch tokens after the final norm, `model(images)` the cls token.

## Measured

{_metrics_table(result)}

{result.probe_note}

Sanity metrics show that training worked; they do not rank models.

## Made from

| | |
| --- | --- |
| images | {result.subset_size}, digest `{result.subset_digest[:16]}` |
| steps | {result.steps}, {result.images_seen} images in all |
| mask | {run.mask.kind}, {run.mask_ratio} of the patches |
| teacher | {_teacher(run)} |
| seed | {run.seed} |
| spec | `{run.digest}` |
| weights | sha256 `{digest}` |

<details><summary>Full spec</summary>

```json
{run.model_dump_json(indent=1)}
```

</details>
"""


LOADING = """\
import json, safetensors.torch, timm
model = timm.models.vision_transformer.VisionTransformer(**json.load(open("config.json"))["model_args"])
model.load_state_dict(safetensors.torch.load_file("model.safetensors"))"""


def _metrics_table(result: Result) -> str:
    rows = ["| metric | value | |", "| --- | --- | --- |"]
    if result.probe and result.floors:
        rows.append(_row(result.probe))
        for name, floor in (("raw pixels", result.floors.pixels), ("untrained", result.floors.random_encoder)):
            rows.append(f"| floor: {name} | {floor:.2f} {result.probe.unit} | |")
    staged = [metric for stage in result.stages for metric in stage.metrics]
    return "\n".join([*rows, *map(_row, [*staged, *result.sanity])])


def _row(metric: Metric) -> str:
    better = "higher" if metric.higher_is_better else "lower"
    between = f" ({metric.low:.2f} to {metric.high:.2f})" if metric.low is not None and metric.high is not None else ""
    return f"| {metric.name} | {metric.value:.2f}{between} {metric.unit} | {better} is better |"


def _teacher(run: RunSpec) -> str:
    teacher = run.teacher
    if teacher.source == "none":
        return "none: masked pixels"
    what = (
        "random weights (control)" if teacher.source == "random" else f"sha256 `{(teacher.sha256 or 'unknown')[:16]}`"
    )
    return f"{teacher.arch}, {what}, blocks {', '.join(map(str, teacher.taps))}"
