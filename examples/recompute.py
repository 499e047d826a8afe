"""The table of an experiment, computed anew from nothing but MLflow, beside the one that mcf wrote there.

    pip install mlflow scipy
    python examples/recompute.py http://127.0.0.1:5000 EXPERIMENT_ID       # exit code 1 where a number differs

Shares no line with mcf: what it does not find in MLflow it cannot know, and its statistics are scipy's.
"""

import json
import sys
from collections import defaultdict
from pathlib import Path

import numpy as np
from mlflow import MlflowClient
from scipy import stats

# Metric -> how the names of its floors begin; those of the probe: floor/.
FLOORS = {"sanity/retrieval_top1": "floor/retrieval_", "sanity/neighbour_nme": "floor/neighbour_"}


def main(uri: str, experiment_id: str) -> int:
    client = MlflowClient(uri)
    everywhere = [each.experiment_id for each in client.search_experiments()]
    mine = f"tags.`mcf.experiment_id` = '{experiment_id}'"
    [parent] = client.search_runs(everywhere, f"{mine} and tags.`mcf.kind` = 'experiment'")
    told = json.loads(Path(client.download_artifacts(parent.info.run_id, "comparison.json")).read_text())
    children = client.search_runs([parent.info.experiment_id], f"{mine} and tags.`mcf.kind` = 'run'", max_results=5000)
    runs = defaultdict(dict)  # arm -> seed -> metrics
    levels = {}
    for child in children:
        tags = child.data.tags
        if child.info.status == "FINISHED":
            runs[tags["mcf.arm"]][int(tags["mcf.seed"])] = child.data.metrics
            factors = {name: level for name, level in tags.items() if name.startswith("mcf.factor.")}
            levels[tags["mcf.arm"]] = {name.removeprefix("mcf.factor."): level for name, level in factors.items()}
    name, base = told["metric"]["name"], told["baseline"]
    floor = FLOORS.get(name, "floor/")
    probe = {arm: {seed: found[name] for seed, found in seeds.items()} for arm, seeds in runs.items()}

    check = Check()
    p_values = {}
    for row in told["arms"]:
        arm, values = row["name"], np.array([probe[row["name"]][seed] for seed in sorted(probe[row["name"]])])
        low, high = interval(values)
        check(f"{arm}: n", row["probe"]["n"], len(values))
        check(f"{arm}: mean", row["probe"]["mean"], values.mean())
        check(f"{arm}: interval", row["probe"]["low"], low)
        check(f"{arm}: interval", row["probe"]["high"], high)
        for kind in ("pixels", "random_encoder") if row["floors"] else ():
            found = np.mean([seeds[floor + kind] for seeds in runs[arm].values()])
            check(f"{arm}: floor {kind}", row["floors"][kind], found)
        hours = sum(seeds["cost/process_hours"] for seeds in runs[arm].values())
        check(f"{arm}: process-hours", row["gpu_hours"], hours)
        check(f"{arm}: restarts", row["restarts"], sum(seeds["cost/restarts"] for seeds in runs[arm].values()))
        for name_of_cost in "images_per_second", "waiting_share", "peak_share", "compile_seconds":
            known = [found for seeds in runs[arm].values() if (found := seeds.get(f"cost/{name_of_cost}")) is not None]
            check(f"{arm}: {name_of_cost}", row.get(name_of_cost), np.mean(known) if known else None)
        if arm == base:
            continue
        seeds = sorted(probe[arm].keys() & probe[base].keys())
        one, other = (np.array([probe[each][seed] for seed in seeds]) for each in (arm, base))
        check(f"{arm}: difference", row["difference"]["mean"], (one - other).mean())
        if len(seeds) >= 3 and row["difference"]["p"] is not None:
            # Of runs that are equal at every seed scipy says nan.
            p_values[arm] = stats.ttest_rel(one, other).pvalue if np.any(one != other) else 1.0
            check(f"{arm}: p", row["difference"]["p"], p_values[arm])
    for arm, p in holm(p_values).items():
        [row] = [row for row in told["arms"] if row["name"] == arm]
        check(f"{arm}: p after Holm", row["difference"]["p_holm"], p)
    for factor in told["factors"]:
        for level in factor["levels"]:
            if level["effect"]:
                values = effect(probe, levels, factor["name"], level["level"], factor["baseline"])
                check(f"{factor['name']}={level['level']}: effect", level["effect"]["mean"], values.mean())
                low, high = interval(values)
                check(f"{factor['name']}={level['level']}: interval", level["effect"]["low"], low)
                check(f"{factor['name']}={level['level']}: interval", level["effect"]["high"], high)
    print(f"{check.count} numbers computed anew, {check.wrong} of them differ by more than 1e-9 of it")
    return 1 if check.wrong else 0


def interval(values: np.ndarray) -> tuple[float | None, float | None]:
    """95 %, from Student's t distribution; none for a single value."""
    if len(values) < 2:
        return None, None
    if np.ptp(values) == 0:
        return values.mean(), values.mean()
    return stats.t.interval(0.95, len(values) - 1, loc=values.mean(), scale=stats.sem(values))


def holm(p_values: dict[str, float]) -> dict[str, float]:
    """Every p times the number of those not smaller, never below the one before, at most 1."""
    ordered = sorted(p_values, key=p_values.__getitem__)
    raised = [min(1.0, p_values[name] * (len(ordered) - rank)) for rank, name in enumerate(ordered)]
    return {name: max(raised[: rank + 1]) for rank, name in enumerate(ordered)}


def effect(probe: dict, levels: dict, factor: str, level: str, baseline: str) -> np.ndarray:
    """One value a seed: the mean over the other factors' levels of (this level - the factor's baseline)."""
    by_seed = defaultdict(list)
    for arm, mine in levels.items():
        if mine[factor] != level:
            continue
        [twin] = [other for other, theirs in levels.items() if theirs == {**mine, factor: baseline}]
        for seed in probe[arm].keys() & probe[twin].keys():
            by_seed[seed].append(probe[arm][seed] - probe[twin][seed])
    return np.array([np.mean(by_seed[seed]) for seed in sorted(by_seed)])


class Check:
    """Compares, counts, and prints what differs."""

    def __init__(self) -> None:
        self.count = self.wrong = 0

    def __call__(self, what: str, told: float | None, found: float | None) -> None:
        self.count += 1
        if told is None or found is None:
            same = told is None and found is None
        else:
            same = abs(told - found) <= 1e-9 * max(1.0, abs(told))
        if not same:
            self.wrong += 1
            print(f"{what}: mcf says {told}, MLflow's runs give {found}")


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    sys.exit(main(*sys.argv[1:]))
