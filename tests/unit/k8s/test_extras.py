"""Nodes beyond the core: what is sent, to the letter, and when they come and go.

python -m tests.unit.k8s.test_extras     write the golden files anew; look at what changed
"""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from k8s.appdef import app_for
from k8s.extras import MOVE_AFTER, Plan, extra_job, plan
from k8s.jobset import jobset_for
from k8s.pods import CORE, NODE, POOL, is_extra
from k8s.pools import Pool
from k8s.remembered import of_child, of_pod
from tests.unit.k8s.test_manifests import CASES, GOLDEN, GPU, app_and_pool, as_yaml, manifest, request_for

L40S: dict[str, Any] = {**GPU, "node_selector": {"pool": "l40s"}, "cpu": "6", "python": "/opt/python"}
NOW = datetime(2026, 12, 1, 12, tzinfo=UTC)
UNPLACED = {"conditions": [{"type": "PodScheduled", "status": "False"}]}
PLACED = {"phase": "Running", "conditions": [{"type": "PodScheduled", "status": "True"}]}


def sent(case: str) -> dict[str, Any]:
    """The last node of an attempt of three more."""
    core = manifest(case) | {"apiVersion": "jobset.x-k8s.io/v1alpha2"}
    core["metadata"]["uid"] = "0f-core"
    fields, placed = CASES[case]
    name, pool = ("l40s", Pool(**L40S)) if case == "extra" else ("a100-spot", Pool(**fields))
    return extra_job(app_for(request_for(name, pool, placed)), pool, 3, core, "mcf")


@pytest.mark.parametrize("case", ["extra", "extra-kueue"])
def test_a_node_is_its_golden_file(case: str) -> None:
    assert as_yaml(sent(case)) == (GOLDEN / f"{case}-node.yaml").read_text(), "python -m tests.unit.k8s.test_extras"


def test_a_node_is_as_its_own_pool_says_and_meets_the_others() -> None:
    [container] = sent("extra")["spec"]["template"]["spec"]["containers"]
    env = {each["name"]: each.get("value") for each in container["env"]}
    [theirs] = manifest("extra")["spec"]["replicatedJobs"][1]["template"]["spec"]["template"]["spec"]["containers"]
    assert env["PET_RDZV_ENDPOINT"] == {each["name"]: each.get("value") for each in theirs["env"]}["PET_RDZV_ENDPOINT"]
    assert (env["MCF_POOL"], env["OMP_NUM_THREADS"], container["command"][0]) == ("l40s", "6", "/opt/python")


def test_a_quota_that_fits_the_core_alone_is_asked_for_no_more() -> None:
    core = manifest("extra-kueue")
    assert core["spec"]["replicatedJobs"][1]["template"]["spec"]["parallelism"] == 2
    assert core["metadata"]["annotations"][CORE] == "2"
    node = sent("extra-kueue")
    assert node["spec"]["suspend"]
    assert node["metadata"]["labels"]["kueue.x-k8s.io/priority-class"] == "spare"
    assert node["metadata"]["ownerReferences"][0]["controller"] is False


def test_nobody_would_send_the_other_nodes_of_an_app_that_is_none_of_the_service_s() -> None:
    app, pool, processes = app_and_pool(*CASES["extra-kueue"])
    del app.roles[0].metadata["extra_pools"]
    made = jobset_for(app, pool, processes=processes, namespace="mcf")
    assert made["spec"]["replicatedJobs"][1]["template"]["spec"]["parallelism"] == 4


# ---------------------------------------------------------------- coming and going


def job(node: int, pool: str = "spot", *, age: timedelta = timedelta(), suspend: bool = False, deleted: bool = False,
        **status: Any) -> dict[str, Any]:  # fmt: skip
    metadata: dict[str, Any] = {"name": f"mcf-r0-1-x{node}", "labels": {NODE: str(node), POOL: pool}}
    metadata["creationTimestamp"] = (NOW - age).isoformat()
    if deleted:
        metadata["deletionTimestamp"] = NOW.isoformat()
    return of_child({"metadata": metadata, "spec": {"suspend": suspend}, "status": status})


