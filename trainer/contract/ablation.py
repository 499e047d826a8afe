"""From a dozen lines to arms x seeds: presets, factors, labels. No files, no torch.

Problems are collected, never raised one at a time: whatever is wrong with one field is set aside (the
preset's value stands in for it) so that the rest can still be checked.
"""

import copy
import difflib
import itertools
import json
import math
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import PurePosixPath
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ValidationError

from trainer.contract.experiment import NAME, ExperimentSpec
from trainer.contract.presets import PRESETS
from trainer.contract.problems import Problem
from trainer.contract.ranking import rankable
from trainer.contract.rounds import MOST_ARMS
from trainer.contract.run import RunSpec

Model = TypeVar("Model", bound=BaseModel)
RANK_BY = "evaluation.rank_by"
ONE_RANKING = "one metric for all arms, in base.evaluation.rank_by and in no factor"
Json = dict[str, Any]
PATTERNS = {
    NAME: "lower-case letters, digits and hyphens, 63 at most, such as my-first-try",
    "^[0-9a-f]{64}$": "64 hexadecimal digits in lower case",
}
# Pydantic's words for what YAML calls otherwise.
WORDS = {"tuple_type": "a list", "model_type": "a mapping of its fields", "dict_type": "a mapping"}
# Parts that a string may stand for, and which of their fields it then is.
SHORT = {"teacher": "source", "mask": "kind", "target_mask": "kind", "code": "uri", "loss": "uri"}


@dataclass(frozen=True)
class Arm:
    """One combination of levels, and its run for every seed."""

    name: str
    levels: dict[str, str]
    """Factor -> label of its level."""
    is_baseline: bool
    runs: dict[int, RunSpec]


def parse_experiment(payload: Mapping[str, Any]) -> tuple[ExperimentSpec | None, list[Problem]]:
    """The request as a model, and what is wrong with its own fields (not yet with its runs)."""
    problems: list[Problem] = []
    spec = _validated(ExperimentSpec, copy.deepcopy(dict(payload)), {}, problems)
    if spec is None:
        return None, problems
    problems.extend(_experiment_problems(spec))
    return spec, problems


def expand(spec: ExperimentSpec) -> tuple[list[Arm], list[Problem]]:
    """Arms x seeds of an experiment, in the order of the factors' levels; one arm is the baseline.

    Arms whose fields are wrong are left out and their problems returned; `arms` is complete only when
    there are none.
    """
    problems: list[Problem] = []
    overlay = copy.deepcopy(dict(spec.base))
    preset_name = overlay.pop("preset", None)
    if preset_name is not None and (not isinstance(preset_name, str) or preset_name not in PRESETS):
        problems.append(Problem(field="base.preset", asked=repr(preset_name), possible=", ".join(PRESETS)))
    preset = PRESETS.get(str(preset_name), {})
    factors = {name: _distinct(levels) for name, levels in spec.factors.items() if _is_field(name) and levels}
    labels = {name: _labels(levels) for name, levels in factors.items()}
    baseline, baseline_problems = _baseline(spec, factors, labels)
    problems.extend(baseline_problems)

    arms: list[Arm] = []
    found: list[tuple[str, Problem]] = []
    for choice in itertools.product(*(range(len(levels)) for levels in factors.values())):
        chosen = dict(zip(factors, choice, strict=True))
        levels = {name: labels[name][index] for name, index in chosen.items()}
        name = arm_name(levels)
        arm_overlay = copy.deepcopy(overlay)
        for field, index in chosen.items():
            _set(arm_overlay, field, copy.deepcopy(factors[field][index]))
        arm_problems: list[Problem] = []
        run = _validated(RunSpec, arm_overlay, preset, arm_problems)
        found.extend((name, problem) for problem in arm_problems)
        if run is not None:
            runs = {seed: run.model_copy(update={"seed": seed}) for seed in spec.seed_list}
            arms.append(Arm(name, levels, chosen == baseline, runs))
    problems.extend(across_arms(found, total=len(list(itertools.product(*factors.values())))))
    wrong = {name for name, _ in found}
    problems.extend(_duplicates([arm for arm in arms if arm.name not in wrong]))
    problems.extend(_rankings(spec, arms))
    problems.extend(_undecidable(spec, [arm for arm in arms if arm.name not in wrong]))
    return arms, problems


