"""The request body in the OpenAPI document: its schema and examples that run as they stand, given the files."""

from typing import Any

from trainer.contract import ExperimentSpec

TEACHERS: dict[str, Any] = {
    "name": "teachers",
    "base": {"preset": "vit-b16", "data": {"uri": "s3://faces/train", "subset_size": 100000}},
    "factors": {
        "teacher": ["none", {"source": "s3://weights/mocov3-vit-b.pth"}],
        "mask_ratio": [0.6, 0.75, 0.9],
    },
    "seeds": 3,
    "baseline": {"mask_ratio": 0.75, "teacher": "none"},
    "concurrency": 4,
    "placement": {"min_nodes": 1, "max_nodes": 2, "processes_per_node": 8},
}

SINGLE: dict[str, Any] = {
    "name": "one-run",
    "base": {"preset": "tiny", "data": {"uri": "/data/faces"}, "teacher": "random"},
    "seeds": 1,
}

EXAMPLES: dict[str, dict[str, Any]] = {
    "single": {"summary": "One small run", "value": SINGLE},
    "teachers": {"summary": "Two factors, three seeds: 18 runs", "value": TEACHERS},
}

_SCHEMA = ExperimentSpec.model_json_schema()
# FastAPI collects definitions for models it knows; this one is written by hand, so its parts go along.
_DEFINITIONS = _SCHEMA.pop("$defs", {})


def _inline(node: Any) -> Any:
    if isinstance(node, dict):
        if "$ref" in node:
            return _inline(_DEFINITIONS[node["$ref"].rpartition("/")[2]])
        return {key: _inline(value) for key, value in node.items()}
    return [_inline(item) for item in node] if isinstance(node, list) else node


SCHEMA = _inline(_SCHEMA)

REQUEST_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {
                "schema": SCHEMA,
                "examples": EXAMPLES,
            },
            "application/yaml": {"schema": SCHEMA},
        },
    }
}