def pod(node: int, **status: Any) -> dict[str, Any]:
    return of_pod({"metadata": {"name": f"p{node}", "labels": {NODE: str(node)}}, "spec": {}, "status": status})


def planned(
    *jobs: dict[str, Any], pods: Any = (), pools: Any = ("spot",), rooms: dict[str, int] | None = None
) -> tuple[list[int], list[tuple[int, str]]]:  # fmt: skip
    """Numbers of what is removed; what is created."""
    found: Plan = plan(range(1, 4), pools, lambda name: (rooms or {})[name], jobs, pods, NOW)
    return [int(each["metadata"]["labels"][NODE]) for each in found.remove], list(found.create)


def test_every_node_takes_the_first_pool_that_has_room_for_it() -> None:
    assert planned() == ([], [(1, "spot"), (2, "spot"), (3, "spot")])
    rooms = {"spot": 1, "l40s": 1}
    assert planned(pools=("spot", "l40s"), rooms=rooms) == ([], [(1, "spot"), (2, "l40s"), (3, "spot")])
    assert planned(job(1), job(3), pools=("spot", "l40s"), rooms=rooms) == ([], [(2, "spot")])


LATE = MOVE_AFTER + timedelta(seconds=1)
BOTH = job(2), job(3)


@pytest.mark.parametrize(
    ("jobs", "pods", "rooms", "removed"),
    [
        ([job(1, failed=1)], [], {}, [1]),  # its pod is lost, and its back-off would keep everybody waiting
        ([job(1, terminating=1)], [pod(1, phase="Running")], {}, []),
        ([job(1, conditions=[{"type": "Failed", "status": "True"}])], [], {}, [1]),
        # It has seen the end of the run.
        ([job(1, succeeded=1, conditions=[{"type": "Complete", "status": "True"}])], [], {}, []),
        ([job(1, "gone")], [], {}, [1]),
        ([job(7)], [], {}, [7]),
        ([job(1, deleted=True)], [], {}, []),
        ([job(1, age=LATE)], [pod(1, **UNPLACED)], {"l40s": 1}, [1]),
        ([job(1, age=LATE, suspend=True)], [], {"l40s": 1}, [1]),  # its queue has no room, the other pool has
        ([job(1, age=LATE)], [pod(1, **UNPLACED)], {"l40s": 0}, []),
        ([job(1, age=LATE)], [pod(1, **PLACED)], {"l40s": 1}, []),
        ([job(1)], [pod(1, **UNPLACED)], {"l40s": 1}, []),
    ],
)  # fmt: skip
def test_a_node_goes_when_it_would_be_better_off_anew(
    jobs: list[dict[str, Any]], pods: list[dict[str, Any]], rooms: dict[str, int], removed: list[int]
) -> None:
    pools = ("spot", *rooms)
    assert planned(*jobs, *BOTH, pods=pods, pools=pools, rooms={"spot": 0, **rooms})[0] == removed
    # What is still there, under its name, is not sent again.
    taken = {int(each["metadata"]["labels"][NODE]) for each in jobs}
    created = planned(*jobs, *BOTH, pods=pods, pools=pools, rooms={"spot": 0, **rooms})[1]
    assert {node for node, _ in created} == {1} - taken


def test_no_more_nodes_move_than_there_is_room_for() -> None:
    waiting = [job(node, age=LATE) for node in (1, 2, 3)]
    assert planned(*waiting, pools=("spot", "l40s"), rooms={"spot": 0, "l40s": 2}) == ([1, 2], [])
    # Who is sent just now takes room first.
    assert planned(*waiting[1:], pools=("spot", "l40s"), rooms={"spot": 0, "l40s": 1}) == ([], [(1, "l40s")])


def test_extra_nodes_are_told_from_the_core_s_by_a_label() -> None:
    assert is_extra(job(1))
    assert not is_extra(manifest("extra"))


if __name__ == "__main__":
    for each in "extra", "extra-kueue":
        (GOLDEN / f"{each}-node.yaml").write_text(as_yaml(sent(each)))