def across_arms(found: list[tuple[str, Problem]], *, total: int) -> list[Problem]:
    """One problem for all the arms it stands in; naming them only where it is not all."""
    arms_of: dict[Problem, list[str]] = {}
    for arm, problem in found:
        named = arms_of.setdefault(problem, [])
        if arm not in named:
            named.append(arm)
    return [
        problem if len(names) == total else problem.model_copy(update={"arms": tuple(names)})
        for problem, names in arms_of.items()
    ]


def arm_name(levels: Mapping[str, str]) -> str:
    """`mask_ratio=0.75 subset_size=1000`: of each factor as many parts, from its end, as only it has in a run.

    So `contrastive.weight=1.0`: there is also a weight of the teacher and of the pixels.
    """
    return " ".join(f"{_short(name)}={label}" for name, label in levels.items()) or "base"


def _short(factor: str) -> str:
    parts = factor.split(".")
    ends = [".".join(parts[start:]) for start in range(len(parts) - 1, 0, -1)]
    return next((end for end in ends if _fields_ending_in()[end] == 1), factor)


@cache
def _fields_ending_in() -> Counter[str]:
    """Dotted end of a name -> the fields of a run that have it."""
    names = [name.split(".") for name in _names(RunSpec)]
    return Counter(".".join(parts[start:]) for parts in names for start in range(len(parts)))


