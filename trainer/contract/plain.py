"""Text as plain data: what JSON can say, with nothing lost on the way. One reader for every file and every request.

YAML by itself makes dates of text and infinity of `.inf`, which nobody can be sent, and of a key that comes twice it
keeps the last.
"""

import json
import math
from collections.abc import Iterable
from typing import Any

import yaml

MAX_DEPTH = 64
MERGE, TIMESTAMP = "tag:yaml.org,2002:merge", "tag:yaml.org,2002:timestamp"


class NotPlain(ValueError):
    """The text is not YAML or JSON, or holds what JSON cannot say; tells what, and where."""


def from_yaml(text: str | bytes, *, aliases: bool = True) -> Any:
    """Raises NotPlain. Without `aliases` none are taken: a few lines of them stand for gigabytes."""
    loader = None
    try:
        # It looks at the encoding when it is made.
        loader = (_Loader if aliases else _WithoutAliases)(text)
        return as_json(loader.get_single_data())
    except (yaml.YAMLError, ValueError) as error:
        raise NotPlain(str(error)) from error
    finally:
        if loader:
            loader.dispose()


def from_json(text: str | bytes) -> Any:
    """Raises NotPlain."""
    try:
        return json.loads(text, parse_constant=_no_number, parse_float=_finite, object_pairs_hook=without_repeats)
    except (ValueError, RecursionError) as error:
        raise NotPlain(str(error)) from error


def as_json(found: Any) -> Any:
    """The same after a journey through JSON: keys are text, tuples are lists. Raises NotPlain."""
    try:
        text = json.dumps(found, allow_nan=False, ensure_ascii=False)
        text.encode()
        return json.loads(text)
    except UnicodeEncodeError as error:
        raise NotPlain(f"{_half(error)} is half a character, which cannot be sent") from error
    except (TypeError, ValueError, RecursionError) as error:
        possible = "only text, finite numbers, true, false, null, lists and mappings can be sent"
        raise NotPlain(f"{error}: {possible}") from error


def _half(error: UnicodeEncodeError) -> str:
    """What could not be encoded, as it is written in JSON and YAML."""
    return repr(error.object[error.start])


class _Loader(yaml.SafeLoader):
    _depth = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        # Python's own limit would be met only after seconds.
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise yaml.YAMLError(f"it is nested too deeply: more than {MAX_DEPTH} levels")
        node = super().compose_node(parent, index)
        self._depth -= 1
        return node

    def compose_mapping_node(self, anchor: Any) -> Any:
        # Here and not where it is constructed: by then merged keys stand among its own.
        node = super().compose_mapping_node(anchor)
        lines: dict[str, int] = {}
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                name, line = self._name(key), key.start_mark.line + 1
                if name in lines:
                    raise yaml.YAMLError(f"the key {name!r} comes twice: in line {lines[name]} and in line {line}")
                lines[name] = line
        return node

    def _name(self, key: yaml.ScalarNode) -> str:
        """As which JSON has it: `1` and `"1"` are one key there."""
        found = key.value if key.tag == MERGE else self.construct_object(key)
        return found if isinstance(found, str) else json.dumps(found, default=str)

    def finite(self, node: yaml.ScalarNode) -> float:
        found: float = self.construct_yaml_float(node)
        if not math.isfinite(found):
            raise yaml.YAMLError(f"{node.value} in line {node.start_mark.line + 1} is not a finite number")
        return found


# What looks like a date stays the text that it is.
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in known if tag != TIMESTAMP]
    for first, known in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_constructor("tag:yaml.org,2002:float", _Loader.finite)


class _WithoutAliases(_Loader):
    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("aliases (*name) are not supported; write the value out")
        return super().compose_node(parent, index)


def _no_number(name: str) -> Any:
    raise ValueError(f"{name} is not a number JSON knows")


def _finite(text: str) -> float:
    found = float(text)
    if not math.isfinite(found):
        raise ValueError(f"{text} is larger than any number here can be")
    return found


def without_repeats(pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    """For json.loads, which by itself keeps the last of two equal keys. Raises ValueError."""
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise ValueError(f"the key {name!r} comes twice")
        found[name] = value
    return found
