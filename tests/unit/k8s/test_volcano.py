"""What is sent to Volcano, to the letter, and what it says in return.

python -m tests.unit.k8s.test_volcano     write the golden files anew; look at what changed
"""

from typing import Any

import pytest
from torchx.specs import AppState

from k8s.jobset import jobset_for
from k8s.observed import observe
from k8s.pools import Pool
from k8s.volcano import WrongQueue, vcjob_for
from k8s.volcano_observed import vcjob_state
from tests.unit.k8s.test_extras import L40S
from tests.unit.k8s.test_manifests import CASES, GOLDEN, GPU, app_and_pool, as_yaml
from tests.unit.k8s.test_observed import NOW, RUNNING, STORE, unplaced

QUEUE = {"kind": "volcano", "name": "research", "priority_class": "high"}
OTHERS = ("kueue", "extra-kueue", "kai")
VOLCANO = {name: case for name, case in CASES.items() if name not in OTHERS} | {
    "queue": ({**GPU, "queue": QUEUE, "priority_class": "preemptible"}, {"processes_per_node": 8}),
}


def manifest(case: str) -> dict[str, Any]:
    app, pool, processes = app_and_pool(*VOLCANO[case])
    elsewhere = ("l40s", Pool(**L40S)) if case == "extra" else None
    return vcjob_for(app, pool, processes=processes, namespace="mcf", elsewhere=elsewhere)


def tasks(case: str) -> dict[str, Any]:
    return {task["name"]: task for task in manifest(case)["spec"]["tasks"]}


@pytest.mark.parametrize("case", VOLCANO)
def test_a_manifest_is_its_golden_file(case: str) -> None:
    # TorchX draws a new name each time; nothing of it is left.
    assert as_yaml(manifest(case)) == (GOLDEN / f"volcano-{case}.yaml").read_text(), (
        "python -m tests.unit.k8s.test_volcano"
    )


def test_a_pool_may_name_another_scheduler_than_volcanos_first() -> None:
    app, pool, processes = app_and_pool({**GPU, "scheduler_name": "volcano-gpus"}, {"processes_per_node": 8})
    assert vcjob_for(app, pool, processes=processes, namespace="mcf")["spec"]["schedulerName"] == "volcano-gpus"


@pytest.mark.parametrize("case", VOLCANO)
def test_pods_are_those_of_a_jobset_but_for_where_they_meet(case: str) -> None:
    app, pool, processes = app_and_pool(*VOLCANO[case])
    jobset = jobset_for(app, pool, processes=processes, namespace="mcf")
    theirs = {job["name"]: job["template"]["spec"]["template"]["spec"] for job in jobset["spec"]["replicatedJobs"]}
    name = jobset["metadata"]["name"]
    for task, found in tasks(case).items():
        if task == "extra":
            continue
        ours = found["template"]["spec"]
        ours.pop("activeDeadlineSeconds", None)
        assert as_yaml(ours) == as_yaml(theirs[task]).replace(f"{name}-rendezvous-0-0.", f"{name}-rendezvous-0.")


def test_nobody_waits_for_more_nodes_than_the_attempt_cannot_do_without() -> None:
    elastic, spec = tasks("elastic"), manifest("elastic")["spec"]
    assert (elastic["worker"]["replicas"], elastic["worker"]["minAvailable"]) == (4, 1)
    assert spec["minAvailable"] == sum(task["minAvailable"] for task in spec["tasks"]) == 2


def test_nodes_in_another_pool_are_a_task_of_their_own_that_nobody_waits_for() -> None:
    found, spec = tasks("extra"), manifest("extra")["spec"]
    assert {name: (task["replicas"], task["minAvailable"]) for name, task in found.items()} == {
        "rendezvous": (1, 1), "worker": (1, 1), "extra": (3, 0)
    }  # fmt: skip
    assert spec["minAvailable"] == 2
    template = found["extra"]["template"]
    assert template["spec"]["nodeSelector"] == {"pool": "l40s"}
    assert template["metadata"]["labels"]["mcf.dev/node"] == "1"
    assert {"name": "MCF_POOL", "value": "l40s"} in template["spec"]["containers"][0]["env"]


@pytest.mark.parametrize("case", VOLCANO)
def test_a_lost_pod_is_made_anew_and_retries_are_bounded(case: str) -> None:
    assert manifest(case)["spec"]["maxRetry"] == 20
    for name, task in tasks(case).items():
        done = {policy["event"]: policy["action"] for policy in task["policies"]}
        # Nobody needs an extra node.
        given_up = None if name == "extra" else "TerminateJob"
        assert (done["PodEvicted"], done.get("TaskFailed"), task["maxRetry"]) == ("RestartPod", given_up, 20)
        assert done.get("TaskCompleted") == ("CompleteJob" if name == "worker" else None)


