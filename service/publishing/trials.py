"""What MLflow is told of a trial: params and tags of its child run."""

from collections.abc import Mapping
from typing import Any


def trial_params(levels: Mapping[str, str], spec: Mapping[str, Any]) -> dict[str, str]:
    """Params of a child run: the arm's levels, and the spec.

    MLflow's compare page draws the first three params, by name, in which runs differ: these are the factors.
    """
    return {f"arm.{name}": label for name, label in levels.items()} | flat(spec)


def trial_tags(experiment: str, arm: str, levels: dict[str, str], seed: int, digest: str) -> dict[str, str]:
    """Tags of a child run, so that MLflow's own compare view can group by arm and factor."""
    tags = {"mcf.kind": "run", "mcf.experiment_id": experiment, "mcf.arm": arm, "mcf.seed": str(seed)}
    return tags | {"mcf.digest": digest} | {f"mcf.factor.{name}": label for name, label in levels.items()}


def flat(spec: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Dotted field -> value of a run's spec, for MLflow's columns.

    Left out are how often things are written down, and the fields of what there is none of, such as a teacher: MLflow's
    compare page would show them as differences.
    """
    found: dict[str, str] = {}
    for key, value in spec.items():
        if isinstance(value, Mapping):
            found |= flat({"source": "none"} if value.get("source") == "none" else value, f"{prefix}{key}.")
        elif value is not None:
            found[prefix + key] = str(value)
    return {key: value for key, value in found.items() if not key.startswith("cadence.")}