def _names(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    for name in model.model_fields:
        yield prefix + name
        if inner := _part(model, name):
            yield from _names(inner, f"{prefix}{name}.")


# ---------------------------------------------------------------- problems of the experiment itself


def _experiment_problems(spec: ExperimentSpec) -> Iterator[Problem]:
    for name, levels in spec.factors.items():
        if name == "seed":
            yield Problem(
                field="factors.seed", asked="seeds as a factor", possible="seeds: N, repeats of every arm, not an axis"
            )
        elif name == RANK_BY:
            yield Problem(
                field=f"factors.{name}", asked="arms that are ranked by different metrics", possible=ONE_RANKING
            )
        elif not _is_field(name):
            yield Problem(field=f"factors.{name}", asked=repr(name), possible=_field_names(RunSpec, name))
        if not levels:
            yield Problem(field=f"factors.{name}", asked="no levels", possible="a list of at least one level")
        if twice := [level for index, level in enumerate(levels) if level in levels[:index]]:
            yield Problem(
                field=f"factors.{name}", asked=f"level {_label(twice[0])} twice", possible="levels that differ"
            )
    if spec.forecast and "data.subset_size" not in spec.factors:
        yield Problem(
            field="forecast", asked=f"{spec.forecast} images, without the factor data.subset_size",
            possible="a forecast where data.subset_size is a factor, with four sizes or more",
        )  # fmt: skip
    if spec.forecast and spec.rounds:
        yield Problem(
            field="forecast", asked=f"{spec.forecast} images, and seeds in rounds",
            possible="a number of seeds: a forecast needs the same seeds of every arm",
        )  # fmt: skip
    placement = spec.placement
    if placement.min_nodes > placement.max_nodes:
        yield Problem(
            field="placement.min_nodes", asked=str(placement.min_nodes),
            possible=f"1 to placement.max_nodes = {placement.max_nodes}",
        )  # fmt: skip
    if placement.extra and placement.max_nodes != placement.min_nodes + placement.extra.nodes:
        yield Problem(
            field="placement.max_nodes", asked=str(placement.max_nodes),
            possible=f"{placement.min_nodes + placement.extra.nodes}, min_nodes + extra.nodes, or nothing: it follows",
        )  # fmt: skip


def _baseline(
    spec: ExperimentSpec, factors: Mapping[str, list[Any]], labels: Mapping[str, list[str]]
) -> tuple[dict[str, int], list[Problem]]:
    """Index of the baseline's level in every factor."""
    index, problems = dict.fromkeys(factors, 0), []
    for name, level in spec.baseline.items():
        if name not in factors:
            problems.append(
                Problem(
                    field=f"baseline.{name}", asked=repr(name), possible=f"a factor: {', '.join(factors) or 'none'}"
                )
            )
        elif level in factors[name]:
            index[name] = factors[name].index(level)
        elif str(level) in labels[name]:
            index[name] = labels[name].index(str(level))
        else:
            problems.append(
                Problem(field=f"baseline.{name}", asked=repr(level), possible=f"a level: {', '.join(labels[name])}")
            )
    return index, problems


def _duplicates(arms: list[Arm]) -> Iterator[Problem]:
    first: dict[str, str] = {}
    runs = [run for arm in arms for run in arm.runs.values()]
    # One seed tells for all of them, but that `subset_seed: run` and a number are the same run at that seed alone.
    alone = any(run.data.subset_seed == "run" for run in runs)
    seeds = dict.fromkeys(run.seed for run in (runs if alone else runs[:1]))
    for arm in arms:
        digests = {arm.runs[seed].digest: seed for seed in seeds}
        if same := [digest for digest in digests if digest in first]:
            at = "" if len(same) == len(digests) else f" with seed {digests[same[0]]}"
            asked = f"{first[same[0]]!r} and {arm.name!r}, which are the same run{at}"
            yield Problem(field="factors", asked=asked, possible="arms that differ")
        first = dict.fromkeys(digests, arm.name) | first


def _rankings(spec: ExperimentSpec, arms: list[Arm]) -> Iterator[Problem]:
    """A level that is a whole part may bring a ranking of its own, or replace the base's."""
    if RANK_BY in spec.factors:
        return
    for arm in arms:
        found = next(iter(arm.runs.values())).evaluation.rank_by
        if found != spec.rank_by and (found or "evaluation" in spec.factors):
            asked = f"{found or 'nothing'} in {arm.name!r} and {spec.rank_by or 'nothing'} in base"
            yield Problem(field=RANK_BY, asked=asked, possible=ONE_RANKING)
            return


def _undecidable(spec: ExperimentSpec, arms: list[Arm]) -> Iterator[Problem]:
    """Rounds that nothing could decide."""
    if not spec.rounds or not arms:
        return
    count = math.prod(len(levels) for levels in spec.factors.values())
    if count > (most := MOST_ARMS[spec.rounds.target]):
        yield Problem(
            field="seeds", asked=f"rounds of {count} arms, with the target {spec.rounds.target}",
            possible=f"at most {most} arms, or a number of seeds",
        )  # fmt: skip
    if count == 1:
        yield Problem(field="seeds", asked="rounds of one arm", possible="two arms or more, or a number of seeds")
    measured = next(iter(arms[0].runs.values())).evaluation
    if not (measured.rank_by or measured.landmarks or measured.labels or measured.stages):
        yield Problem(
            field="seeds", asked="rounds, with no metric to decide by",
            possible=f"evaluation.landmarks, evaluation.labels, a stage, or {RANK_BY}: {', '.join(rankable(measured))}",
        )  # fmt: skip


def _distinct(levels: list[Any]) -> list[Any]:
    return [level for index, level in enumerate(levels) if level not in levels[:index]]


def _labels(levels: list[Any]) -> list[str]:
    """A short name for every level; a number is added where two would look alike."""
    labels = [_label(level) for level in levels]
    return [
        label if labels.count(label) == 1 else f"{label}#{labels[: index + 1].count(label)}"
        for index, label in enumerate(labels)
    ]


def _label(level: Any) -> str:
    if isinstance(level, Mapping):
        if source := level.get("source"):
            code = level.get("code") if level.get("arch") == "code" else None
            return ",".join(PurePosixPath(str(_address(each))).stem for each in (source, code) if each)
        if level.get("kind") == "code" and level.get("code"):
            return PurePosixPath(str(_address(level["code"]))).stem
        if kind := level.get("kind"):
            # Two levels that differ in their files alone get numbers.
            said = {key: value for key, value in level.items() if key not in ("kind", "landmarks", "sha256")}
            return ",".join([_label(kind), *(f"{key}:{_label(value)}" for key, value in said.items())])
        return ",".join(f"{key}:{_label(value)}" for key, value in level.items())
    if isinstance(level, str):
        return PurePosixPath(level).stem if "/" in level else level
    if isinstance(level, list) and level and all(isinstance(each, str) for each in level):
        return "+".join(level)
    return json.dumps(level)


def _address(code: Any) -> Any:
    return code.get("uri") if isinstance(code, Mapping) else code


# ---------------------------------------------------------------- building one model


def _validated(model: type[Model], overlay: Json, preset: Json, problems: list[Problem]) -> Model | None:
    """`overlay` on `preset` as a model. A wrong value becomes a problem and is dropped, and the rest is tried again."""
    reported: set[tuple[str, ...]] = set()
    while True:
        misfits: list[Problem] = []
        try:
            built = model.model_validate(_merged(preset, overlay), context={"problems": misfits})
            # What a dropped value's stand-in does not fit to would only confuse.
            problems.extend(p for p in misfits if tuple(p.field.split(".")) not in reported)
            return built
        except ValidationError as error:
            dropped = False
            by_place: dict[tuple[str, ...], list[Any]] = {}
            for item in error.errors():
                by_place.setdefault(_place(overlay, item["loc"]), []).append(item)
            for place, items in by_place.items():
                if any(known[: len(place)] == place for known in reported if len(known) > len(place)):
                    # A part that does not fit together without what was dropped from it.
                    dropped |= _drop(overlay, place)
                    continue
                if place in reported:
                    # What was dropped is required and nothing stands in for it: its part goes with it.
                    dropped |= len(place) > 1 and _drop(overlay, place[:-1])
                    continue
                reported.add(place)
                problems.append(_problem(model, place, items))
                dropped |= _drop(overlay, place)
            if not dropped:
                return None


def _problem(model: type[BaseModel], place: tuple[str, ...], items: list[Any]) -> Problem:
    field = ".".join(place)
    if items[0]["type"] == "extra_forbidden":
        return Problem(field=field, asked=f"the unknown field {place[-1]!r}", possible=_field_names(model, field))
    if items[0]["type"] == "missing":
        return Problem(field=field, asked="nothing", possible="a value: it has no default")
    wants = dict.fromkeys(
        WORDS.get(item["type"])
        or PATTERNS.get(item.get("ctx", {}).get("pattern"))
        or item["msg"].removeprefix("Input should be ").removeprefix("Value error, ")
        for item in items
    )
    return Problem(field=field, asked=repr(items[0]["input"])[:120], possible=" or ".join(wants))


def _field_names(model: type[BaseModel], field: str) -> str:
    """The fields that exist where `field` was looked for, the closest first."""
    *parents, wrong = field.split(".")
    for parent in parents:
        inner = _part(model, parent)
        if inner is None:
            wrong = parent
            break
        model = inner
    names = list(model.model_fields)
    close = difflib.get_close_matches(wrong, names, n=1)
    hint = f"{close[0]} (did you mean it?), " if close else ""
    return hint + ", ".join(name for name in names if name not in close)


def _is_field(dotted: str) -> bool:
    model: type[BaseModel] | None = RunSpec
    for part in dotted.split("."):
        if model is None or part not in model.model_fields:
            return False
        model = _part(model, part)
    return dotted != "seed"


def _part(model: type[BaseModel], field: str) -> type[BaseModel] | None:
    """The model of a field, optional or not; None where there is no such field, or it is no part."""
    annotation = model.model_fields[field].annotation if field in model.model_fields else None
    kinds = [kind for kind in (annotation, *get_args(annotation)) if isinstance(kind, type)]
    return next((kind for kind in kinds if issubclass(kind, BaseModel)), None)


def _merged(preset: Json, overlay: Json) -> Json:
    result = copy.deepcopy(preset)
    for key, given in overlay.items():
        value = {"source": given} if key == "teacher" and isinstance(given, str) else given
        if key == "teacher" and isinstance(value, dict) and value.get("source") == "none":
            # Without a teacher none of its fields matters, and equal runs have to be equal specs.
            result[key] = value
        elif isinstance(value, dict) and isinstance(result.get(key), dict):
            result[key] = _merged(result[key], value)
        else:
            result[key] = value
    return result


def _set(overlay: Json, dotted: str, value: Any) -> None:
    *parents, last = dotted.split(".")
    for parent in parents:
        inner = overlay.get(parent)
        if isinstance(inner, str) and parent in SHORT:
            inner = {SHORT[parent]: inner}
        overlay[parent] = inner = inner if isinstance(inner, dict) else {}
        overlay = inner
    overlay[last] = value


def _place(overlay: Json, loc: tuple[int | str, ...]) -> tuple[str, ...]:
    """The part of an error's location that is a field; list positions and names of union branches are not."""
    place: list[str] = []
    inner: Any = overlay
    for part in loc:
        if not isinstance(inner, dict) or not isinstance(part, str):
            break
        place.append(part)
        inner = inner.get(part)
    return tuple(place)


def _drop(overlay: Json, place: tuple[str, ...]) -> bool:
    *parents, last = place
    for parent in parents:
        overlay = overlay.get(parent, {})
    return overlay.pop(last, None) is not None
