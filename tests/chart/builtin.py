"""Kubernetes' own schema without a cluster: the models of its Python client, and what is used of three CRDs."""

import re
from typing import Any

import jsonschema_rs
from kubernetes.client import models

Object = dict[str, Any]

PLAIN = {"str": str, "int": int, "bool": bool, "float": (int, float), "object": object, "datetime": str}
WORDS = {"type": "object", "additionalProperties": {"type": "string"}}
# Of kinds whose CRDs the test cluster lacks: the fields that the chart uses, as their projects describe them.
OTHERS: dict[str, Object] = {
    "monitoring.coreos.com/v1/ServiceMonitor": {
        "required": ["selector", "endpoints"],
        "properties": {
            "selector": {
                "required": ["matchLabels"],
                "properties": {"matchLabels": WORDS},
                "additionalProperties": False,
            },
            "endpoints": {
                "type": "array",
                "items": {
                    "properties": {name: {"type": "string"} for name in ("port", "path", "interval")},
                    "additionalProperties": False,
                },
            },
        },
        "additionalProperties": False,
    },
    "kueue.x-k8s.io/v1beta1/LocalQueue": {
        "required": ["clusterQueue"],
        "properties": {"clusterQueue": {"type": "string", "minLength": 1}},
        "additionalProperties": False,
    },
    "scheduling.volcano.sh/v1beta1/Queue": {
        "properties": {
            "weight": {"type": "integer", "minimum": 1},
            "reclaimable": {"type": "boolean"},
            "capability": {"type": "object", "additionalProperties": {"type": ["string", "number"]}},
        },
        "additionalProperties": False,
    },
}


def wrong_with(found: Object) -> list[str]:
    """What Kubernetes would say against an object; empty where nothing."""
    name = f"{found['apiVersion']}/{found['kind']}"
    if name in OTHERS:
        return [str(error) for error in jsonschema_rs.validator_for(OTHERS[name]).iter_errors(found["spec"])]
    version = found["apiVersion"].rpartition("/")[2]
    model = getattr(models, version[0].upper() + version[1:] + found["kind"], None)
    return [f"{name}: no such kind"] if model is None else list(_wrong(found, model.__name__, found["kind"]))


def _wrong(value: Any, kind: str, path: str) -> Any:
    if value is None:
        yield f"{path}: empty"
    elif inner := re.fullmatch(r"[lL]ist\[(.+)\]", kind):
        if not isinstance(value, list):
            yield f"{path}: not a list"
            return
        for number, each in enumerate(value):
            yield from _wrong(each, inner[1], f"{path}[{number}]")
    elif inner := re.fullmatch(r"[dD]ict[\[(]str, (.+)[\])]", kind):
        if not isinstance(value, dict):
            yield f"{path}: not a mapping"
            return
        for name, each in value.items():
            yield from _wrong(each, inner[1], f"{path}.{name}")
    elif kind in PLAIN:
        # An amount may be a number.
        fits = (str, int, float) if re.search(r"\.(limits|requests)\.", path) else PLAIN[kind]
        if not isinstance(value, fits) or (kind not in ("bool", "object") and isinstance(value, bool)):
            yield f"{path}: {value!r} is not {kind}"
    else:
        model = getattr(models, kind)
        names = {wire: name for name, wire in model.attribute_map.items()}
        if not isinstance(value, dict):
            yield f"{path}: not a mapping"
            return
        for name, each in value.items():
            if name not in names:
                yield f"{path}.{name}: no such field"
            else:
                yield from _wrong(each, model.openapi_types[names[name]], f"{path}.{name}")
