"""A spec as people write it, made fit to be sent: read from YAML, with paths that mean the same to the service."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from trainer.contract import plain

# Dotted fields of a RunSpec that name a file or a folder.
PATHS = (
    "data.uri", "data.keys", "data.index", "initial.source", "teacher.source", "evaluation.images",
    "evaluation.landmarks", "evaluation.labels", "evaluation.alignment.uri", "evaluation.parsing.uri",
    "mask.landmarks", "contrastive.target_mask.landmarks", "mask.code", "mask.code.uri", "contrastive.target_mask.code",
    "contrastive.target_mask.code.uri", "teacher.code", "teacher.code.uri", "teacher.loss", "teacher.loss.uri",
)  # fmt: skip
NOT_PATHS = ("", "none", "random")

Json = dict[str, Any]


class UnreadableSpec(Exception):
    """The file is missing, is not YAML, or holds no object."""


def read(path: Path) -> Json:
    """The spec in a YAML or JSON file, its paths taken relative to the file. Raises UnreadableSpec."""
    found = _parsed(_text(path), str(path), "an experiment is an object: name, base, factors, seeds, ...")
    return with_absolute_paths(found, _folder(path))


def read_evaluation(path: Path) -> Json:
    """The fields of `evaluation` in a YAML or JSON file, as `evaluation_in` has them. Raises UnreadableSpec."""
    spec = with_absolute_paths({"base": {"evaluation": evaluation_in(_text(path), str(path))}}, _folder(path))
    evaluation: Json = spec["base"]["evaluation"]
    return evaluation


def evaluation_in(text: str, name: str) -> Json:
    """The fields of `evaluation` in YAML, below that word or without it. Raises UnreadableSpec."""
    found = _parsed(text, name, "an evaluation is an object: landmarks, alignment, parsing, ...")
    if set(found) == {"evaluation"} and isinstance(found["evaluation"], dict):
        found = found["evaluation"]
    return found


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except FileNotFoundError as error:
        raise UnreadableSpec(f"{path} does not exist") from error
    except (OSError, UnicodeDecodeError) as error:
        raise UnreadableSpec(f"{path} cannot be read: {error}") from error


def _parsed(text: str, name: str, wanted: str) -> Json:
    try:
        found = plain.from_yaml(text)
    except plain.NotPlain as error:
        raise UnreadableSpec(f"{name} is not YAML that can be sent: {error}") from error
    if not isinstance(found, dict):
        raise UnreadableSpec(f"{name} holds {_kind(found)}; {wanted}")
    return found


def with_absolute_paths(spec: Mapping[str, Any], folder: Path) -> Json:
    """The spec with every relative path below `folder`: in the base, in the levels of factors and in the baseline.

    Whatever is not where a path belongs is left for the service to judge.
    """
    result = dict(spec)
    if isinstance(base := spec.get("base"), Mapping):
        result["base"] = _resolved(base, "", folder)
    factors, baseline = spec.get("factors"), spec.get("baseline")
    if isinstance(factors, Mapping):
        result["factors"] = {
            name: [_resolved(level, str(name), folder) for level in levels] if isinstance(levels, list) else levels
            for name, levels in factors.items()
        }
        if isinstance(baseline, Mapping):
            # A baseline may also name a level by its label, which is no path.
            result["baseline"] = {
                name: _resolved(level, str(name), folder) if _is_level(level, factors.get(name)) else level
                for name, level in baseline.items()
            }
    return result


def _resolved(value: Any, field: str, folder: Path) -> Any:
    if isinstance(value, Mapping):
        return {key: _resolved(inner, f"{field}.{key}".lstrip("."), folder) for key, inner in value.items()}
    if isinstance(value, str) and (field in PATHS or field == "teacher"):
        if value in NOT_PATHS or ":/" in value or value.startswith("run:"):
            return value
        # Without `..`: a run is named by what its spec says, and the same folder should be said the same way.
        return os.path.normpath(folder / Path(value).expanduser())
    return value


def _folder(path: Path) -> Path:
    return path.resolve().parent


def _is_level(level: Any, levels: Any) -> bool:
    return isinstance(levels, list) and level in levels


def _kind(value: Any) -> str:
    return "nothing" if value is None else f"a {type(value).__name__}"