def test_a_deadline_ends_the_attempt_and_not_one_pod_after_the_other() -> None:
    near = tasks("near")
    assert near["rendezvous"]["template"]["spec"]["activeDeadlineSeconds"] == 86_400
    assert {"event": "PodFailed", "action": "TerminateJob"} in near["rendezvous"]["policies"]
    assert "activeDeadlineSeconds" not in near["worker"]["template"]["spec"]


def test_torchx_own_conventions_hold() -> None:
    queued = manifest("queue")
    spec = queued["spec"]
    assert (spec["schedulerName"], spec["queue"], spec["priorityClassName"]) == ("volcano", "research", "high")
    assert manifest("plain")["spec"]["queue"] == "default"
    assert spec["plugins"] == {"svc": ["--publish-not-ready-addresses"], "env": []}
    for task in spec["tasks"]:
        labels = task["template"]["metadata"]["labels"]
        assert labels["torchx.pytorch.org/app-name"] == "r0123456789ab-2"
        assert labels["app.kubernetes.io/instance"] == queued["metadata"]["name"]


def test_secrets_are_named_and_never_shown() -> None:
    for task in tasks("private").values():
        [container] = task["template"]["spec"]["containers"]
        assert container["envFrom"] == [{"secretRef": {"name": "s3"}}, {"secretRef": {"name": "mlflow"}}]


def test_a_queue_of_kueue_is_none_of_volcano() -> None:
    app, pool, processes = app_and_pool(*CASES["kueue"])
    with pytest.raises(WrongQueue, match=r"pool a100-spot: its queue research is kueue's; with Volcano it has to be"):
        vcjob_for(app, pool, processes=processes, namespace="mcf")


def vcjob(phase: str = "", running: int = 0, retries: int = 0, message: str = "", **metadata: str) -> dict[str, Any]:
    status = {
        "state": {"phase": phase, "message": message}, "retryCount": retries,
        "taskStatusCount": {"rendezvous": {"phase": {"Running": 1}}, "worker": {"phase": {"Running": running}}},
    }  # fmt: skip
    return {"metadata": metadata, "spec": {"queue": "research", "minAvailable": 3}, "status": status if phase else {}}


WAITS = "waits in the queue research until 3 pods fit at once"
DELETED = vcjob("Running", running=1, deletionTimestamp="2026-11-24T12:00:00Z")


@pytest.mark.parametrize(
    ("seen", "state", "words"),
    [
        (vcjob(), AppState.PENDING, WAITS),
        (vcjob("Pending"), AppState.PENDING, WAITS),
        # What its pods do, they say better themselves.
        (vcjob("Running", running=2), AppState.PENDING, ""),
        (vcjob("Restarting", running=1, retries=1), AppState.PENDING, ""),
        (vcjob("Dreaming", running=1), AppState.PENDING, ""),
        (vcjob("Completing"), AppState.RUNNING, "stopping"),
        (vcjob("Terminating", running=1), AppState.RUNNING, "stopping"),
        (vcjob("Aborting", running=1), AppState.RUNNING, "stopping"),
        (DELETED, AppState.CANCELLED, "stopped"),
        (vcjob("Completed"), AppState.SUCCEEDED, ""),
        (vcjob("Aborted"), AppState.CANCELLED, "Volcano's job is Aborted"),
        (vcjob("Terminated"), AppState.FAILED, "Volcano's job is Terminated"),
        (
            vcjob("Failed", retries=20, message="gave up"), AppState.FAILED,
            "Volcano's job is Failed after 20 lost pods: gave up",
        ),
    ],
)  # fmt: skip
def test_a_job_has_a_state_and_a_reason(seen: dict[str, Any], state: AppState, words: str) -> None:
    assert vcjob_state(seen) == (state, words)


def test_while_a_pod_is_made_anew_the_others_train_on() -> None:
    for phase in "Running", "Restarting", "Pending":
        found = observe(*vcjob_state(vcjob(phase, retries=1)), [RUNNING, STORE, unplaced()], list, lambda: "busy", NOW)
        assert (found.state, found.message) == (AppState.RUNNING, "")


if __name__ == "__main__":
    for each in VOLCANO:
        (GOLDEN / f"volcano-{each}.yaml").write_text(as_yaml(manifest(each)))
