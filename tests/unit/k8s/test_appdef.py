"""An attempt as a TorchX AppDef: what is asked of a scheduler follows from the request alone."""

from dataclasses import replace

from k8s.appdef import LaunchRequest, app_for
from trainer.contract import Placement

REQUEST = LaunchRequest(
    name="r0123456789ab-2", attempt=2, spec_uri="s3://mcf/runs/r0/spec.json", run_uri="s3://mcf/runs/r0",
    placement=Placement(pool="a100", min_nodes=1, max_nodes=4, processes_per_node=8, priority=3),
    tracking_uri="http://mlflow:5000", tracking_run_id="abc", threads=2,
)  # fmt: skip


def test_the_elastic_range_and_the_bound_on_restarts_reach_torchrun() -> None:
    [role] = app_for(REQUEST).roles
    command = " ".join([role.entrypoint, *role.args])
    assert command == (
        "python -m trainer.elastic.forked --nnodes 1:4 --nproc-per-node 8 --max-restarts 20 --monitor-interval 0.5 "
        "--rdzv-id r0123456789ab-2 -m trainer.main --spec s3://mcf/runs/r0/spec.json"
    )
    assert (role.min_replicas, role.num_replicas) == (1, 4)
    assert role.metadata == {"pool": "a100", "extra_pools": [], "priority": 3, "processes_per_node": 8}


def test_a_trainer_is_told_where_to_write_and_where_to_log() -> None:
    [role] = app_for(REQUEST).roles
    told = {name: role.env[name] for name in ("MCF_RUN_URI", "MCF_ATTEMPT", "MLFLOW_TRACKING_URI", "MLFLOW_RUN_ID")}
    assert told == {
        "MCF_RUN_URI": "s3://mcf/runs/r0",
        "MCF_ATTEMPT": "2",
        "MLFLOW_TRACKING_URI": "http://mlflow:5000",
        "MLFLOW_RUN_ID": "abc",
    }
    [untracked] = app_for(replace(REQUEST, tracking_run_id=None)).roles
    assert not any(name.startswith("MLFLOW") for name in untracked.env)


def test_equal_requests_are_equal_apps() -> None:
    assert app_for(REQUEST) == app_for(replace(REQUEST))
    assert app_for(REQUEST).name == REQUEST.name
