"""The spec of an experiment as a person would write it: what was asked for, without defaults, in the order of the docs.

Works on plain data, so that what a release before has written down comes back too, though a field may be no more.
"""

import re
from collections.abc import Mapping
from typing import Any, get_args

import yaml
from pydantic import BaseModel

from trainer.contract import ExperimentSpec, RunSpec

ALWAYS = ("seeds",)
"""Written where they are the default, too: the first thing one wants to change."""
LINE = 80
BARE = re.compile(r"[\w./~][\w./:@+*-]*[\w./*]")
"""Addresses, which PyYAML would put into quotes within braces and brackets."""


def as_yaml(spec: Mapping[str, Any]) -> str:
    """Reads back as the same request. What holds nothing but numbers and words is written in one line."""
    found = asked(spec)
    return yaml.dump(found, Dumper=_Dumper, sort_keys=False, default_flow_style=None, width=LINE, allow_unicode=True)


class _Dumper(yaml.SafeDumper):
    def analyze_scalar(self, scalar: str) -> Any:
        found = super().analyze_scalar(scalar)
        if BARE.fullmatch(scalar):
            found.allow_flow_plain = found.allow_block_plain
        return found


def asked(spec: Mapping[str, Any]) -> dict[str, Any]:
    """Of a spec as it is kept, defaults filled in. `base`, `factors` and `baseline` are kept as they were asked for."""
    found = _without_defaults(spec, ExperimentSpec)
    if isinstance(base := found.get("base"), Mapping):
        preset = {"preset": base["preset"]} if "preset" in base else {}
        found["base"] = preset | _in_order(base, RunSpec)
    return found


def _without_defaults(given: Mapping[str, Any], model: type[BaseModel]) -> dict[str, Any]:
    found = {}
    for name, value in _in_order(given, model).items():
        field, inner = model.model_fields.get(name), _part(model, name)
        if field and name not in ALWAYS and not field.is_required():
            default = field.get_default(call_default_factory=True)
            if value == (default.model_dump(mode="json") if isinstance(default, BaseModel) else default):
                continue
        found[name] = _without_defaults(value, inner) if inner and isinstance(value, Mapping) else value
    return found


def _in_order(given: Mapping[str, Any], model: type[BaseModel]) -> dict[str, Any]:
    """PostgreSQL keeps no order of keys. Those that the model does not have come last."""
    names = [name for name in model.model_fields if name in given]
    names += [name for name in given if name not in model.model_fields]
    found = {}
    for name in names:
        inner, value = _part(model, name), given[name]
        found[name] = _in_order(value, inner) if inner and isinstance(value, Mapping) else value
    return found


def _part(model: type[BaseModel], name: str) -> type[BaseModel] | None:
    """The model of a field, optional or one of several kinds; None where it is no part."""
    annotation = model.model_fields[name].annotation if name in model.model_fields else None
    kinds = (annotation, *get_args(annotation))
    return next((kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel)), None)
